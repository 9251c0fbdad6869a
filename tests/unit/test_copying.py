"""Copying versions from one store to another: whole, signed, resumable, and never over something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shipway.console import Console
from shipway.errors import ModelCorrupt, ModelError, ModelMissing, ModelRefused, ModelUntrusted, StoreRefused
from shipway.stores.catalogue import Catalogue, Copied
from shipway.stores.objects import Store
from shipway.stores.signing import Keys
from tests import memory_store, model_folder
from tests.memory_store import Faulty, MemoryStore, Wrapped
from tests.unit.test_catalogue import Child
from tests.unit.test_signing import ADA, BOB, Killed, Mortal

TRUSTING = Keys(trusted=(ADA.public,))


def over(store: Store, keys: Keys | None = None, **options: Any) -> Catalogue:
    return Catalogue(store, run=Child(), keys=keys, **options)


@pytest.fixture
def source(tmp_path: Path) -> MemoryStore:
    """Versions 1 to 3, signed by Ada; 2 is in production."""
    store = MemoryStore()
    catalogue = over(store, Keys(signer=ADA))
    for weight in (1, 2, 3):
        folder = model_folder.make(tmp_path / "folder", weight=weight)
        aliases = ["production"] if weight == 2 else []
        catalogue.publish(folder, name="adds", publisher="ada", aliases=aliases, tell=Console())
    return store


def copy(
    source: Store, target: Store, *, keys: Keys | None = None, versions: Sequence[int] = (), aliases: Sequence[str] = ()
) -> Copied:
    return over(target, keys).copy_from(
        over(source), "adds", versions=versions, aliases=aliases, who="eve", tell=Console()
    )


def essence(store: MemoryStore) -> dict[str, bytes]:
    return {key: data for key, data in store.objects.items() if key.split("/")[1] not in {"aliases", "log", "pending"}}


def test_copy_brings_every_version_with_its_number_and_its_signature(source: MemoryStore) -> None:
    target = MemoryStore()

    copied = copy(source, target)

    assert (copied.versions, copied.created, copied.moves) == ((1, 2, 3), (1, 2, 3), ())
    assert target.objects == essence(source)
    trusting = over(target, TRUSTING)
    assert [trusting.resolve("adds", number).version for number in (1, 2, 3)] == [1, 2, 3]


def test_copy_brings_what_is_named_alone_and_moves_the_alias(source: MemoryStore) -> None:
    target = MemoryStore()

    copied = copy(source, target, aliases=["production"])

    assert copied.versions == (2,)
    assert over(target).aliases("adds") == {"production": 2}
    assert [(move.who, move.why) for move in over(target).history("adds")] == [("eve", "copied from memory")]
    assert copy(source, target, aliases=["production"]).moves == ()


def test_copy_sends_nothing_twice(source: MemoryStore) -> None:
    target = MemoryStore()
    first = copy(source, target)
    watched = Wrapped(target)

    again = copy(source, watched)

    assert first.sent_bytes == sum(len(data) for key, data in target.objects.items() if "/blobs/" in key)
    assert (again.created, again.sent_bytes, watched.calls["put"]) == ((), 0, 0)


def test_copy_mends_what_is_damaged_in_the_target(source: MemoryStore) -> None:
    target = MemoryStore()
    copy(source, target)
    whole = dict(target.objects)
    for key in [key for key in target.objects if "/blobs/" in key or "/signatures/" in key]:
        target.objects[key] = bytes(len(target.objects[key]))

    copy(source, target)

    assert target.objects == whole


@pytest.mark.parametrize("fault", ["reset", "shortened", "flipped", "lengthened"])
def test_copy_shows_no_version_of_which_other_bytes_came(source: MemoryStore, fault: str) -> None:
    target = MemoryStore()
    faulty = Faulty(source, getattr(memory_store, fault), times=-1)

    with pytest.raises(ModelError):
        copy(faulty, target)

    assert over(target).versions("adds") == ()
    faulty.times = 0
    copy(faulty, target)
    assert target.objects == essence(source)


def test_copy_is_finished_by_the_next_run_when_it_is_killed_at_any_write(source: MemoryStore) -> None:
    died, target = 0, MemoryStore()
    while True:
        target.objects.clear()
        try:
            copy(source, Mortal(target, at=died, after=False), aliases=["production"])
            break
        except Killed:
            died += 1
        for version in over(target).versions("adds"):
            over(target, TRUSTING).resolve("adds", version.version)

        copy(source, target, aliases=["production"])

        assert over(target, TRUSTING).resolve("adds", "production").version == 2
    assert died > 7


def test_copy_writes_over_nothing(source: MemoryStore, tmp_path: Path) -> None:
    target = MemoryStore()
    over(target).publish(model_folder.make(tmp_path, weight=9), name="adds", publisher="bob", tell=Console())
    before = dict(target.objects)

    with pytest.raises(ModelRefused, match="memory has another version 1 of adds than memory"):
        copy(source, target)

    assert target.objects == before


def test_copy_writes_over_nothing_when_somebody_takes_the_number_meanwhile(source: MemoryStore) -> None:
    target = MemoryStore()

    class Race(Wrapped):
        def create(self, key: str, data: bytes) -> bool:
            if key == "adds/versions/1.json":
                target.objects[key] = b"somebody's"
            return super().create(key, data)

    with pytest.raises(ModelRefused, match="has another version 1"):
        copy(source, Race(target))

    assert target.objects["adds/versions/1.json"] == b"somebody's"


def test_copy_takes_nothing_that_is_not_trusted_at_the_source(source: MemoryStore) -> None:
    for key in [key for key in source.objects if key.startswith("adds/signatures/2/")]:
        del source.objects[key]
    target = MemoryStore()

    with pytest.raises(ModelUntrusted, match="version 2 of adds in memory is refused: it is not signed"):
        over(target).copy_from(over(source, TRUSTING), "adds", who="eve", tell=Console())

    assert [version.version for version in over(target).versions("adds")] == [1]


def test_copy_shows_nothing_that_is_not_trusted_at_the_target(source: MemoryStore) -> None:
    target = MemoryStore()

    with pytest.raises(ModelUntrusted, match="trusted_keys has none of them"):
        copy(source, target, keys=Keys(trusted=(BOB.public,)))

    assert over(target).versions("adds") == ()


def test_copy_leaves_false_signatures_behind(source: MemoryStore) -> None:
    false = [key for key in source.objects if "/signatures/1/" in key]
    source.objects[false[0].replace(ADA.public.id, BOB.public.id)] = source.objects[false[0]]
    target = MemoryStore()

    copy(source, target, versions=[1])

    assert [key for key in target.objects if "/signatures/" in key] == false


@pytest.mark.parametrize(("versions", "aliases"), [([9], []), ([], ["nowhere"])])
def test_copy_changes_nothing_when_there_is_no_such_version(
    source: MemoryStore, versions: list[int], aliases: list[str]
) -> None:
    target = MemoryStore()

    with pytest.raises(ModelMissing):
        copy(source, target, versions=versions, aliases=aliases)

    assert target.objects == {}


def test_copy_says_how_a_registry_is_copied(source: MemoryStore) -> None:
    registry = over(MemoryStore(), key_of=lambda model, file: f"{model.name}/{file.path}")

    with pytest.raises(StoreRefused, match="is a registry"):
        registry.copy_from(over(source), "adds", who="eve", tell=Console())


def test_copy_names_the_file_that_is_damaged_at_the_source(source: MemoryStore) -> None:
    (key,) = (key for key in source.objects if "/blobs/" in key and source.objects[key].startswith(b"# Adds"))
    source.objects[key] = b"# Sums\n"

    with pytest.raises(ModelCorrupt, match=r"card\.md in memory: the bytes that came are not those of"):
        copy(source, MemoryStore())
