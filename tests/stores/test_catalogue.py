"""The catalogue, bound to real services: a container and a bucket."""

from __future__ import annotations

from functools import partial

import pytest

from shipway.stores import open_catalogue
from tests.catalogue_contract import ObjectsContract, Open
from tests.stores.parts import ACCOUNT, CONTAINER, Azurite, S3Server


class TestAzure(ObjectsContract):
    @pytest.fixture
    def opens(self, azurite: Azurite, prefix: str) -> Open:
        return partial(open_catalogue, f"az://{ACCOUNT}/{CONTAINER}/{prefix}", access=azurite.access())

    @pytest.fixture
    def name(self) -> str:
        return "adds"


class TestS3(ObjectsContract):
    @pytest.fixture
    def opens(self, s3: S3Server, prefix: str) -> Open:
        return partial(open_catalogue, f"s3://{CONTAINER}/{prefix}", access=s3.access())

    @pytest.fixture
    def name(self) -> str:
        return "adds"
