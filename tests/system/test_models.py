"""Models for real: the child that opens them, several processes, full disks, and the sample store."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from shipway import documents, exchanges
from shipway.artifacts import Digest
from shipway.console import Console
from shipway.errors import GoldenFailed, ModelCorrupt, ModelError, ModelRefused
from shipway.oci import compose
from shipway.proc import Completed, Proc
from shipway.stores import Catalogue, open_catalogue, review
from shipway.stores.directory import Directory
from shipway.stores.golden import Answer
from tests import model_folder
from tests.model_folder import external_tensor, nested, number, onnx, text

ROOT = Path(__file__).parents[2]
SAMPLE = "efficientnet-lite0"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PUBLISH = """
    import sys
    from pathlib import Path
    from shipway.console import Console
    from shipway.stores import open_catalogue

    root, folder, who = map(Path, sys.argv[1:])
    catalogue = open_catalogue("store", root=root)
    print(catalogue.publish(folder, name="adds", publisher=str(who), tell=Console()).version.version)
"""
PROMOTE = """
    import sys
    from pathlib import Path
    from shipway.errors import AliasMoved
    from shipway.stores import open_catalogue

    catalogue = open_catalogue("store", root=Path(sys.argv[1]))
    try:
        catalogue.promote("adds", int(sys.argv[2]), "production", who=f"p{sys.argv[2]}", why="race", expected=1)
        print("won")
    except AliasMoved as error:
        print(error.message)
"""
PULL = """
    import sys
    from pathlib import Path
    from shipway.console import Console
    from shipway.stores import open_catalogue

    catalogue = open_catalogue(sys.argv[1], root=Path("/"))
    model = catalogue.resolve(sys.argv[3], "latest")
    print(catalogue.pull(model, cache=Path(sys.argv[2]), tell=Console()))
