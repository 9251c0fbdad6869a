"""The cluster of a test run: one for all tests, and a namespace for each."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster import cluster as real
from tests.cluster.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with real.running(f"run-{os.getpid()}") as started:
        yield started
