"""The real parts of tests with Docker: the daemon, and what makes the registries."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from tests.docker import machine, registries
from tests.docker.machine import Daemon
from tests.docker.proxy import Proxy
from tests.docker.registries import Registry
from tests.docker.shelf import Shelf


@pytest.fixture(scope="session")
def docker() -> Iterator[Daemon]:
    with machine.daemon() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Registry]]:
    """Give a registry of a kind of `registries.KINDS`: one for the whole run."""
    with contextlib.ExitStack() as stack:
        yield cache(lambda kind: stack.enter_context(registries.registry(kind, tmp_path_factory.mktemp(kind))))


@pytest.fixture(params=["debian-open", "v3-open"])
def shelf(running: Callable[[str], Registry], request: pytest.FixtureRequest) -> Iterator[Shelf]:
    """Give an empty repository, behind a proxy, of a registry that takes everybody."""
    yield from _shelf(running(request.param), request)


@pytest.fixture(params=["debian-password", "v3-password"])
def guarded(running: Callable[[str], Registry], request: pytest.FixtureRequest) -> Iterator[Shelf]:
    """Give an empty repository, behind a proxy, of a registry that wants a password."""
    yield from _shelf(running(request.param), request)


def _shelf(registry: Registry, request: pytest.FixtureRequest) -> Iterator[Shelf]:
    with Proxy(registry.address) as proxy:
        yield Shelf(
            registry=registry, proxy=proxy, name=f"shop/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
        )
