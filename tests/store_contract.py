"""What every store must do: the fake in memory, the directory, containers and buckets.

Bound to the first two in `tests/contract`, to the others in `tests/stores`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shipway.artifacts import Digest, Model, ModelFile
from shipway.console import Console
from shipway.errors import ModelCorrupt, ModelError, ModelMissing
from shipway.proc import Proc
from shipway.stores import manifest
from shipway.stores.cache import Cache
from shipway.stores.catalogue import Catalogue
from shipway.stores.objects import SMALL_BYTES, Replaced, Store
from tests import memory_store
from tests.memory_store import Fault, Faulty

CONTENT = bytes(range(256)) * 40
FAULTS: dict[str, Fault] = {
    "reset": memory_store.reset,
    "shortened": memory_store.shortened,
    "flipped": memory_store.flipped,
    "lengthened": memory_store.lengthened,
}


def whole(store: Store, key: str) -> bytes:
    """Return all of an object."""
    return b"".join(store.stream(key, start=0, stop=1 << 40))


def size_of(store: Store, key: str) -> int | None:
    found = store.find(key)
    return found.size_bytes if found else None


class StoreContract:
    """Bind it by a child whose fixture `store` is empty, and whose tests may run in any order."""

    def test_read_gives_nothing_when_there_is_no_object(self, store: Store) -> None:
        assert store.read("a/b.json") is None
        assert store.find("a/b.json") is None

    def test_read_takes_what_a_small_object_may_have_and_refuses_more(self, store: Store) -> None:
        store.put("a/most", [bytes(SMALL_BYTES)], size_bytes=SMALL_BYTES)
        store.put("a/more", [bytes(SMALL_BYTES + 1)], size_bytes=SMALL_BYTES + 1)

        most = store.read("a/most")
        with pytest.raises(ModelCorrupt, match="more has more than 16,777,216 bytes"):
            store.read("a/more")

        assert most is not None
        assert most.data == bytes(SMALL_BYTES)

    def test_create_refuses_when_the_object_exists(self, store: Store) -> None:
        assert store.create("a/b.json", b"first")

        assert not store.create("a/b.json", b"second")

        stored = store.read("a/b.json")
        assert stored is not None
        assert stored.data == b"first"

    def test_create_succeeds_once_when_many_try(self, store: Store) -> None:
        with ThreadPoolExecutor(16) as threads:
            won = list(threads.map(lambda each: store.create("a/1.json", b"%d" % each), range(64)))

        assert won.count(True) == 1
        stored = store.read("a/1.json")
        assert stored is not None
        assert stored.data == b"%d" % won.index(True)

    def test_replace_refuses_when_the_object_was_changed(self, store: Store) -> None:
        store.create("a/b.json", b"first")
        old = store.read("a/b.json")
        assert old is not None
        assert store.replace("a/b.json", b"second", etag=old.etag)

        assert not store.replace("a/b.json", b"third", etag=old.etag)

        new = store.read("a/b.json")
        assert new is not None
        assert new.data == b"second"

    def test_replace_refuses_when_there_is_no_object(self, store: Store) -> None:
        assert not store.replace("a/b.json", b"new", etag="0")
        assert store.read("a/b.json") is None

    def test_replace_loses_no_change_when_many_try(self, store: Store) -> None:
        store.create("count", b"0")

        def add_one(_each: int) -> None:
            while True:
                seen = store.read("count")
                assert seen is not None
                if store.replace("count", b"%d" % (int(seen.data) + 1), etag=seen.etag):
                    return

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(add_one, range(40)))

        final = store.read("count")
        assert final is not None
        assert final.data == b"40"

    def test_put_replaces_what_is_there(self, store: Store) -> None:
        store.put("a/blob", [b"damaged"], size_bytes=7)

        store.put("a/blob", [CONTENT[:5000], CONTENT[5000:]], size_bytes=len(CONTENT))

        assert whole(store, "a/blob") == CONTENT
        assert size_of(store, "a/blob") == len(CONTENT)

    @pytest.mark.parametrize("before", [{}, {"blob": b"old"}])
    def test_put_changes_nothing_when_the_source_fails(self, store: Store, before: dict[str, bytes]) -> None:
        for name, data in before.items():
            store.put(f"a/{name}", [data], size_bytes=len(data))

        def broken() -> Iterator[bytes]:
            yield b"half"
            message = "no more"
            raise ModelError(message)

        with pytest.raises(ModelError, match="no more"):
            store.put("a/blob", broken(), size_bytes=8)

        assert {name: whole(store, f"a/{name}") for name in store.children("a")} == before

    def test_stream_goes_on_when_an_offset_is_given(self, store: Store) -> None:
        store.put("a/blob", [CONTENT], size_bytes=len(CONTENT))

        assert b"".join(store.stream("a/blob", start=4321, stop=len(CONTENT))) == CONTENT[4321:]
        assert b"".join(store.stream("a/blob", start=5, stop=321)) == CONTENT[5:321]

    def test_stream_says_so_when_there_is_no_object(self, store: Store) -> None:
        with pytest.raises(ModelMissing, match="a/blob"):
            list(store.stream("a/blob", start=0, stop=1))

    def test_stream_says_so_when_the_object_was_replaced(self, store: Store) -> None:
        store.put("a/blob", [b"first"], size_bytes=5)
        first = store.find("a/blob")
        assert first is not None
        assert b"".join(store.stream("a/blob", start=0, stop=5, etag=first.etag)) == b"first"
        store.put("a/blob", [b"again"], size_bytes=5)

        with pytest.raises(Replaced, match="a/blob"):
            list(store.stream("a/blob", start=0, stop=5, etag=first.etag))

    def test_put_takes_more_than_goes_in_one_piece(self, store: Store) -> None:
        content = CONTENT * 1000

        store.put(
            "a/blob", (content[at : at + 77_777] for at in range(0, len(content), 77_777)), size_bytes=len(content)
        )

        assert size_of(store, "a/blob") == len(content)
        assert whole(store, "a/blob") == content

    def test_children_are_the_names_directly_below(self, store: Store) -> None:
        for key in ("m/versions/1.json", "m/versions/10.json", "m/blobs/sha256/ab", "n/log/1.json"):
            store.create(key, b"{}")

        assert sorted(store.children("")) == ["m", "n"]
        assert sorted(store.children("m")) == ["blobs", "versions"]
        assert sorted(store.children("m/versions")) == ["1.json", "10.json"]
        assert store.children("m/aliases") == []

    def test_delete_removes_one_object_and_is_content_when_there_is_none(self, store: Store) -> None:
        store.create("a/1.json", b"{}")
        store.create("a/2.json", b"{}")

        for _ in range(2):
            store.delete("a/1.json")

        assert store.read("a/1.json") is None
        assert store.children("a") == ["2.json"]
        assert store.create("a/1.json", b"again")

    def test_delete_wins_over_a_replace_of_what_was_read_before(self, store: Store) -> None:
        store.create("a/b.json", b"first")
        seen = store.read("a/b.json")
        assert seen is not None

        store.delete("a/b.json")

        assert not store.replace("a/b.json", b"second", etag=seen.etag)
        assert store.read("a/b.json") is None

    @pytest.fixture
    def model(self, store: Store) -> Model:
        file = ModelFile(path="model.onnx", digest=Digest.of(CONTENT), size_bytes=len(CONTENT))
        store.put(f"adds/blobs/sha256/{file.digest.hex}", [CONTENT], size_bytes=len(CONTENT))
        digest = manifest.set_digest([file])
        return manifest.ModelVersion(
            name="adds",
            version=1,
            digest=digest,
            files=(manifest.File(path=file.path, digest=file.digest, size_bytes=file.size_bytes),),
            inputs=(),
            outputs=(),
            preprocessing=None,
            golden=manifest.Golden(tensors=("one",), exchanges=()),
            metrics={},
            card=None,
            publisher="ada",
            commit=None,
            created=datetime(2026, 11, 23, tzinfo=UTC),
            layer=manifest.described(manifest.layer([file], digest, lambda _file: [CONTENT])),
        ).model

    @pytest.mark.parametrize("fault", FAULTS)
    def test_pull_accepts_nothing_when_the_store_sends_something_else(
        self, store: Store, model: Model, fault: str, tmp_path: Path
    ) -> None:
        catalogue = Catalogue(Faulty(store, FAULTS[fault], times=-1), run=Proc())

        with pytest.raises(ModelError):
            catalogue.pull(model, cache=tmp_path / "cache", tell=Console())

        assert Cache(tmp_path / "cache").find(model.files[0]) is None
        assert not (tmp_path / "cache/models").exists()

    @pytest.mark.parametrize("fault", FAULTS)
    def test_pull_is_whole_when_it_is_run_again_after_a_fault(
        self, store: Store, model: Model, fault: str, tmp_path: Path
    ) -> None:
        faulty = Faulty(store, FAULTS[fault], times=-1)
        catalogue = Catalogue(faulty, run=Proc())
        with pytest.raises(ModelError):
            catalogue.pull(model, cache=tmp_path / "cache", tell=Console())
        faulty.times = 0

        folder = catalogue.pull(model, cache=tmp_path / "cache", tell=Console())

        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.onnx": CONTENT}

    def test_pull_fetches_the_rest_alone_when_it_was_cut(self, store: Store, model: Model, tmp_path: Path) -> None:
        faulty = Faulty(store, memory_store.reset, times=1)
        catalogue = Catalogue(faulty, run=Proc())
        with pytest.raises(ModelError):
            catalogue.pull(model, cache=tmp_path / "cache", tell=Console())

        catalogue.pull(model, cache=tmp_path / "cache", tell=Console())

        assert faulty.starts == [0, len(CONTENT) // 2]

    @pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"reset"}))
    def test_pull_tries_again_when_one_answer_is_wrong(
        self, store: Store, model: Model, fault: str, tmp_path: Path
    ) -> None:
        catalogue = Catalogue(Faulty(store, FAULTS[fault], times=1), run=Proc())

        folder = catalogue.pull(model, cache=tmp_path / "cache", tell=Console())

        assert (folder / "model.onnx").read_bytes() == CONTENT

    @pytest.mark.parametrize("fault", FAULTS)
    def test_layer_bytes_raise_when_the_store_sends_something_else(
        self, store: Store, model: Model, fault: str, tmp_path: Path
    ) -> None:
        catalogue = Catalogue(Faulty(store, FAULTS[fault], times=-1), run=Proc())

        with pytest.raises(ModelError):
            list(catalogue.layer_bytes(model, cache=tmp_path / "cache"))

    def test_layer_bytes_are_those_that_the_manifest_names(self, store: Store, model: Model, tmp_path: Path) -> None:
        catalogue = Catalogue(store, run=Proc())

        streamed = b"".join(catalogue.layer_bytes(model, cache=tmp_path / "cache"))

        assert (Digest.of(streamed), len(streamed)) == (model.layer.digest, model.layer.size_bytes)

    def test_pull_says_which_file_when_it_is_damaged_for_good(self, store: Store, model: Model, tmp_path: Path) -> None:
        catalogue = Catalogue(Faulty(store, memory_store.flipped, times=-1), run=Proc())

        with pytest.raises(ModelCorrupt, match=r"model\.onnx: the bytes that came are not those of sha256:"):
            catalogue.pull(model, cache=tmp_path / "cache", tell=Console())
