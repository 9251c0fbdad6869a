"""Hostile model folders: each is refused by the file's name, whatever the name says it is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipway.artifacts import ModelFile
from shipway.errors import ModelRefused
from shipway.stores import drafting, manifest, onnxfile, safety
from tests import model_folder
from tests.model_folder import external_tensor, nested, number, onnx, text

PICKLE = pickle.dumps({"weights": os.getcwd})
OLD_PICKLE = b"cos\nsystem\n(S'true'\ntR."


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def objects_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **{"input/x": np.array([{}], dtype=object)})
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    from PIL import Image  # noqa: PLC0415 - this one test's

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind)
    return buffer.getvalue()


def deep(levels: int) -> bytes:
    """A node whose attribute is a graph, whose node's attribute is a graph, and so on."""
    field = b""
    for _ in range(levels):
        field = nested(1, nested(5, nested(6, field)))
    return field


HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "pickle named onnx": ("model.onnx", PICKLE, "it is a pickle"),
    "protocol 0 pickle named text": ("labels.txt", OLD_PICKLE, "it is a pickle"),
    "torch archive named onnx": ("model.onnx", zipped(**{"archive/data.pkl": PICKLE}), "zip archive"),
    "archive behind an image": ("golden/images/a.png", picture("png") + zipped(**{"a.pkl": PICKLE}), "zip archive"),
    "archive behind text": ("card.md", b"# Card\n" + zipped(**{"a.pkl": PICKLE}), "zip archive"),
    "empty": ("model.onnx", b"", "is empty"),
    "empty beside": ("labels.txt", b"", "is empty"),
    "random": ("model.onnx", np.random.default_rng(1).bytes(5000), "no ONNX model"),
    "truncated": ("model.onnx", onnx()[:-20], "no ONNX model, or cut short"),
    "text named onnx": ("model.onnx", b"# not a model\n", "no ONNX model"),
    "field number zero": ("model.onnx", onnx() + b"\0\0", "no ONNX model"),
    "tag of 35 bits": ("model.onnx", onnx() + b"\xba\x80\x80\x80\x80\x01\x00", "no ONNX model"),
    "nested too deep": ("model.onnx", onnx(more=(deep(40),)), "nested more than 64 deep"),
    "objects in npz": ("golden/tensors/one.npz", objects_npz(), "Python objects, which are pickles"),
    "pickle in npz": ("golden/tensors/one.npz", zipped(**{"input/x.npy": PICKLE}), "one.npz is refused"),
    "pickle named npz": ("golden/tensors/one.npz", PICKLE, "no archive of arrays"),
    "pickle named json": ("preprocessing.json", PICKLE, "it is a pickle"),
    "json that is none": ("preprocessing.json", b"{", "preprocessing.json is refused"),
    "json with NaN": ("preprocessing.json", b'{"a": NaN}', "NaN is not JSON"),
    "json with half a letter": ("preprocessing.json", b'{"a": "\\ud800"}', "preprocessing.json is refused"),
    "json with too large a number": ("preprocessing.json", b'{"a": 1e999}', "Number out of range"),
    "json without end": ("preprocessing.json", b"[" * 100_000, "preprocessing.json is refused"),
    "text that is binary": ("labels.txt", b"a\0b", "no plain text"),
    "text that is not UTF-8": ("labels.txt", b"\xff\xfe\xfd", "labels.txt is refused"),
    "png that is none": ("golden/images/a.png", picture("jpeg"), "no PNG"),
    "png cut short": ("golden/images/a.png", picture("png")[:-5], "no PNG, or not a whole one"),
    "png with a wrong check": ("golden/images/a.png", picture("png").replace(b"IDAT", b"IDAU"), "no PNG"),
    "jpeg that is none": ("golden/images/a.jpg", picture("png"), "no JPEG"),
    "jpeg cut short": ("golden/images/a.jpg", picture("jpeg")[:-5], "no JPEG, or not a whole one"),
    "program": ("setup.py", b"import os\n", ".py is none of the safe formats"),
    "no ending": ("weights", b"\1\2", "no ending is none of the safe formats"),
    "weights that no model names": ("weights.bin", b"\1\2\3\4", ".bin is none of the safe formats"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_inspect_refuses_by_name_when_a_file_is_not_plain_data(case: str, tmp_path: Path) -> None:
    name, data, told = HOSTILE[case]
    folder = model_folder.make(tmp_path)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)

    with pytest.raises(ModelRefused) as raised:
        safety.inspect(folder)

    assert str(folder / name) in raised.value.message
    assert told in raised.value.message


