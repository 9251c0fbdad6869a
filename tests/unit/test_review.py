"""What is asked of a version before it is trusted, over a store in memory and a child that is a script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shipway import results
from shipway.console import Console
from shipway.errors import GoldenFailed, ModelCorrupt, ModelRefused
from shipway.stores import review
from shipway.stores.catalogue import Catalogue
from shipway.stores.golden import Answer
from shipway.stores.review import Compared, Verified
from tests import model_folder
from tests.memory_store import MemoryStore, Wrapped
from tests.unit.test_catalogue import SIGNATURE, Child, Clock


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    held = MemoryStore()
    catalogue = Catalogue(held, run=Child(), now=Clock())
    for weight, accuracy in ((1, 0.75), (2, 0.8)):
        folder = model_folder.make(tmp_path / "folder", weight=weight)
        catalogue.publish(folder, name="adds", publisher="ada", metrics={"accuracy": accuracy}, tell=Console())
    return held


def verify(store: MemoryStore, cache: Path, told: Mapping[str, Any] | None = None) -> Verified:
    catalogue = Catalogue(store, run=Child())
    run = Child(told) if told else None
    return review.verify(catalogue, "adds", "latest", cache=cache, tell=Console(), run=run)


def compare(store: MemoryStore, cache: Path, told: Mapping[str, Any]) -> Compared:
    catalogue = Catalogue(store, run=Child())
    return review.compare(catalogue, "adds", 1, 2, cache=cache, tell=Console(), run=Child(told))


def blobs(store: MemoryStore, number: int) -> dict[str, str]:
    files = json.loads(store.objects[f"adds/versions/{number}.json"])["files"]
    return {file["path"]: f"adds/blobs/sha256/{file['digest'][7:]}" for file in files}


def test_verify_reads_every_byte_from_the_store_once(store: MemoryStore, tmp_path: Path) -> None:
    watched = Wrapped(store)
    catalogue = Catalogue(watched, run=Child())
    catalogue.pull(catalogue.resolve("adds", 2), cache=tmp_path / "cache", tell=Console())
    watched.calls.clear()

    verified = review.verify(catalogue, "adds", 2, cache=tmp_path / "cache", tell=Console())

    assert watched.calls["stream"] == len(verified.version.files) == 4
    assert (verified.signers, verified.cases) == ((), None)


def test_verify_names_every_file_that_is_damaged(store: MemoryStore, tmp_path: Path) -> None:
    held = blobs(store, 2)
    store.objects[held["model.onnx"]] = bytes(len(store.objects[held["model.onnx"]]))
    del store.objects[held["card.md"]]

    with pytest.raises(ModelCorrupt, match=r"version 2 of adds in memory is damaged:\n") as raised:
        verify(store, tmp_path)

    _, *lines = raised.value.message.splitlines()
    assert sorted(line.split()[0] for line in lines) == ["model.onnx", "there"]


@pytest.mark.parametrize(("field", "said"), [("size_bytes", 512), ("gzip", f"sha256:{'0' * 64}")])
def test_verify_refuses_a_manifest_that_promises_another_layer(
    store: MemoryStore, tmp_path: Path, field: str, said: object
) -> None:
    manifest = json.loads(store.objects["adds/versions/2.json"])
    manifest["layer"][field] = said
    store.objects["adds/versions/2.json"] = json.dumps(manifest).encode()

    with pytest.raises(ModelCorrupt, match="its files make the layer sha256:"):
        verify(store, tmp_path)


def test_verify_takes_a_manifest_that_is_older_than_gzip(store: MemoryStore, tmp_path: Path) -> None:
    manifest = json.loads(store.objects["adds/versions/2.json"])
    del manifest["layer"]["gzip"]
    store.objects["adds/versions/2.json"] = json.dumps(manifest).encode()

    assert verify(store, tmp_path).version.layer.gzip is None


def test_verify_asks_the_golden_cases_when_it_is_told_to(store: MemoryStore, tmp_path: Path) -> None:
    assert verify(store, tmp_path, {"signature": SIGNATURE}).cases == 1


def test_verify_refuses_when_the_golden_answers_are_wrong(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(GoldenFailed, match="one: y is off"):
        verify(store, tmp_path, {"failed": ["one: y is off"], "signature": SIGNATURE})


def test_verify_refuses_a_manifest_that_lies_about_the_inputs(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="has other inputs or outputs than its manifest says"):
        verify(store, tmp_path, {"signature": {**SIGNATURE, "inputs": []}})


def test_verify_opens_nothing_that_publishing_would_refuse(store: MemoryStore, tmp_path: Path) -> None:
    """Whoever can write the store needs no publisher: a manifest is quickly made around a pickle."""
    from shipway.artifacts import Digest, ModelFile  # noqa: PLC0415 - this one test's
    from shipway.stores import manifest as form  # noqa: PLC0415 - this one test's

    hostile = b"\x80\x04cos\nsystem\n(S'true'\ntR."
    document = json.loads(store.objects["adds/versions/2.json"])
    store.objects[f"adds/blobs/sha256/{Digest.of(hostile).hex}"] = hostile
    file = next(file for file in document["files"] if file["path"] == "model.onnx")
    file.update(digest=Digest.of(hostile), size_bytes=len(hostile))
    files = [
        ModelFile(path=f["path"], digest=Digest(f["digest"]), size_bytes=f["size_bytes"]) for f in document["files"]
    ]
    document["digest"] = form.set_digest(files)
    by_digest = {each.digest: store.objects[f"adds/blobs/sha256/{each.digest.hex}"] for each in files}
    layer = form.described(form.layer(files, Digest(document["digest"]), lambda each: [by_digest[each.digest]]))
    document["layer"] = {"digest": layer.digest, "size_bytes": layer.size_bytes}
    store.objects["adds/versions/2.json"] = json.dumps(document).encode()

    assert verify(store, tmp_path).cases is None
    with pytest.raises(ModelRefused, match=r"model\.onnx is refused: it is a pickle"):
        verify(store, tmp_path, {"signature": SIGNATURE})
    with pytest.raises(ModelRefused, match=r"model\.onnx is refused: it is a pickle"):
        compare(store, tmp_path, {"answers": []})


ANSWERS: list[dict[str, Any]] = [
    {"case": "one (before)", "output": "y", "largest": 1.0, "mean": 0.5, "changed": 1, "rows": 2},
    {"case": "two", "problem": "cannot be asked of both: no"},
]


def test_compare_tells_metrics_files_contract_and_answers(store: MemoryStore, tmp_path: Path) -> None:
    compared = compare(store, tmp_path, {"answers": ANSWERS})

    assert results.compared_text(compared).splitlines() == [
        "adds 1 -> 2",
        "metric    accuracy: 0.75 -> 0.8",
        *(
            f"file      {path} changed: {blobs(store, 1)[path][18:30]} -> {blobs(store, 2)[path][18:30]}"
            for path in ("golden/tensors/one.npz", "model.onnx")
        ),
        "answer    one (before): y differs by 1 at most, 0.5 on average; the largest value moved in 1 of 2 rows",
        "answer    two cannot be asked of both: no",
    ]
    assert compared.answers == tuple(Answer(**each) for each in ANSWERS)


def test_compare_tells_what_the_service_must_understand(store: MemoryStore, tmp_path: Path) -> None:
    manifest = json.loads(store.objects["adds/versions/2.json"])
    manifest["inputs"] = [{"name": "z", "type": "float64", "shape": [3]}]
    manifest["preprocessing"] = {"color": "RGB"}
    store.objects["adds/versions/2.json"] = json.dumps(manifest).encode()

    compared = compare(store, tmp_path, {"answers": []})

    assert compared.contract == {
        "input x": ("float32 [free, 2]", None),
        "input z": (None, "float64 [3]"),
        "preprocessing color": (None, "RGB"),
    }
    assert "contract  input x: float32 [free, 2] -> none" in results.compared_text(compared)


def test_compare_refuses_when_the_models_cannot_be_opened(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"model\.onnx and .*model\.onnx: no such operator"):
        compare(store, tmp_path, {"refused": "no such operator"})
