"""The catalogue, over a store in memory and a child process that is a script."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Digest
from shipway.console import Console
from shipway.errors import (
    AliasMoved,
    GoldenFailed,
    ModelCorrupt,
    ModelError,
    ModelMissing,
    ModelRefused,
    StoreRefused,
)
from shipway.proc import Completed
from shipway.stores.catalogue import Catalogue
from shipway.stores.objects import SMALL_BYTES
from tests import model_folder
from tests.memory_store import MemoryStore, Wrapped

SIGNATURE = {
    "inputs": [{"name": "x", "type": "float32", "shape": [None, 2]}],
    "outputs": [{"name": "y", "type": "float32", "shape": [None, 2]}],
}
LAYER = f"sha256:{'0' * 64}"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Child:
    """Answers in place of the process that opens the model."""

    def __init__(self, told: Mapping[str, Any] | None = None, meanwhile: Callable[[], object] | None = None) -> None:
        self.told = told or {"signature": SIGNATURE}
        self.meanwhile = meanwhile
        self.environments: list[Mapping[str, str] | None] = []

    def run(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **_options: object) -> Completed:
        assert "shipway.stores.golden" in argv
        self.environments.append(env)
        if self.meanwhile:
            self.meanwhile()
        return Completed(argv=tuple(map(str, argv)), code=0, stdout=json.dumps(self.told).encode(), tail="")


class Clock:
    """A minute goes by between any two looks."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def catalogue(store: MemoryStore) -> Catalogue:
    return Catalogue(store, run=Child(), now=Clock())


def publish(catalogue: Catalogue, folder: Path, *, weight: float = 1.0, **options: Any) -> tuple[int, bool]:
    done = catalogue.publish(
        model_folder.make(folder, weight=weight), name="adds", publisher="ada", tell=Console(), **options
    )
    return done.version.version, done.created


def change(store: MemoryStore, key: str, **fields: Any) -> None:
    store.objects[key] = json.dumps({**json.loads(store.objects[key]), **fields}).encode()


# -- publishing --------------------------------------------------------------------------


def test_publish_takes_the_next_number_and_moves_latest(catalogue: Catalogue, tmp_path: Path) -> None:
    numbers = [publish(catalogue, tmp_path, weight=weight) for weight in (1, 2, 3)]

    assert numbers == [(1, True), (2, True), (3, True)]
    assert catalogue.aliases("adds") == {"latest": 3}


def test_publish_answers_the_old_number_when_the_content_is_known(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path, weight=1)
    publish(catalogue, tmp_path, weight=2)

    again = publish(catalogue, tmp_path, weight=1)

    assert again == (1, False)
    assert catalogue.aliases("adds") == {"latest": 2}


def test_publish_moves_the_aliases_that_are_asked_for(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path, weight=1, aliases=["staging"])

    assert catalogue.aliases("adds") == {"latest": 1, "staging": 1}


def test_publish_finishes_what_a_killed_one_began(catalogue: Catalogue, store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue, tmp_path)
    whole = dict(store.objects)
    order = sorted(whole, key=lambda key: ["blobs", "versions", "aliases", "log"].index(key.split("/")[1]))
    for done in range(len(order)):
        store.objects = {key: whole[key] for key in order[:done]}

        number, _ = publish(catalogue, tmp_path)

        assert number == 1
        assert catalogue.aliases("adds") == {"latest": 1}
        assert len(catalogue.versions("adds")) == len(catalogue.history("adds")) == 1


def test_publish_mends_the_store_when_a_file_in_it_is_damaged(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path)
    blobs = {key: data for key, data in store.objects.items() if "/blobs/" in key}
    store.objects.update({key: bytes(len(data)) for key, data in blobs.items()})

    publish(catalogue, tmp_path)

    assert {key: store.objects[key] for key in blobs} == blobs


def test_publish_refuses_when_a_file_changes_meanwhile(store: MemoryStore, tmp_path: Path) -> None:
    catalogue = Catalogue(store, run=Child(meanwhile=lambda: (tmp_path / "card.md").write_text("# Other\n")))

    with pytest.raises(ModelRefused, match=r"card\.md changed while it was published"):
        publish(catalogue, tmp_path)

    assert catalogue.versions("adds") == ()


def test_publish_makes_no_version_when_a_golden_case_fails(store: MemoryStore, tmp_path: Path) -> None:
    catalogue = Catalogue(store, run=Child({"failed": ["one: y[0, 0] is 2, expected 3"], "signature": SIGNATURE}))

    with pytest.raises(GoldenFailed, match=r"one: y\[0, 0\] is 2, expected 3"):
        publish(catalogue, tmp_path)

    assert store.objects == {}