"""


SCALAR, ONE = nested(2), nested(2, nested(1, number(1, 1)))
BODY = (("turn", 7, SCALAR), ("go", 9, SCALAR), ("kept", 7, ONE))  # a loop's body takes int64, bool, int64


class Impatient(Proc):
    """Runs real processes, for three seconds at most."""

    def run(self, argv: Sequence[str | Path], **options: Any) -> Completed:
        return super().run(argv, **{**options, "timeout_s": 3})


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return open_catalogue("store", root=tmp_path)


def start(program: str, *arguments: object, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # noqa: PLW1509 - a limit of the child alone; this process has no threads
    )


def results(children: Sequence[subprocess.Popen[str]]) -> list[str]:
    ended = [(child.communicate(timeout=120), child.returncode) for child in children]
    assert [code for _, code in ended] == [0] * len(ended), [err for (_, err), _ in ended]
    return [out.strip() for (out, _), _ in ended]


# -- the child that opens untrusted models -------------------------------------------------


def test_publish_reads_the_signature_from_the_model(catalogue: Catalogue, tmp_path: Path) -> None:
    published = catalogue.publish(
        model_folder.make(tmp_path / "folder"), name="adds", publisher="ada", tell=Console()
    ).version

    told = json.loads(documents.encoded(published))
    assert {key: told[key] for key in ("inputs", "outputs", "golden", "card")} == {
        "inputs": [{"name": "x", "type": "float32", "shape": [None, 2]}],
        "outputs": [{"name": "y", "type": "float32", "shape": [None, 2]}],
        "golden": {"tensors": ["one"], "exchanges": ["one"]},
        "card": "card.md",
    }


def test_publish_refuses_with_figures_when_a_golden_answer_is_wrong(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path / "folder", weight=1, answer=1.5)

    with pytest.raises(
        GoldenFailed, match=r"one: y\[0, \d\] is \d, expected \d\.5 \(allowed .*; 2 of 2 values are off\)"
    ):
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())

    assert catalogue.names() == ()


def test_publish_takes_a_model_with_external_data(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path / "folder", answer=2)
    (folder / "weights.bin").write_bytes(struct.pack("<2f", 2, 2))
    (folder / "model.onnx").write_bytes(onnx(initializer=external_tensor("weight", location="weights.bin")))

    published = catalogue.publish(folder, name="adds", publisher="ada", tell=Console())

    assert "weights.bin" in {file.path for file in published.version.files}


BROKEN: dict[str, Callable[[Path], object]] = {
    "an operator that does not exist": lambda folder: (folder / "model.onnx").write_bytes(
        onnx().replace(b"Add", b"Odd")
    ),
    "a graph cut at a field": lambda folder: (folder / "model.onnx").write_bytes(number(1, 8) + nested(7, b"")),
    "an input of another shape": lambda folder: model_folder.write_case(
        folder / "golden/tensors/one.npz", weight=1, rows=((1, 2, 3),)
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_publish_refuses_when_onnxruntime_cannot_run_the_model(catalogue: Catalogue, tmp_path: Path, case: str) -> None:
    folder = model_folder.make(tmp_path / "folder")
    BROKEN[case](folder)

    with pytest.raises(ModelRefused, match=r"model\.onnx: "):
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())

    assert catalogue.names() == ()


def _node(op: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    names = b"".join(text(1, name) for name in inputs)
    return nested(1, names, text(2, output), text(4, op), *attributes)


def _number(name: str, value: int) -> bytes:
    return nested(5, number(1, 1), number(2, 7), text(8, name), nested(9, struct.pack("<q", value)))


def _output(name: str, kind: int) -> bytes:
    return nested(12, text(1, name), nested(2, nested(1, number(1, kind))))


def test_publish_survives_when_the_model_wants_all_memory(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path / "folder")
    floats = _node("ConstantOfShape", ["count"], "floats")  # 8 GiB, of a file of a few hundred bytes
    total = _node("ReduceSum", ["floats"], "total")
    (folder / "model.onnx").write_bytes(onnx(more=(floats, total, _number("count", 1 << 31), _output("total", 1))))

    with pytest.raises(ModelRefused, match=r"model\.onnx: (?s:.)*Failed to allocate memory"):
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())


def test_publish_survives_when_the_model_never_ends(tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path / "folder")
    inputs = (nested(11, text(1, name), nested(2, nested(1, number(1, kind), shape))) for name, kind, shape in BODY)
    nodes = _node("Identity", ["go"], "on") + _node("Identity", ["kept"], "same")
    body = nested(6, nodes, text(2, "body"), *inputs, _output("on", 9), _output("same", 7))
    loop = _node("Loop", ["times", "", "times"], "end", nested(5, text(1, "body"), body, number(20, 5)))
    (folder / "model.onnx").write_bytes(onnx(more=(loop, _number("times", 1 << 62), _output("end", 7))))
    catalogue = Catalogue(Directory(tmp_path / "store"), run=Impatient())

    with pytest.raises(ModelRefused, match="onnxruntime did not survive it"):
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())


# -- two models side by side ----------------------------------------------------------------


def _compare(catalogue: Catalogue, tmp_path: Path) -> tuple[Answer, ...]:
    run, cache = Proc(), tmp_path / "cache"
    return review.compare(catalogue, "adds", 1, 2, cache=cache, tell=Console(), run=run).answers


def test_compare_measures_how_the_answers_differ(catalogue: Catalogue, tmp_path: Path) -> None:
    for weight in (1, 2.5):
        folder = model_folder.make(tmp_path / "folder", weight=weight)
        model_folder.write_case(folder / "golden/tensors/two.npz", weight=weight, rows=((1, 2), (3, 0)))
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())

    answers = {answer.case: answer for answer in _compare(catalogue, tmp_path)}

    assert sorted(answers) == ["one (after)", "one (before)", "two (after)", "two (before)"]
    two = answers["two (before)"]
    assert (two.output, two.largest, two.mean, two.changed, two.rows) == ("y", 1.5, 1.5, 0, 2)


def test_compare_counts_where_the_largest_value_moved(catalogue: Catalogue, tmp_path: Path) -> None:
    for weights in ((0, 0), (0, 4)):
        folder = model_folder.make(tmp_path / "folder", weight=0)
        raw = number(1, 2) + number(2, 1) + text(8, "weight") + nested(9, struct.pack("<2f", *weights))
        (folder / "model.onnx").write_bytes(onnx(initializer=raw))
        inputs = np.array([[1, 2], [3, 0], [9, 0]], np.float32)
        arrays: dict[str, Any] = {
            "input/x": inputs,
            "output/y": inputs + np.array(weights, np.float32),
            "rtol": 0.0,
            "atol": 0.0,
        }
        np.savez_compressed(folder / "golden/tensors/one.npz", allow_pickle=False, **arrays)
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())

    answers = _compare(catalogue, tmp_path)

    assert [(each.case, each.largest, each.mean, each.changed, each.rows) for each in answers] == [
        ("one (before)", 4.0, 2.0, 1, 3),
        ("one (after)", 4.0, 2.0, 1, 3),
    ]


def test_compare_says_which_case_cannot_be_asked_of_both(catalogue: Catalogue, tmp_path: Path) -> None:
    for width in (2, 3):
        folder = model_folder.make(tmp_path / "folder")
        (folder / "model.onnx").write_bytes(onnx(width=width))
        model_folder.write_case(folder / "golden/tensors/one.npz", weight=1, rows=((1,) * width,))
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())

    answers = _compare(catalogue, tmp_path)

    assert [answer.case for answer in answers] == ["one (before)", "one (after)"]
    assert all(answer.problem.startswith("cannot be asked of both: ") for answer in answers)


# -- nothing outside is opened -------------------------------------------------------------


class Watch:
    """Counts who opens what is in a folder, by the kernel's word (Linux, inotify)."""

    OPEN, MODIFY, CREATE = 0x20, 0x2, 0x100

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queue = self._libc.inotify_init1(os.O_NONBLOCK)
        watch = self._libc.inotify_add_watch(self._queue, os.fsencode(folder), self.OPEN | self.MODIFY | self.CREATE)
        assert watch > 0, os.strerror(ctypes.get_errno())

    def names(self) -> set[str]:
        """What was opened, changed or made since the last time."""
        try:
            data = os.read(self._queue, 1 << 16)
        except BlockingIOError:
            return set()
        found, at = set(), 0
        while at < len(data):
            (length,) = struct.unpack_from("12xI", data, at)
            found.add(data[at + 16 : at + 16 + length].rstrip(b"\0").decode())
            at += 16 + length
        return found - {""}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Watch]:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.bin").write_bytes(bytes(8))
    yield (watch := Watch(tmp_path / "outside"))
    assert watch.names() == set()
    (tmp_path / "outside/secret.bin").read_bytes()
    assert watch.names() == {"secret.bin"}  # the watch was awake


