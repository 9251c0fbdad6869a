"""Cleaning a store: what stays and why, and that it harms nobody who publishes or promotes beside it."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from shipway import documents
from shipway.artifacts import Digest
from shipway.console import Console
from shipway.errors import ModelCorrupt, ModelError, ModelInUse, ModelMissing
from shipway.stores import notices
from shipway.stores.catalogue import Catalogue
from shipway.stores.objects import SMALL_BYTES, Found, Store, Stored
from shipway.stores.signing import Keys
from shipway.stores.sweep import MOST_FILES, Rule, Swept
from tests import model_folder
from tests.memory_store import MemoryStore, Wrapped
from tests.unit.test_catalogue import NOON, Child
from tests.unit.test_signing import ADA, BOB

LATER = NOON + timedelta(days=60)
DEAD: dict[str, Any] = {"who": "ada", "host": "elsewhere", "pid": 1, "process": None, "when": NOON}


def catalogue(store: Store, **options: Any) -> Catalogue:
    return Catalogue(store, run=Child(), now=lambda: LATER, pause=lambda _seconds: None, **options)


def publish(
    store: Store, folder: Path, weight: float, *aliases: str, now: datetime = NOON, keys: Keys | None = None
) -> int:
    there = Catalogue(store, run=Child(), now=lambda: now, pause=lambda _seconds: None, keys=keys)
    made = model_folder.make(folder, weight=weight)
    return there.publish(made, name="adds", publisher="ada", aliases=aliases, tell=Console()).version.version


def sweep(store: Store, *, apply: bool = True, released: Mapping[int, str] | None = None, days: int = 30) -> Swept:
    rule = Rule(released=released or {}, younger_than=timedelta(days=days))
    return catalogue(store).sweep("adds", rule, who="eve", apply=apply, tell=Console())


def blobs(store: MemoryStore) -> set[str]:
    return {key.rpartition("/")[2] for key in store.objects if "/blobs/" in key}


def files(store: MemoryStore, *numbers: int) -> set[str]:
    documents = [json.loads(store.objects[f"adds/versions/{number}.json"]) for number in numbers]
    return {file["digest"][7:] for document in documents for file in document["files"]}


def require_whole(store: MemoryStore) -> None:
    """Every version that is seen is there, and every alias names one."""
    reader = catalogue(store)
    for version in reader.versions("adds"):
        assert reader.resolve("adds", version.version).digest == version.digest
    for alias in reader.aliases("adds"):
        reader.resolve("adds", alias)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """Versions 1 to 4: 2 is in production, 4 is the newest."""
    held = MemoryStore()
    for weight in (1, 2, 3, 4):
        publish(held, tmp_path / "folder", weight, *(["production"] if weight == 2 else []))
    return held


# -- what stays --------------------------------------------------------------------------------


def test_sweep_takes_what_nobody_needs_and_nothing_else(store: MemoryStore) -> None:
    kept = files(store, 2, 4)

    swept = sweep(store)

    assert swept.going == dict.fromkeys((1, 3), "no alias names it, nothing released it, and it is old")
    assert swept.staying == {2: "the alias production names it", 4: "the alias latest names it"}
    assert blobs(store) == kept
    assert [version.version for version in catalogue(store).versions("adds")] == [4, 2]
    assert not any(key.startswith(("adds/sweeps/", "adds/pending/")) for key in store.objects)
    require_whole(store)


def test_sweep_changes_nothing_when_it_is_not_to_apply(store: MemoryStore) -> None:
    before = dict(store.objects)

    swept = sweep(store, apply=False)

    assert store.objects == before
    assert (sorted(swept.going), swept.applied) == ([1, 3], False)
    gone = files(store, 1, 3) - files(store, 2, 4)
    assert swept.freed_bytes == sum(len(store.objects[f"adds/blobs/sha256/{each}"]) for each in gone)


def test_sweep_takes_as_many_files_as_a_notice_can_name_and_says_so(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = files(store, 2, 4)
    store.objects.update({f"adds/blobs/sha256/{number:064x}": b"" for number in range(3)})
    monkeypatch.setattr("shipway.stores.sweep.MOST_FILES", 4)  # so many as there may be take a test too long

    swept = sweep(store)

    assert len(swept.files) == 4
    assert "adds has 7 files that nobody needs: run again to go on" in capsys.readouterr().err
    assert blobs(store) > kept
    sweep(store)
    assert blobs(store) == kept
    assert "run again" not in capsys.readouterr().err


def test_notice_of_a_sweep_can_be_read_when_it_names_as_many_files_and_versions_as_it_may() -> None:
    most = range(MOST_FILES)
    notice = notices.written_by("eve", NOON, files=[Digest(f"sha256:{number:064x}") for number in most], versions=most)

    assert len(documents.encoded(notice)) < SMALL_BYTES


def test_sweep_does_not_apply_more_than_it_said(store: MemoryStore) -> None:
    said = sweep(store, apply=False)

    done = sweep(store)

    assert (done.going, done.files, done.freed_bytes) == (said.going, said.files, said.freed_bytes)
    assert sweep(store).going == {}


def test_sweep_keeps_what_was_released(store: MemoryStore) -> None:
    assert sorted(sweep(store, released={3: "production runs it"}).going) == [1]


def test_sweep_keeps_what_is_young(store: MemoryStore) -> None:
    assert sweep(store, days=61).going == {}
    assert sweep(store, days=61).files == ()


def test_sweep_keeps_the_newest_so_that_its_number_is_never_taken_again(store: MemoryStore, tmp_path: Path) -> None:
    catalogue(store).promote("adds", 3, "latest", who="ada", why="back")

    assert sorted(sweep(store).going) == [1]
    assert publish(store, tmp_path / "folder", 9) == 5


def test_publish_takes_no_number_that_was_swept_when_a_person_moved_latest(store: MemoryStore, tmp_path: Path) -> None:
    sweep(store)
    for number in (2, 4, 2):
        catalogue(store).promote("adds", number, "latest", who="ada", why="to and fro")
    publish(store, tmp_path / "folder", 4)  # which is version 4 already, and moves latest there

    assert publish(store, tmp_path / "folder", 9) == 5


def test_sweep_keeps_what_a_publisher_made_and_was_killed_before_it_was_the_latest(
    store: MemoryStore, tmp_path: Path
) -> None:
    latest = store.objects["adds/aliases/latest.json"]
    for weight in (5, 6):
        publish(store, tmp_path / "folder", weight)
    store.objects["adds/aliases/latest.json"] = latest

    assert sorted(sweep(store).going) == [1, 3]
    assert publish(store, tmp_path / "folder", 9) == 7


def test_sweep_takes_signatures_along_and_those_of_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    for weight in (1, 2):
        publish(store, tmp_path / "folder", weight, keys=Keys(signer=ADA))
    (_, second) = (key for key in sorted(store.objects) if "/signatures/" in key)
    store.objects[f"adds/signatures/3/{'0' * 64}-{BOB.public.id}.json"] = b"{}"

    sweep(store)

    assert [key for key in store.objects if "/signatures/" in key] == [second]
    assert catalogue(store, keys=Keys(trusted=(ADA.public,))).resolve("adds", 2).version == 2


def test_sweep_takes_the_files_that_a_killed_publisher_left(store: MemoryStore) -> None:
    store.objects[f"adds/blobs/sha256/{'a' * 64}"] = b"orphan"
    notice = notices.Notice(**{**DEAD, "files": {"sha256:" + "a" * 64}})
    store.objects["adds/pending/0.json"] = documents.encoded(notice)

    sweep(store)

    assert "a" * 64 not in blobs(store)
    assert "adds/pending/0.json" not in store.objects


def test_sweep_keeps_the_files_that_a_publisher_elsewhere_is_about_to_use(store: MemoryStore) -> None:
    store.objects[f"adds/blobs/sha256/{'a' * 64}"] = b"half of a model"
    notice = notices.Notice(**{**DEAD, "when": LATER - timedelta(hours=20), "files": {"sha256:" + "a" * 64}})
    store.objects["adds/pending/0.json"] = documents.encoded(notice)

    sweep(store)

    assert "a" * 64 in blobs(store)
    assert "adds/pending/0.json" in store.objects


def test_sweep_takes_no_file_while_a_manifest_cannot_be_read(store: MemoryStore) -> None:
    before = blobs(store)
    store.objects["adds/versions/1.json"] = b"{"

    swept = sweep(store)

    assert sorted(swept.going) == [3]
    assert blobs(store) == before
    assert swept.staying[1].startswith("its manifest cannot be read")


@pytest.mark.parametrize("key", ["adds/aliases/production.json", "adds/pending/0.json", "adds/sweeps/0.json"])
def test_sweep_takes_nothing_while_it_cannot_tell_what_is_needed(key: str, store: MemoryStore) -> None:
    store.objects[key] = b"{"
    before = dict(store.objects)

    with pytest.raises(ModelCorrupt, match=key):
        sweep(store)

    assert {name: data for name, data in store.objects.items() if name in before} == before


def test_sweep_takes_nothing_when_a_notice_has_no_time_zone(store: MemoryStore) -> None:
    naive = {**DEAD, "when": "2026-11-23T12:00:00"}
    store.objects["adds/pending/0.json"] = json.dumps(naive).encode()

    with pytest.raises(ModelCorrupt, match=r"adds/pending/0\.json does not say who needs or deletes what"):
        sweep(store)


def test_sweep_says_who_else_is_at_it(store: MemoryStore) -> None:
    other = notices.Notice(**{**DEAD, "when": LATER, "versions": {1}})
    store.objects["adds/sweeps/0.json"] = documents.encoded(other)
    before = dict(store.objects)

    with pytest.raises(ModelInUse, match="is being cleaned up already, by ada on elsewhere"):
        sweep(store)

    assert store.objects == before


def test_sweep_goes_on_from_one_that_died(store: MemoryStore) -> None:
    store.objects["adds/sweeps/0.json"] = documents.encoded(notices.Notice(**{**DEAD, "versions": {1, 3}}))

    sweep(store)

    assert "adds/sweeps/0.json" not in store.objects
    require_whole(store)


@pytest.mark.parametrize(
    ("folder", "hours", "dead"),
    [("pending", 47, False), ("pending", 49, True), ("sweeps", 0.9, False), ("sweeps", 1.1, True)],
)
def test_a_notice_from_elsewhere_is_dead_after_a_while(folder: notices.Folder, hours: float, dead: bool) -> None:  # noqa: FBT001 - a table
    assert notices.Notice(**DEAD).is_dead(folder, NOON + timedelta(hours=hours)) is dead


def test_a_notice_is_alive_when_another_machine_of_the_same_name_wrote_it() -> None:
    ours = notices.written_by("ada", NOON)
    boot, _, rest = (ours.process or "").partition("/")
    theirs = replace(ours, pid=1 << 22, process=f"{boot[:-1]}x/{rest}")
    gone = replace(ours, pid=1 << 22)

    assert [each.is_dead("pending", NOON) for each in (ours, theirs, gone)] == [False, False, True]


def test_sweep_stops_before_others_take_it_for_dead(store: MemoryStore) -> None:
    times = iter([LATER] * 3)

    def now() -> datetime:
        return next(times, LATER + timedelta(minutes=31))

    slow = Catalogue(store, run=Child(), now=now)
    rule = Rule(released={}, younger_than=timedelta())

    with pytest.raises(ModelError, match="is not clean yet"):
        slow.sweep("adds", rule, who="eve", apply=True, tell=Console())

    require_whole(store)
    assert sorted(sweep(store).going) == [1, 3]


def test_publish_succeeds_when_its_notice_cannot_be_removed(store: MemoryStore, tmp_path: Path) -> None:
    class Stubborn(Wrapped):
        def delete(self, key: str) -> None:
            raise ModelError(f"cannot delete {key}")

    assert publish(Stubborn(store), tmp_path / "folder", 9) == 5


def test_promote_waits_for_a_sweep_that_takes_what_it_needs(store: MemoryStore) -> None:
    taken = {f"sha256:{digest}" for digest in files(store, 3)}
    other = notices.Notice(**{**DEAD, "when": LATER, "files": taken, "versions": {3}})
    waits = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            del store.objects["adds/sweeps/0.json"]

    store.objects["adds/sweeps/0.json"] = documents.encoded(other)
    patient = Catalogue(store, run=Child(), now=lambda: LATER, pause=pause)

    patient.promote("adds", 3, "staging", who="ada", why="")

    assert waits == [1.0] * 3
    assert catalogue(store).aliases("adds")["staging"] == 3


def test_promote_says_who_deletes_what_it_needs_when_that_does_not_end(store: MemoryStore) -> None:
    store.objects["adds/sweeps/0.json"] = documents.encoded(notices.Notice(**{**DEAD, "when": LATER, "versions": {3}}))

    with pytest.raises(ModelInUse, match="is being deleted by ada on elsewhere"):
        catalogue(store).promote("adds", 3, "staging", who="ada", why="")

    assert "staging" not in catalogue(store).aliases("adds")
    assert not any(key.startswith("adds/pending/") for key in store.objects)
    catalogue(store).promote("adds", 1, "staging", who="ada", why="")  # which nobody deletes


# -- beside others: one party stops at each of its calls, and the other runs whole -------------------


class Paused:
    """Hands every call on to another store; before one of them, something else happens."""

    def __init__(self, store: Store, *, at: int, meanwhile: Callable[[], object]) -> None:
        self._store = store
        self.left = at
        self._meanwhile = meanwhile

    def __str__(self) -> str:
        return str(self._store)

    @property
    def was_reached(self) -> bool:
        return self.left < 0

    def _tick(self) -> Store:
        self.left -= 1
        if self.left == -1:
            self._meanwhile()
        return self._store

    def read(self, key: str) -> Stored | None:
        return self._tick().read(key)

    def create(self, key: str, data: bytes) -> bool:
        return self._tick().create(key, data)

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        return self._tick().replace(key, data, etag=etag)

    def find(self, key: str) -> Found | None:
        return self._tick().find(key)

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        self._tick().put(key, pieces, size_bytes=size_bytes)

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        return self._tick().stream(key, start=start, stop=stop, etag=etag)

    def delete(self, key: str) -> None:
        self._tick().delete(key)

    def children(self, folder: str) -> list[str]:
        return self._tick().children(folder)


Party = Callable[[Store, Path], object]
KEYS = Keys(signer=ADA, trusted=(ADA.public,))
PARTIES: dict[str, Party] = {
    "publishes what goes again": lambda store, folder: publish(store, folder, 3, "staging", now=LATER, keys=KEYS),
    "publishes with files that nobody needs": lambda store, folder: publish(
        store, folder, 9, "staging", now=LATER, keys=KEYS
    ),
    "promotes what goes": lambda store, _: catalogue(store, keys=KEYS).promote("adds", 3, "staging", who="b", why=""),
}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], MemoryStore]:
    """Versions 1 to 4, all but the last unneeded; and the files of a fifth that was never finished."""
    folder, held, other = tmp_path_factory.mktemp("folder"), MemoryStore(), MemoryStore()
    for weight in (1, 2, 3, 4):
        publish(held, folder, weight, keys=KEYS)
    publish(other, folder, 9)
    held.objects.update({key: data for key, data in other.objects.items() if "/blobs/" in key})

    def anew() -> MemoryStore:
        store = MemoryStore()
        store.objects = dict(held.objects)
        return store

    return anew


def _again(party: Party, store: MemoryStore, folder: Path) -> None:
    """Run a party that was sent away once more; what it wanted may be gone for good."""
    try:
        party(store, folder)
    except ModelMissing:
        assert not any(key == "adds/versions/3.json" for key in store.objects)


@pytest.mark.parametrize("party", PARTIES)
def test_sweep_harms_nobody_who_comes_at_any_moment_of_it(
    party: str, before: Callable[[], MemoryStore], tmp_path: Path
) -> None:
    for moment in itertools.count():
        store, came = before(), list[str]()

        def come(store: MemoryStore = store, came: list[str] = came) -> None:
            try:
                PARTIES[party](store, tmp_path)
                came.append("done")
            except ModelInUse:
                came.append("sent away")

        sweep(paused := Paused(store, at=moment, meanwhile=come))

        require_whole(store)
        if came != ["done"]:
            _again(PARTIES[party], store, tmp_path)
            require_whole(store)
        assert not any(key.startswith(("adds/sweeps/", "adds/pending/")) for key in store.objects)
        if not paused.was_reached:
            break
    assert moment > 40


@pytest.mark.parametrize("party", PARTIES)
def test_sweep_harms_nobody_at_any_moment_of_whose_it_comes(
    party: str, before: Callable[[], MemoryStore], tmp_path: Path
) -> None:
    for moment in itertools.count():
        store = before()
        paused = Paused(store, at=moment, meanwhile=partial(sweep, store))

        try:
            PARTIES[party](paused, tmp_path)
        except ModelMissing:
            assert "adds/versions/3.json" not in store.objects

        require_whole(store)
        sweep(store)
        require_whole(store)
        if not paused.was_reached:
            break
    assert moment > 7


def test_the_race_is_lost_without_notices(
    before: Callable[[], MemoryStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail: of publishers that say nothing, some lose a file to the sweep."""
    monkeypatch.setattr(notices, "announced", lambda *_, **__: contextlib.nullcontext())
    harmed = 0
    for moment in range(60):
        store = before()
        sweep(Paused(store, at=moment, meanwhile=partial(PARTIES["publishes what goes again"], store, tmp_path)))
        try:
            require_whole(store)
        except ModelError:
            harmed += 1
    assert harmed > 0


