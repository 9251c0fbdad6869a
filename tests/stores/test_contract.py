"""Stores, bound to real services: a container, and a bucket of two servers."""

from __future__ import annotations

import pytest

from shipway.stores.azure import open_azure
from shipway.stores.objects import Store
from shipway.stores.s3 import open_s3
from tests.store_contract import StoreContract
from tests.stores.parts import ACCOUNT, CONTAINER, Azurite, S3Server


class TestAzure(StoreContract):
    @pytest.fixture
    def store(self, azurite: Azurite, prefix: str) -> Store:
        return open_azure(f"az://{ACCOUNT}/{CONTAINER}/{prefix}", azurite.access())


class TestS3(StoreContract):
    @pytest.fixture
    def store(self, s3: S3Server, prefix: str) -> Store:
        return open_s3(f"s3://{CONTAINER}/{prefix}", s3.access())


class TestAnotherS3(StoreContract):
    @pytest.fixture
    def store(self, s3_gateway: S3Server, prefix: str) -> Store:
        return open_s3(f"s3://{CONTAINER}/{prefix}", s3_gateway.access())