def _external(folder: Path, location: str) -> None:
    (folder / "model.onnx").write_bytes(onnx(initializer=external_tensor("weight", location=location)))


def _through_a_link(folder: Path) -> None:
    (folder / "weights.bin").symlink_to("../outside/secret.bin")
    _external(folder, "weights.bin")


def _through_a_linked_folder(folder: Path) -> None:
    (folder / "weights").symlink_to("../outside")
    _external(folder, "weights/secret.bin")


def _sending_a_file_from_above(folder: Path) -> None:
    request = {"method": "POST", "path": "/", "body_file": "../../../outside/secret.bin"}
    exchange = {"request": request, "response": {"status": 200}}
    (folder / "golden/exchanges/two.json").write_text(json.dumps(exchange))


HOSTILE: dict[str, Callable[[Path], None]] = {
    "external data above": lambda folder: _external(folder, "../outside/secret.bin"),
    "external data, absolute": lambda folder: _external(folder, str(folder.parent / "outside/secret.bin")),
    "external data through a link": _through_a_link,
    "external data through a linked folder": _through_a_linked_folder,
    "a linked file": lambda folder: (folder / "labels.txt").symlink_to("../outside/secret.bin"),
    "an exchange that sends a file from above": _sending_a_file_from_above,
}


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's: run this test there")
@pytest.mark.parametrize("case", HOSTILE)
def test_publish_opens_nothing_outside_when_the_folder_is_hostile(
    catalogue: Catalogue, tmp_path: Path, outside: Watch, case: str
) -> None:
    folder = model_folder.make(tmp_path / "folder")
    HOSTILE[case](folder)

    with pytest.raises(ModelRefused, match=r"model\.onnx|is a symbolic link|two\.json"):
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())

    assert outside.names() == set()
    assert catalogue.names() == ()


