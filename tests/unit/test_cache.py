"""The cache's limit: what was used least recently goes, what is in use stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from shipway.artifacts import Digest, ModelFile
from shipway.stores.cache import Cache
from shipway.stores.objects import Blob
from shipway.stores.uses import Uses
from tests.memory_store import MemoryStore

SIZE = 64 << 10  # whole blocks of any disk
LIMIT = 3 * SIZE + 4096


class Shelf:
    """Processes that share one cache, played by their uses of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.processes: list[Uses] = []

    def process(self, *, limit_bytes: int | None = LIMIT) -> Cache:
        self.processes.append(Uses(self.folder / "uses"))
        return Cache(self.folder, limit_bytes=limit_bytes, uses=self.processes[-1])

    def end(self) -> None:
        for uses in self.processes:
            uses.close()

    def pull(self, cache: Cache, names: Iterable[str]) -> Path:
        """Fetch one file for each name, and make a folder of them."""
        held = {}
        for at, name in enumerate(names):
            data = name.encode() * SIZE
            file = ModelFile(path=name, digest=Digest.of(data), size_bytes=SIZE)
            self.store.objects[name] = data
            held[file] = cache.fetch(file, Blob(self.store, name), lambda _count: None)
            os.utime(held[file], (at, 1000 + at + 100 * len(self.processes)))
        return cache.folder(held)

    def kept(self) -> set[str]:
        return {(path.read_bytes()[:1]).decode() for path in (self.folder / "sha256").iterdir()}

    def folders(self) -> list[set[str]]:
        return sorted(
            ({inside.name for inside in each.iterdir()} for each in (self.folder / "models").iterdir()), key=str
        )


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path / "cache")
    yield shelf
    shelf.end()


def test_oldest_goes_first_when_the_cache_is_full(shelf: Shelf) -> None:
    shelf.pull(shelf.process(), "abc")
    shelf.end()

    shelf.pull(shelf.process(), "d")

    assert shelf.kept() == {"b", "c", "d"}
    assert shelf.folders() == [{"d"}]  # no folder is left that lacks a file


def test_what_was_used_again_stays_longer(shelf: Shelf) -> None:
    shelf.pull(shelf.process(), "abc")
    shelf.pull(shelf.process(), "a")
    shelf.end()

    shelf.pull(shelf.process(), "d")

    assert shelf.kept() == {"a", "c", "d"}


def test_nothing_goes_that_a_living_process_uses(shelf: Shelf) -> None:
    folder = shelf.pull(shelf.process(), "abc")

    shelf.pull(shelf.process(), "d")  # for which there is no room

    assert shelf.kept() == {"a", "b", "c", "d"}
    assert {path.name for path in folder.iterdir()} == {"a", "b", "c"}


def test_everything_stays_when_there_is_no_limit(shelf: Shelf) -> None:
    shelf.pull(shelf.process(limit_bytes=None), "abc")
    shelf.end()

    shelf.pull(shelf.process(limit_bytes=None), "de")

    assert shelf.kept() == {"a", "b", "c", "d", "e"}


def test_half_a_file_of_a_dead_process_goes_too(shelf: Shelf) -> None:
    cache = shelf.process()
    (shelf.folder / "sha256").mkdir(parents=True)
    part = shelf.folder / "sha256" / f"{Digest.of(b'never finished').hex}.part"
    part.write_bytes(b"x" * SIZE)
    os.utime(part, (0, 0))

    shelf.pull(cache, "abc")

    assert not part.exists()
    assert shelf.kept() == {"a", "b", "c"}


def test_room_is_made_when_a_listed_file_is_gone_meanwhile(shelf: Shelf) -> None:
    shelf.pull(shelf.process(), "abc")
    shelf.end()
    gone = shelf.folder / "sha256" / "gone.part"
    gone.symlink_to("nowhere")  # is listed, and has no length to tell

    shelf.pull(shelf.process(), "d")

    gone.unlink()
    assert shelf.kept() == {"b", "c", "d"}


def test_room_is_made_when_another_process_finishes_a_folder_meanwhile(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.pull(shelf.process(), "abc")
    shelf.end()
    made = shelf.folder / "models" / ".new-0"
    (made / "new").mkdir(parents=True)
    rglob = Path.rglob

    def meanwhile(folder: Path, pattern: str) -> Iterator[Path]:  # no other way into the middle of a walk
        for path in rglob(folder, pattern):
            yield path
            if folder == made:
                shutil.rmtree(made)

    monkeypatch.setattr(Path, "rglob", meanwhile)

    shelf.pull(shelf.process(), "d")

    assert not made.exists()
    assert shelf.kept() == {"b", "c", "d"}


def test_the_dead_leave_nothing_behind(shelf: Shelf) -> None:
    shelf.pull(shelf.process(), "abc")
    shelf.end()

    shelf.pull(shelf.process(), "d")

    assert len(list((shelf.folder / "uses").glob("*.use"))) == 1
