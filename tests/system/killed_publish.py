"""Publish to a folder, and die by SIGKILL at each write of it in turn: a program for tests.

Python tells whoever listens what it is about to do to a file; so the publisher dies right
before each of its writes, links, renames and removals, and as the last one not at all. After
each death a reader looks, and then the same is published again. Prints how often it died.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from shipway.console import Console
from shipway.stores.catalogue import Catalogue
from shipway.stores.directory import Directory
from shipway.stores.signing import Keys, Signer
from shipway.stores.sweep import Rule
from tests import model_folder
from tests.unit.test_catalogue import Child

CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename", "open"}
SIGNER = Signer(ed25519.Ed25519PrivateKey.generate())
KEYS = Keys(trusted=(SIGNER.public,), signer=SIGNER)


def main(root: Path) -> None:
    """Die more and more late, until the publisher comes to its end."""
    folder = model_folder.make(root / "folder")
    deaths = 0
    while _dies(root / f"store-{deaths}", folder, at=deaths):
        store = root / f"store-{deaths}"
        reader = _catalogue(store)
        for version in reader.versions("adds"):
            reader.resolve("adds", version.version)
        for alias, number in reader.aliases("adds").items():
            assert reader.resolve("adds", alias).version == number == 1
        _publish(store, folder)
        assert reader.aliases("adds") == {"latest": 1, "staging": 1}
        assert reader.resolve("adds", "staging").version == 1
        assert len(reader.versions("adds")) == 1
        assert [move.alias for move in reader.history("adds")] == ["latest", "staging"]
        _is_clean(store)
        deaths += 1
    Console().result(str(deaths))


def _is_clean(store: Path) -> None:
    """After a sweep, nothing is left of the dead but hidden names, which the next writer of another day removes."""
    rule = Rule(released={}, younger_than=timedelta())
    _catalogue(store).sweep("adds", rule, who="eve", apply=True, tell=Console())
    found = {path.parent.name for path in store.rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert found == {"sha256", "versions", "1", "aliases", "log"}, found
    assert len(list((store / "adds/signatures/1").glob("*.json"))) == 1
    assert len(list((store / "adds/blobs/sha256").glob("[0-9a-f]*"))) == 4


def _catalogue(store: Path) -> Catalogue:
    return Catalogue(Directory(store), run=Child(), keys=KEYS)


def _publish(store: Path, folder: Path) -> None:
    _catalogue(store).publish(folder, name="adds", publisher="ada", aliases=["staging"], tell=Console())


def _dies(store: Path, folder: Path, *, at: int) -> bool:
    child = os.fork()
    if child == 0:
        left = at

        def listen(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in CHANGES or not any(str(word).startswith(str(store)) for word in arguments[:2]):
                return
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        sys.addaudithook(listen)
        _publish(store, folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in {0, signal.SIGKILL}, status
    return status == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]))
