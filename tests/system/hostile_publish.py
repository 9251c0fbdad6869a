"""Publish a good model, and then hostile ones, one after the other: a program for tests, to be watched by strace.

Says which one comes next by looking for a file that is not there, which a trace shows.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shipway.console import Console
from shipway.errors import ModelRefused
from shipway.proc import Proc
from shipway.stores.catalogue import Catalogue
from shipway.stores.directory import Directory
from tests import model_folder
from tests.model_folder import external_tensor, onnx

SECRET = bytes(8)
PICKLE = b"\x80\x04cos\nsystem\n(S'true'\ntR."


def _external(folder: Path, location: str) -> None:
    (folder / "model.onnx").write_bytes(onnx(initializer=external_tensor("weight", location=location)))


def _link(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


def _through_a_link(folder: Path) -> None:
    _link(folder, "weights.bin", "../outside/secret.bin")
    _external(folder, "weights.bin")


def _through_a_linked_folder(folder: Path) -> None:
    _link(folder, "weights", "../outside")
    _external(folder, "weights/secret.bin")


def _sends(folder: Path, name: str) -> None:
    (folder / "golden/exchanges/two.json").write_text(
        f'{{"request": {{"method": "POST", "path": "/", "body_file": "{name}"}}, "response": {{"status": 200}}}}'
    )


def _deep(folder: Path) -> None:
    place = folder.joinpath(*["a" * 100] * 3)
    place.mkdir(parents=True)
    (place / "labels.txt").write_text("cat\n")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle named onnx": (lambda folder: (folder / "model.onnx").write_bytes(PICKLE), "model.onnx"),
    "zero bytes": (lambda folder: (folder / "model.onnx").write_bytes(b""), "model.onnx"),
    "random bytes": (lambda folder: (folder / "model.onnx").write_bytes(os.urandom(5000)), "model.onnx"),
    "truncated": (lambda folder: (folder / "model.onnx").write_bytes(onnx()[:-20]), "model.onnx"),
    "external data above": (lambda folder: _external(folder, "../outside/secret.bin"), "model.onnx"),
    "external data, absolute": (
        lambda folder: _external(folder, str(folder.parent / "outside/secret.bin")),
        "model.onnx",
    ),
    "external data around": (lambda folder: _external(folder, "golden/../../outside/secret.bin"), "model.onnx"),
    "external data through a link": (_through_a_link, "weights.bin"),
    "external data through a linked folder": (_through_a_linked_folder, "weights"),
    "external data behind NUL": (lambda folder: _external(folder, "card.md\0/../outside/secret.bin"), "model.onnx"),
    "external data of 300 characters": (
        lambda folder: _external(folder, "../outside/" + "./" * 140 + "secret.bin"),
        "model.onnx",
    ),
    "the model is a link": (lambda folder: _link(folder, "model.onnx", "../outside/secret.bin"), "model.onnx"),
    "the model is a link to nothing": (lambda folder: _link(folder, "model.onnx", "../outside/no.bin"), "model.onnx"),
    "a linked file": (lambda folder: _link(folder, "labels.txt", "../outside/secret.bin"), "labels.txt"),
    "a linked golden case": (
        lambda folder: _link(folder, "golden/tensors/two.npz", "../../../outside/secret.bin"),
        "two.npz",
    ),
    "an exchange that sends a file from above": (lambda folder: _sends(folder, "../../outside/secret.bin"), "two.json"),
    "an exchange that sends an absolute file": (lambda folder: _sends(folder, "/etc/hostname"), "two.json"),
    "a file that no model names": (lambda folder: (folder / "weights.bin").write_bytes(SECRET), "weights.bin"),
    "a name that begins with dots": (lambda folder: (folder / "..labels.txt").write_text("cat\n"), "..labels.txt"),
    "a name of 200 characters": (lambda folder: (folder / ("x" * 200 + ".txt")).write_text("cat\n"), "xxxx"),
    "a path of 300 characters": (_deep, "aaaa"),
}


def main(root: Path) -> None:
    """Publish them all, each from a folder of its own beside the secret."""
    (root / "outside").mkdir()
    (root / "outside/secret.bin").write_bytes(SECRET)
    catalogue = Catalogue(Directory(root / "store"), run=Proc())
    good = _good(root / "good")
    _mark("good")
    catalogue.publish(good, name="good", publisher="ada", tell=Console())
    for number, (case, (spoil, named)) in enumerate(HOSTILE.items()):
        _mark("")
        folder = model_folder.make(root / f"folder-{number}")
        spoil(folder)
        _mark(case)
        with pytest.raises(ModelRefused) as raised:
            catalogue.publish(folder, name="hostile", publisher="eve", tell=Console())
        assert named in raised.value.message, (case, raised.value.message)
    _mark("")
    assert catalogue.names() == ("good",), catalogue.names()


def _good(folder: Path) -> Path:
    """A model with all that may be in one."""
    model_folder.make(folder, answer=2)
    (folder / "weights.bin").write_bytes(b"\0\0\0\x40" * 2)
    _external(folder, "weights.bin")
    return folder


def _mark(what: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.close(os.open(f"/nonexistent/{what}", os.O_RDONLY))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
