"""The catalogue, bound to a folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from shipway.stores import open_catalogue
from tests.catalogue_contract import ObjectsContract, Open


class TestDirectory(ObjectsContract):
    @pytest.fixture
    def opens(self, tmp_path: Path) -> Open:
        return partial(open_catalogue, "store", root=tmp_path)

    @pytest.fixture
    def name(self) -> str:
        return "adds"
