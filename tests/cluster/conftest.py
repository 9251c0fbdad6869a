"""The cluster of a test run: one for all tests, and a namespace for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.cluster import cluster as handles
from tests.cluster import keeper
from tests.cluster.cluster import Cluster

_FOREIGN = ("--kube-context", "--kube-registry", "--kube-base")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kube-context", default="", help="run on this disposable cluster, not on one of our own")
    parser.addoption("--kube-registry", default="", help="HOST/PREFIX that we push to and its nodes pull from")
    parser.addoption("--kube-base", default="", help="an image with Python 3.13 there, by digest")
    parser.addoption("--kube-zone", default="", help="REGION.cloudapp.azure.com, where it gives public names")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    context, registry, base = (request.config.getoption(name, default="") for name in _FOREIGN)
    if not context:
        with keeper.running() as started:
            yield started
        return
    if there := keeper.find(context.removeprefix("shipway-tests-")):
        yield there
        return
    if not (registry and base):
        pytest.skip("somebody's cluster needs somebody's registry: --kube-registry HOST/PREFIX --kube-base REFERENCE")
    zone = request.config.getoption("--kube-zone", default="")
    yield handles.foreign(context, registry=registry, base=base, zone=zone)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a fresh namespace, and let all that is in it go afterwards."""
    yield from fresh(cluster, request.node.nodeid)


def fresh(cluster: Cluster, why: str) -> Iterator[str]:
    """Give a namespace of this name, once pods can be made there."""
    name = f"test-{hashlib.sha256(why.encode()).hexdigest()[:10]}"
    cluster.kubectl("create", "namespace", name)
    cluster.await_("serviceaccount/default", "create", namespace=name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