def test_resolve_opens_nothing_outside_when_a_store_holds_links(
    catalogue: Catalogue, tmp_path: Path, outside: Watch
) -> None:
    catalogue.publish(model_folder.make(tmp_path / "folder"), name="adds", publisher="ada", tell=Console())
    pinned = catalogue.resolve("adds", 1)
    for file in pinned.files:
        blob = tmp_path / "store/adds/blobs/sha256" / file.digest.hex
        blob.unlink()
        blob.symlink_to(tmp_path / "outside/secret.bin")

    with pytest.raises(ModelCorrupt):
        catalogue.resolve("adds", 1)
    with pytest.raises(ModelError, match="is a symbolic link"):
        catalogue.pull(pinned, cache=tmp_path / "cache", tell=Console())

    assert outside.names() == set()


# -- several processes ---------------------------------------------------------------------


def test_publish_gives_different_numbers_when_several_publish_at_once(catalogue: Catalogue, tmp_path: Path) -> None:
    folders = [model_folder.make(tmp_path / f"folder-{weight}", weight=weight) for weight in range(1, 5)]

    numbers = results([start(PUBLISH, tmp_path, folder, folder.name) for folder in folders])

    assert sorted(numbers) == ["1", "2", "3", "4"]
    assert catalogue.aliases("adds") == {"latest": 4}
    assert {version.publisher for version in catalogue.versions("adds")} == {folder.name for folder in folders}


def test_publish_gives_one_number_when_the_same_is_published_twice_at_once(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    folder = model_folder.make(tmp_path / "folder")

    numbers = results([start(PUBLISH, tmp_path, folder, who) for who in ("ada", "bob")])

    assert numbers == ["1", "1"]
    assert len(catalogue.versions("adds")) == 1


def test_promote_has_one_winner_when_several_promote_at_once(catalogue: Catalogue, tmp_path: Path) -> None:
    for weight in range(1, 6):
        folder = model_folder.make(tmp_path / "folder", weight=weight)
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())
    catalogue.promote("adds", 1, "production", who="ada", why="first")

    said = results([start(PROMOTE, tmp_path, number) for number in (2, 3, 4, 5)])

    winner = catalogue.aliases("adds")["production"]
    assert said.count("won") == 1
    assert said[winner - 2] == "won"
    losers = [line for line in said if line != "won"]
    assert all(f"names version {winner}, moved by p{winner}" in line for line in losers), losers
    assert [move.version for move in catalogue.history("adds") if move.alias == "production"] == [1, winner]


def test_pull_gives_one_folder_when_several_pull_at_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    folders = set(results([start(PULL, ROOT / "model/store", cache, SAMPLE) for _ in range(3)]))

    assert len(folders) == 1
    assert {path.suffix for path in (cache / "sha256").iterdir()} == {""}


