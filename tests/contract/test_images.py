"""Where images live, bound to what needs no other program: the layout on disk, the registry in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shipway.oci.images import Images
from shipway.oci.layout import Layout
from tests.fake_registry import FakeRegistry, repository
from tests.images_contract import ImagesContract, RegistryContract


class TestLayout(ImagesContract):
    @pytest.fixture
    def images(self, tmp_path: Path) -> Images:
        return Layout(tmp_path / "images")


class TestFakeRegistry(RegistryContract):
    @pytest.fixture
    def images(self) -> Iterator[Images]:
        fake = FakeRegistry()
        with closing(repository(fake)) as images:
            yield images
        assert fake.open_sessions == 0