def test_draft_refuses_json_that_is_too_deep_for_it(tmp_path: Path) -> None:
    path = tmp_path / "preprocessing.json"
    path.write_bytes(b"[" * 100_000)
    digest, size_bytes = manifest.measured([path.read_bytes()])

    with pytest.raises(ModelRefused, match=r"preprocessing\.json is refused: "):
        drafting.draft(
            tmp_path,
            (ModelFile(path=path.name, digest=digest, size_bytes=size_bytes),),
            manifest.Signature(inputs=(), outputs=()),
            name="adds",
            publisher="ada",
            commit=None,
            metrics={},
            created=datetime(2026, 11, 23, tzinfo=UTC),
        )


EXTERNAL: dict[str, tuple[dict[str, str], str]] = {
    "above": ({"location": "../secret"}, "'../secret', which is no file of the folder"),
    "absolute": ({"location": "/etc/passwd"}, "'/etc/passwd', which is no file of the folder"),
    "missing": ({"location": "weights.bin"}, "'weights.bin', which is no file of the folder"),
    "around": ({"location": "golden/../../secret"}, "which is no file of the folder"),
    "itself": ({"location": "model.onnx"}, "which is no file of the folder"),
    "nowhere": ({"offset": "0"}, "'', which is no file of the folder"),
    "memory": ({"location": "*/_ORT_MEM_ADDR_/*"}, "which is no file of the folder"),
    "beyond the end": ({"location": "labels.txt", "offset": "4", "length": "9"}, "from beyond the end of labels.txt"),
    "before the beginning": ({"location": "labels.txt", "offset": "-8", "length": "8"}, "from beyond the end"),
    "no number": ({"location": "labels.txt", "offset": "a"}, "no number"),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_inspect_refuses_when_external_data_is_not_in_the_folder(case: str, tmp_path: Path) -> None:
    entries, told = EXTERNAL[case]
    (tmp_path / "secret").write_bytes(b"12345678")
    folder = model_folder.make(tmp_path / "folder")
    (folder / "labels.txt").write_text("12345678")
    (folder / "model.onnx").write_bytes(onnx(initializer=external_tensor("weight", **entries)))

    with pytest.raises(ModelRefused) as raised:
        safety.inspect(folder)

    assert str(folder / "model.onnx") in raised.value.message
    assert told in raised.value.message


SECRET = external_tensor("weight", location="../secret")
PLACES: dict[str, bytes] = {
    "an attribute": onnx(more=(nested(1, nested(5, nested(5, SECRET))),)),
    "a list of tensors": onnx(more=(nested(1, nested(5, nested(10, SECRET))),)),
    "a subgraph": onnx(more=(nested(1, nested(5, nested(6, nested(5, SECRET)))),)),
    "a list of subgraphs": onnx(more=(nested(1, nested(5, nested(11, nested(5, SECRET)))),)),
    "a sparse tensor": onnx(more=(nested(15, nested(1, SECRET)),)),
    "a sparse attribute": onnx(more=(nested(1, nested(5, nested(22, nested(2, SECRET)))),)),
    "a function": onnx() + nested(25, nested(7, nested(5, nested(5, SECRET)))),
    "a training graph": onnx() + nested(20, nested(1, nested(5, SECRET))),
    "a second graph": onnx() + nested(7, nested(5, SECRET)),
    "a tensor that says it is inside": onnx(initializer=SECRET + number(14, 0)),
    "a second entry": onnx(initializer=SECRET + nested(13, text(1, "location"), text(2, "weights.bin"))),
}


@pytest.mark.parametrize("place", PLACES)
def test_inspect_finds_external_data_wherever_it_is(place: str, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path)
    (folder / "weights.bin").write_bytes(b"12345678")
    (folder / "model.onnx").write_bytes(PLACES[place])

    with pytest.raises(ModelRefused, match=r"no file of the folder|twice"):
        safety.inspect(folder)


def test_inspect_takes_external_data_that_is_in_the_folder(tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path)
    (folder / "weights.bin").write_bytes(np.ones(2, np.float32).tobytes())
    entries = {"location": "weights.bin", "offset": "0", "length": "8"}
    (folder / "model.onnx").write_bytes(onnx(initializer=external_tensor("weight", **entries)))

    paths = [file.path for file in safety.inspect(folder)]

    assert paths == ["card.md", "golden/exchanges/one.json", "golden/tensors/one.npz", "model.onnx", "weights.bin"]


def test_inspect_refuses_when_external_data_is_a_pickle(tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path)
    (folder / "weights.bin").write_bytes(PICKLE)
    (folder / "model.onnx").write_bytes(onnx(initializer=external_tensor("weight", location="weights.bin")))

    with pytest.raises(ModelRefused, match=r"weights\.bin is refused: it is a pickle"):
        safety.inspect(folder)


NAMES = ["a\\b.txt", ".hidden.txt", "-rf.txt", "a\nb.txt", "ü.txt", "a b.txt", "x" * 220 + ".txt", "\udcff.txt"]


@pytest.mark.parametrize("name", NAMES)
def test_inspect_refuses_when_a_name_is_not_plain(name: str, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path)
    (folder / name).write_text("text")

    with pytest.raises(ModelRefused, match="the path "):
        safety.inspect(folder)


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "card.md", "/nowhere"])
@pytest.mark.parametrize("name", ["labels.txt", "golden/images", "model.onnx"])
def test_inspect_refuses_when_a_file_is_a_symbolic_link(name: str, target: str, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path / "folder")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)

    with pytest.raises(ModelRefused, match=r"is a symbolic link|there is no such file"):
        safety.inspect(folder)