def test_pull_goes_on_when_it_was_killed_in_the_middle(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    child = start(PULL, ROOT / "model/store", cache, SAMPLE)
    deadline = time.monotonic() + 60
    while child.poll() is None and not list(cache.glob("sha256/*")):
        assert time.monotonic() < deadline
    child.send_signal(signal.SIGKILL)
    child.communicate()
    catalogue = open_catalogue("model/store", root=ROOT)

    folder = catalogue.pull(catalogue.resolve(SAMPLE, 1), cache=cache, tell=Console())

    assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() in {
        path.name for path in (cache / "sha256").iterdir()
    }
    assert not list(cache.rglob("*.part"))


def _small_disk() -> None:
    """No file may grow beyond a megabyte: the kernel refuses the write as it does when a disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_pull_names_path_and_bytes_when_the_disk_is_full(tmp_path: Path) -> None:
    child = start(PULL, ROOT / "model/store", tmp_path / "cache", SAMPLE, limit=_small_disk)
    _, told = child.communicate(timeout=60)

    assert child.returncode == 1
    assert f"cannot write {tmp_path / 'cache/sha256'}" in told
    assert "18,614,607 bytes" in told
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert not (tmp_path / "cache/models").exists()


def test_publish_names_path_and_bytes_when_the_disk_is_full(catalogue: Catalogue, tmp_path: Path) -> None:
    sample = open_catalogue("model/store", root=ROOT)
    folder = sample.pull(sample.resolve(SAMPLE, 1), cache=tmp_path / "cache", tell=Console())
    child = start(PUBLISH, tmp_path, folder, "ada", limit=_small_disk)
    _, told = child.communicate(timeout=60)

    assert child.returncode == 1
    assert f"cannot write {tmp_path / 'store/adds/blobs/sha256'}" in told
    assert "(18,614,607 bytes)" in told
    assert catalogue.versions("adds") == ()
    assert not list((tmp_path / "store").rglob(".new-*"))


# -- the sample store ----------------------------------------------------------------------


def test_the_sample_store_holds_the_version_that_its_files_make(tmp_path: Path) -> None:
    sample = open_catalogue("model/store", root=ROOT)
    pinned = sample.resolve(SAMPLE, "latest")
    folder = sample.pull(pinned, cache=tmp_path / "cache", tell=Console())

    published = open_catalogue("store", root=tmp_path).publish(folder, name=SAMPLE, publisher="ada", tell=Console())

    made = published.version.model
    assert replace(made, layer=replace(made.layer, gzip=None)) == pinned  # which is older than that digest


def test_golden_exchanges_come_without_the_weights(tmp_path: Path) -> None:
    sample = open_catalogue("model/store", root=ROOT)

    pinned = compose.model_ref(sample.resolve(SAMPLE, 1))
    folder = sample.golden_exchanges(pinned, cache=tmp_path / "cache", tell=Console())

    names = ["chelsea", "china", "coffee", "coffee-large", "rocket", "rocket-rotated"]
    assert sorted(each.name for each in exchanges.load(folder)) == names
    assert sorted({path.suffix for path in folder.rglob("*.*")}) == [".jpg", ".json", ".png"]


def test_the_sample_store_is_what_sha256sum_says(tmp_path: Path) -> None:
    sample = open_catalogue("model/store", root=ROOT)
    pinned = sample.resolve(SAMPLE, "latest")
    folder = sample.pull(pinned, cache=tmp_path / "cache", tell=Console())
    paths = sorted(file.path for file in pinned.files)

    said = subprocess.run(["sha256sum", *paths], cwd=folder, check=True, capture_output=True).stdout

    assert Digest.of(said) == pinned.digest


def test_the_sample_store_holds_what_model_says() -> None:
    sample = open_catalogue("model/store", root=ROOT)
    digests = {file.path: file.digest for file in sample.resolve(SAMPLE, "latest").files}

    for name in ("card.md", "labels.txt", "preprocessing.json", "LICENCES.md"):
        assert Digest.of((ROOT / "model" / name).read_bytes()) == digests[name], name
