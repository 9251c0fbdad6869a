"""A registry of MLflow: a real server, plain mlflow beside it, and a proxy that does harm in front."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from shipway.console import Console
from shipway.proc import Proc
from shipway.stores import Access, open_catalogue
from shipway.stores.mlflow import Mlflow, open_mlflow
from shipway.stores.objects import Found, Store, Stored
from tests.catalogue_contract import CatalogueContract, Open
from tests.store_contract import StoreContract
from tests.stores.tracking import Tracking


def registry(address: str, folder: Path) -> Mlflow:
    return open_mlflow(address, Access(), cache=folder / "cache", run=Proc(), tell=Console())


class Renamed:
    """A store whose models have another name, so that tests can share a server."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = f"{prefix}-"

    def __str__(self) -> str:
        return str(self._store)

    def read(self, key: str) -> Stored | None:
        return self._store.read(self._prefix + key)

    def create(self, key: str, data: bytes) -> bool:
        return self._store.create(self._prefix + key, data)

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        return self._store.replace(self._prefix + key, data, etag=etag)

    def find(self, key: str) -> Found | None:
        return self._store.find(self._prefix + key)

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        self._store.put(self._prefix + key, pieces, size_bytes=size_bytes)

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        return self._store.stream(self._prefix + key, start=start, stop=stop, etag=etag)

    def delete(self, key: str) -> None:
        self._store.delete(self._prefix + key)

    def children(self, folder: str) -> list[str]:
        return self._store.children(self._prefix + folder)


class TestStore(StoreContract):
    """With less where MLflow promises less: several winners of one key, and versions that are versions."""

    def test_create_succeeds_once_when_many_try(self, store: Store) -> None:
        with ThreadPoolExecutor(4) as threads:
            won = list(threads.map(lambda each: store.create("a/1.json", b"%d" % each), range(16)))

        stored = store.read("a/1.json")
        assert stored is not None
        assert won[int(stored.data)]

    def test_replace_loses_no_change_when_many_try(self, store: Store) -> None:
        store.create("a/alone", b"0")

        for each in range(1, 4):
            seen = store.read("a/alone")
            assert seen is not None
            assert store.replace("a/alone", b"%d" % each, etag=seen.etag)

        final = store.read("a/alone")
        assert final is not None
        assert final.data == b"3"

    def test_children_are_the_names_directly_below(self, store: Store) -> None:
        for key in ("m/signatures/1/ab.json", "m/signatures/10/cd.json", "m/log/1.json"):
            store.create(key, b"{}")

        assert sorted(store.children("m")) == ["log", "signatures"]
        assert sorted(store.children("m/signatures")) == ["1", "10"]
        assert store.children("m/versions") == store.children("m/aliases") == []

    @pytest.fixture
    def store(self, tracking: Tracking, prefix: str, tmp_path: Path) -> Store:
        return Renamed(registry(tracking.address, tmp_path), prefix)


class TestCatalogue(CatalogueContract):
    @pytest.fixture
    def opens(self, tracking: Tracking, tmp_path: Path) -> Open:
        return partial(open_catalogue, tracking.address, root=tmp_path)

    @pytest.fixture
    def name(self, prefix: str) -> str:
        return prefix