def test_inspect_refuses_when_a_file_is_a_pipe(tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path)
    os.mkfifo(folder / "labels.txt")

    with pytest.raises(ModelRefused, match=r"labels\.txt is no regular file"):
        safety.inspect(folder)


def test_inspect_refuses_when_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"model\.onnx: there is no such file"):
        safety.inspect(tmp_path)


GOOD: dict[str, bytes] = {
    "labels.txt": "tiger cat\nN. Bohr's naïve cat\n".encode(),
    "I.md": b"I. Introduction\n",
    "metrics.json": json.dumps({"a": [1, None, "x"]}).encode(),
    "golden/images/a.png": picture("png"),
    "golden/images/a.jpg": picture("jpeg"),
    "table.csv": b"a,b\n1,2\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_inspect_takes_plain_data(name: str, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(GOOD[name])

    assert name in {file.path for file in safety.inspect(folder)}


@given(cut=st.integers(0, len(onnx()) - 1), byte=st.integers(0, 255), add=st.binary(max_size=40))
def test_external_data_never_fails_otherwise_when_a_file_is_damaged(
    cut: int, byte: int, add: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    damaged = bytearray(onnx())
    damaged[cut] = byte
    path.write_bytes(bytes(damaged) + add)

    with contextlib.suppress(ValueError):
        found = onnxfile.external_data(path)
        assert all(isinstance(each, onnxfile.External) for each in found)
