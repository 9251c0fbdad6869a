"""The real parts of tests with stores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.docker import tools
from tests.stores import parts
from tests.stores.parts import Azurite, S3Server
from tests.stores.tracking import Tracking
from tests.stores.tracking import tracking as start_tracking


@pytest.fixture(scope="session")
def running_azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Give one Azurite for the whole run."""
    with parts.azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture
def azurite(running_azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    """Give Azurite, with an identity service that does what it should."""
    running_azurite.identity.reset()
    for name, text in running_azurite.identity.environ.items():
        monkeypatch.setenv(name, text)  # azure-identity looks there itself
    return running_azurite


@pytest.fixture(scope="session")
def running_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Give one S3 server for the whole run."""
    with parts.s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Give the S3 server, with a credential in the environment."""
    for name, text in running_s3.environ.items():
        monkeypatch.setenv(name, text)  # boto3 looks there itself
    return running_s3


@pytest.fixture(scope="session")
def running_s3_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Give one S3 server of another make for the whole run."""
    with parts.s3_gateway(tools.versitygw(), tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def s3_gateway(running_s3_gateway: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Give it, with a credential in the environment."""
    for name, text in running_s3_gateway.environ.items():
        monkeypatch.setenv(name, text)
    return running_s3_gateway


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    """Give one MLflow server for the whole run."""
    with start_tracking(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Give a place in a container or bucket that no other test uses."""
    return f"t{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
