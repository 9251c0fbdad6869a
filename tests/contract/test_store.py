"""Stores, bound to what needs no other program: the fake in memory, the directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipway.stores.directory import Directory
from shipway.stores.objects import Store
from tests.memory_store import MemoryStore
from tests.store_contract import StoreContract


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


class TestDirectory(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Directory(tmp_path / "store")