class Killed(BaseException):
    """The sweeper is gone."""


class Mortal(Paused):
    """Dies at a write, and does not tidy up."""

    def __init__(self, store: Store, *, at: int) -> None:
        super().__init__(store, at=-1, meanwhile=lambda: None)
        self._writes = at

    def create(self, key: str, data: bytes) -> bool:
        self._die()
        return super().create(key, data)

    def delete(self, key: str) -> None:
        self._die()
        super().delete(key)

    def _die(self) -> None:
        self._writes -= 1
        if self._writes < 0:
            raise Killed


def test_sweep_is_finished_by_the_next_when_it_is_killed_at_any_write(before: Callable[[], MemoryStore]) -> None:
    for moment in itertools.count():
        store, died = before(), False
        try:
            sweep(Mortal(store, at=moment))
        except Killed:
            died = True
        require_whole(store)
        for key in [key for key in store.objects if key.startswith("adds/sweeps/")]:  # its process lives: it is ours
            change = {**json.loads(store.objects[key]), "when": NOON}
            store.objects[key] = documents.encoded(notices.Notice(**change))

        sweep(store)

        assert blobs(store) == files(store, 4)
        assert [version.version for version in catalogue(store).versions("adds")] == [4]
        assert not any(key.startswith("adds/sweeps/") for key in store.objects)
        if not died:
            break
    assert moment > 8