def test_publish_says_how_when_there_is_no_golden_case(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path)
    (folder / "golden/tensors/one.npz").unlink()

    with pytest.raises(ModelRefused, match=r"numpy\.savez_compressed"):
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())


def test_publish_refuses_when_an_exchange_is_not_of_the_form(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path)
    (folder / "golden/exchanges/two.json").write_text('{"request": {}}')

    with pytest.raises(ModelRefused, match=r"two\.json"):
        catalogue.publish(folder, name="adds", publisher="ada", tell=Console())


def test_publish_hands_no_secrets_to_the_child(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "hunter2")
    child = Child()

    publish(Catalogue(store, run=child), tmp_path)

    assert [sorted(environment or {}) for environment in child.environments] == [
        ["OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY", "PYTHONPATH"]
    ]


def test_publish_refuses_when_a_metric_is_no_number(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the metric top1 is no finite number"):
        publish(catalogue, tmp_path, metrics={"top1": math.nan})


def test_publish_makes_no_version_that_nobody_could_read(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    model_folder.make(tmp_path)
    (tmp_path / "preprocessing.json").write_text(json.dumps({"note": "n" * (SMALL_BYTES - 100)}))

    with pytest.raises(ModelRefused, match=r"the manifest of adds would have 16,77\d,\d+ bytes, more than 16,777,216"):
        catalogue.publish(tmp_path, name="adds", publisher="ada", tell=Console())

    assert [key for key in store.objects if "/versions/" in key] == []


def test_publish_goes_on_when_an_older_manifest_is_damaged(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path, weight=1)
    store.objects["adds/versions/1.json"] = b"{"

    assert publish(catalogue, tmp_path, weight=1) == (2, True)


@pytest.mark.parametrize("name", ["", "..", "a/b", "Adds", "a b", "-a", "a" * 101, "a\0"])
def test_publish_refuses_when_the_name_is_no_name(catalogue: Catalogue, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is no model's name"):
        catalogue.publish(tmp_path, name=name, publisher="ada", tell=Console())


# -- reading -----------------------------------------------------------------------------


def test_newest_is_the_highest_number(catalogue: Catalogue, tmp_path: Path) -> None:
    for weight in range(1, 11):
        publish(catalogue, tmp_path, weight=weight)

    assert [version.version for version in catalogue.versions("adds", most=2)] == [10, 9]
    assert catalogue.resolve("adds", "latest").version == 10


def test_resolve_lists_nothing_when_there_are_ten_thousand_versions(store: MemoryStore, tmp_path: Path) -> None:
    publish(Catalogue(store, run=Child()), tmp_path)
    text = store.objects["adds/versions/1.json"]
    for number in range(2, 10_001):
        store.objects[f"adds/versions/{number}.json"] = text.replace(b'"version": 1', b'"version": %d' % number)
    counted = Wrapped(store)
    catalogue = Catalogue(counted, run=Child())
    began = time.monotonic()

    model = catalogue.resolve("adds", "latest")

    assert model.version == 1
    assert dict(counted.calls) == {"read": 2, "find": len(model.files)}
    assert publish(catalogue, tmp_path, weight=2) == (10_001, True)  # though `latest` was left far behind
    assert time.monotonic() - began < 2


def test_publish_lists_nothing_when_latest_is_the_newest(store: MemoryStore, tmp_path: Path) -> None:
    counted = Wrapped(store)
    catalogue = Catalogue(counted, run=Child())
    publish(catalogue, tmp_path)
    counted.calls.clear()

    assert publish(catalogue, tmp_path, weight=2) == (2, True)

    assert counted.calls["children"] == 1  # of sweeps, which are few; not of versions


def test_publish_takes_the_next_number_when_latest_was_moved_back(catalogue: Catalogue, tmp_path: Path) -> None:
    for weight in (1, 2, 3):
        publish(catalogue, tmp_path, weight=weight)
    catalogue.promote("adds", 1, "latest", who="ada", why="3 is bad")

    assert publish(catalogue, tmp_path, weight=4) == (4, True)
    assert catalogue.aliases("adds") == {"latest": 4}


def test_show_sees_nothing_when_there_are_files_without_a_manifest(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path)
    del store.objects["adds/versions/1.json"]

    assert catalogue.versions("adds") == ()
    with pytest.raises(ModelMissing, match="memory has no version 1 of adds"):
        catalogue.resolve("adds", "latest")


def test_resolve_names_the_file_when_the_store_lacks_it(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path)
    file = next(file for file in catalogue.show("adds", 1).model.files if file.path == "model.onnx")
    del store.objects[f"adds/blobs/sha256/{file.digest.hex}"]

    with pytest.raises(ModelCorrupt, match=r"version 1 of adds in memory names model\.onnx .* is missing"):
        catalogue.resolve("adds", 1)


def test_resolve_keeps_the_version_when_the_alias_moves_afterwards(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path / "folder", weight=1)
    pinned = catalogue.resolve("adds", "latest")
    publish(catalogue, tmp_path / "folder", weight=2)

    folder = catalogue.pull(pinned, cache=tmp_path / "cache", tell=Console())

    assert (folder / "model.onnx").read_bytes() == model_folder.onnx(1)


@pytest.mark.parametrize(
    ("which", "told"),
    [
        (2, "memory has no version 2 of adds; it has 1 to 1"),
        ("production", "memory has no alias 'production' of adds; its aliases: latest"),
    ],
)
def test_show_says_what_there_is_when_it_is_missing(
    catalogue: Catalogue, tmp_path: Path, which: int | str, told: str
) -> None:
    publish(catalogue, tmp_path)

    with pytest.raises(ModelMissing) as raised:
        catalogue.show("adds", which)

    assert raised.value.message == told


def test_show_says_what_there_is_when_the_model_is_missing(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path)

    with pytest.raises(ModelMissing, match="memory has no version 1 of subtracts; it has adds"):
        catalogue.show("subtracts", 1)


HOSTILE_PATHS = [
    "../model.onnx",
    "/etc/passwd",
    "a/../../b",
    "a\\b",
    "a\0b",
    ".hidden",
    "a//b",
    "a/./b",
    "-rf",
    "x" * 300,
    "naïve",
    "",
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_show_refuses_when_a_manifest_names_a_hostile_path(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path, path: str
) -> None:
    publish(catalogue, tmp_path)
    files = json.loads(store.objects["adds/versions/1.json"])["files"]
    change(store, "adds/versions/1.json", files=[{**files[0], "path": path}, *files[1:]])

    with pytest.raises(ModelRefused, match=r"memory/adds/versions/1\.json: manifest: files\.0: the path"):
        catalogue.resolve("adds", 1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"version": 2}, "says that it is version 2 of adds"),
        ({"name": "other"}, "says that it is version 1 of other"),
        ({"version": 0}, "version: "),
        ({"digest": "sha256:" + "0" * 64}, "the set digest is not that of the files"),
        ({"digest": "sha256:../../etc/passwd"}, "digest: "),
        ({"files": []}, "files: "),
        ({"files": [{"path": "a", "digest": f"sha256:{'0' * 64}", "size_bytes": 1}] * 2}, "stands twice"),
        (
            {"files": [{"path": each, "digest": f"sha256:{'0' * 64}", "size_bytes": 1} for each in ("a", "a/b")]},
            "is a file and a folder",
        ),
        ({"schema_version": 2}, "schema_version: "),
        ({"created": "2026-11-23T12:00:00"}, "created: expected `datetime` with a timezone"),
    ],
)
def test_show_refuses_when_a_manifest_lies(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    publish(catalogue, tmp_path)
    change(store, "adds/versions/1.json", **fields)

    with pytest.raises(ModelRefused, match=told):
        catalogue.show("adds", 1)


def test_show_says_so_when_a_manifest_is_cut(catalogue: Catalogue, store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue, tmp_path)
    store.objects["adds/versions/1.json"] = store.objects["adds/versions/1.json"][:100]

    with pytest.raises(ModelCorrupt, match=r"memory/adds/versions/1\.json"):
        catalogue.show("adds", 1)


def test_objects_are_what_a_store_of_the_version_alone_would_hold(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path)

    entries = list(catalogue.objects(catalogue.resolve("adds", 1), cache=tmp_path / "cache"))

    assert {entry.path: b"".join(entry.read()) for entry in entries} == {
        key: data for key, data in store.objects.items() if key.split("/")[1] in {"blobs", "versions"}
    }


@pytest.mark.parametrize("fields", [{"metrics": {"accuracy": 1}}, {"layer": {"digest": LAYER, "size_bytes": 1}}])
def test_objects_are_refused_when_the_manifest_is_not_the_pinned_one_any_more(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path, fields: Mapping[str, Any]
) -> None:
    publish(catalogue, tmp_path)
    model = catalogue.resolve("adds", 1)
    change(store, "adds/versions/1.json", **fields)

    with pytest.raises(ModelCorrupt, match=r"adds/versions/1\.json is not the manifest any more that was pinned"):
        list(catalogue.objects(model, cache=tmp_path / "cache"))


def test_pull_holds_the_wanted_files_alone(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path / "folder")
    model = catalogue.resolve("adds", 1)

    folder = catalogue.pull(
        model, cache=tmp_path / "cache", tell=Console(), only=lambda file: file.path.startswith("golden/exchanges/")
    )

    assert [str(path.relative_to(folder)) for path in folder.rglob("*.*")] == ["golden/exchanges/one.json"]


def test_pull_reads_no_store_when_the_cache_has_everything(store: MemoryStore, tmp_path: Path) -> None:
    counted = Wrapped(store)
    catalogue = Catalogue(counted, run=Child())
    publish(catalogue, tmp_path / "folder")
    model = catalogue.resolve("adds", 1)
    first = catalogue.pull(model, cache=tmp_path / "cache", tell=Console())
    counted.calls.clear()

    second = catalogue.pull(model, cache=tmp_path / "cache", tell=Console())

    assert second == first
    assert dict(counted.calls) == {}


def test_pull_mends_the_folder_when_something_in_it_was_changed(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path / "folder")
    model = catalogue.resolve("adds", 1)
    folder = catalogue.pull(model, cache=tmp_path / "cache", tell=Console())
    (folder / "card.md").chmod(0o644)
    (folder / "card.md").write_text("# Changed in place\n")
    (folder / "surplus.txt").write_text("surplus")
    (folder / "model.onnx").unlink()

    again = catalogue.pull(model, cache=tmp_path / "cache", tell=Console())

    assert again == folder
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {file.path for file in model.files}
    assert (folder / "card.md").read_text() == "# Adds\n"


# -- aliases -----------------------------------------------------------------------------


def test_promote_moves_an_alias_and_history_tells_who_and_why(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path, weight=1)
    publish(catalogue, tmp_path, weight=2)

    catalogue.promote("adds", 2, "production", who="ada", why="better")
    catalogue.promote("adds", 1, "production", who="bob", why="worse after all")

    told = [(move.alias, move.previous, move.version, move.who, move.why) for move in catalogue.history("adds")]
    assert told == [
        ("latest", None, 1, "ada", "published"),
        ("latest", 1, 2, "ada", "published"),
        ("production", None, 2, "ada", "better"),
        ("production", 2, 1, "bob", "worse after all"),
    ]


def test_promote_records_nothing_when_the_alias_is_there_already(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path)
    before = catalogue.history("adds")

    moved = catalogue.promote("adds", 1, "latest", who="ada", why="again")

    assert moved is None
    assert catalogue.history("adds") == before


def test_promote_refuses_an_expectation_when_the_store_cannot_compare(store: MemoryStore, tmp_path: Path) -> None:
    catalogue = Catalogue(store, run=Child(), now=Clock(), swaps=False)
    for weight in (1, 2):
        publish(catalogue, tmp_path, weight=weight)

    with pytest.raises(StoreRefused, match="only if it names 2: it does not compare"):
        catalogue.promote("adds", 1, "production", who="ada", why="", expected=2)

    assert catalogue.aliases("adds") == {"latest": 2}


def test_files_are_where_the_store_wants_them(store: MemoryStore, tmp_path: Path) -> None:
    catalogue = Catalogue(
        store, run=Child(), now=Clock(), key_of=lambda model, file: f"{model.name}/files/{model.digest.hex}/{file.path}"
    )
    publish(catalogue, tmp_path / "model")

    model = catalogue.resolve("adds", 1)
    pulled = catalogue.pull(model, cache=tmp_path / "cache", tell=Console())

    kept = {key.partition(f"{model.digest.hex}/")[2] for key in store.objects if key.startswith("adds/files/")}
    assert kept == {file.path for file in model.files}
    assert (pulled / "model.onnx").read_bytes() == (tmp_path / "model/model.onnx").read_bytes()
    layer = b"".join(catalogue.layer_bytes(model, cache=tmp_path / "none"))
    assert Digest.of(layer) == model.layer.digest


def test_promote_tells_what_the_alias_is_when_it_is_not_what_was_expected(catalogue: Catalogue, tmp_path: Path) -> None:
    for weight in (1, 2, 3):
        publish(catalogue, tmp_path, weight=weight)
    catalogue.promote("adds", 2, "production", who="bob", why="first come")

    with pytest.raises(
        AliasMoved, match=r"is not version 1: it names version 2, moved by bob at 2026-11-23 \d\d:\d\d:\d\d UTC"
    ):
        catalogue.promote("adds", 3, "production", who="ada", why="late", expected=1)

    assert catalogue.aliases("adds")["production"] == 2


def test_promote_tells_the_winner_when_somebody_else_moves_it_in_between(store: MemoryStore, tmp_path: Path) -> None:
    class Overtaken(Wrapped):
        def replace(self, key: str, data: bytes, *, etag: str) -> bool:
            seen = store.read(key)
            assert seen is not None
            store.replace(key, seen.data.replace(b'"who": "ada"', b'"who": "bob"'), etag=seen.etag)
            return super().replace(key, data, etag=etag)

    plain = Catalogue(store, run=Child())
    publish(plain, tmp_path, weight=1, aliases=["production"])
    publish(plain, tmp_path, weight=2)

    with pytest.raises(AliasMoved, match="it names version 1, moved by bob"):
        Catalogue(Overtaken(store), run=Child()).promote("adds", 2, "production", who="eve", why="race")


def test_promote_refuses_when_there_is_no_such_version(catalogue: Catalogue, tmp_path: Path) -> None:
    publish(catalogue, tmp_path)

    with pytest.raises(ModelMissing, match="no version 7 of adds"):
        catalogue.promote("adds", 7, "production", who="ada", why="wrong")

    assert catalogue.aliases("adds") == {"latest": 1}


@pytest.mark.parametrize("alias", ["7", "../log", "a b", ""])
def test_promote_refuses_when_the_alias_is_no_name(catalogue: Catalogue, tmp_path: Path, alias: str) -> None:
    publish(catalogue, tmp_path)

    with pytest.raises(ModelError, match="is no alias"):
        catalogue.promote("adds", 1, alias, who="ada", why="")


def test_history_tells_a_move_when_its_promoter_was_killed_before_the_log(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path)
    catalogue.promote("adds", 1, "production", who="ada", why="good")
    before = catalogue.history("adds")
    del store.objects["adds/log/production-1.json"]

    assert catalogue.history("adds") == before


def test_history_keeps_a_move_when_its_promoter_was_killed_and_the_alias_moved_on(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path)
    publish(catalogue, tmp_path, weight=2)
    catalogue.promote("adds", 1, "production", who="ada", why="good")
    del store.objects["adds/log/production-1.json"]

    catalogue.promote("adds", 2, "production", who="bob", why="better")

    moves = [move for move in catalogue.history("adds") if move.alias == "production"]
    assert [(move.turn, move.who, move.previous, move.version) for move in moves] == [
        (1, "ada", None, 1),
        (2, "bob", 1, 2),
    ]


def test_history_says_so_when_a_move_has_no_time_zone(catalogue: Catalogue, store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue, tmp_path)
    change(store, "adds/log/latest-1.json", when="2026-11-23T12:00:00")

    with pytest.raises(ModelCorrupt, match=r"adds/log/latest-1\.json is damaged: when: expected `datetime` with"):
        catalogue.history("adds")


def test_history_is_in_the_order_of_moves_when_clocks_disagree(store: MemoryStore, tmp_path: Path) -> None:
    ahead = Catalogue(store, run=Child(), now=lambda: NOON + timedelta(hours=1))
    behind = Catalogue(store, run=Child(), now=lambda: NOON)
    publish(ahead, tmp_path)
    publish(behind, tmp_path, weight=2)

    assert [move.version for move in ahead.history("adds")] == [1, 2]


def test_history_tells_the_moves_of_older_releases_too(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path)
    move = json.loads(store.objects.pop("adds/log/latest-1.json"))
    del move["turn"]
    store.objects["adds/log/1.json"] = store.objects["adds/aliases/latest.json"] = json.dumps(move).encode()

    publish(catalogue, tmp_path, weight=2)

    assert [(move.turn, move.version) for move in catalogue.history("adds")] == [(None, 1), (1, 2)]


def test_log_has_each_move_once_when_the_next_one_follows(
    catalogue: Catalogue, store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue, tmp_path)
    publish(catalogue, tmp_path, weight=2)  # which writes the first move down once more, or would

    assert sorted(store.children("adds/log")) == ["latest-1.json", "latest-2.json"]
