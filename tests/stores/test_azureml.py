"""A workspace of Azure ML: a stand-in for its addresses and tokens, and a real MLflow server behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from shipway.console import Console
from shipway.errors import LoginMissing, NotConfigured, StoreRefused, StoreUnreachable
from shipway.stores import open_catalogue
from tests import model_folder
from tests.catalogue_contract import CatalogueBasics, Open
from tests.stores.tracking import Tracking
from tests.stores.workspace import SCOPE, Workspace
from tests.stores.workspace import workspace as start_workspace


@pytest.fixture(scope="module")
def running_workspace(tracking: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with start_workspace(tmp_path_factory.mktemp("azureml"), tracking) as running:
        yield running


@pytest.fixture
def workspace(running_workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Give the workspace, with an identity service that does what it should."""
    audience = running_workspace.identity.audience
    running_workspace.identity.reset()
    running_workspace.identity.audience = audience
    running_workspace.seen.clear()
    for name, text in running_workspace.identity.environ.items():
        monkeypatch.setenv(name, text)  # azure-identity looks there itself
    return running_workspace


class TestCatalogue(CatalogueBasics):
    @pytest.fixture
    def opens(self, workspace: Workspace, tmp_path: Path) -> Open:
        return partial(open_catalogue, workspace.address, root=tmp_path, access=workspace.access())

    @pytest.fixture
    def name(self, prefix: str) -> str:
        return prefix


def test_the_token_goes_to_the_workspace_and_the_signed_address_is_never_told(
    workspace: Workspace, prefix: str, tmp_path: Path
) -> None:
    catalogue = open_catalogue(workspace.address, root=tmp_path, access=workspace.access())
    catalogue.publish(model_folder.make(tmp_path / "m"), name=prefix, publisher="ada", tell=Console())
    catalogue.pull(catalogue.resolve(prefix, "latest"), cache=tmp_path / "cache", tell=Console())

    assert {(host, token) for host, _path, token in workspace.seen} == {
        (workspace.host, True),
        (workspace.blob_host, False),
    }
    assert workspace.identity.asked == 1
    workspace.signature += "0"  # what was lent before is good no more
    with pytest.raises(StoreRefused, match=r"GET https://localhost:\d+/ExperimentRun/.* was answered 403") as caught:
        catalogue.pull(catalogue.resolve(prefix, "latest"), cache=tmp_path / "other", tell=Console())
    assert "sig=" not in f"{caught.value!r} {caught.value}"


def test_a_refused_token_is_told_with_the_credential_and_the_role(workspace: Workspace, tmp_path: Path) -> None:
    audience, workspace.identity.audience = workspace.identity.audience, "https://storage.azure.com"
    catalogue = open_catalogue(workspace.address, root=tmp_path, access=workspace.access())

    with pytest.raises(StoreRefused, match="401: Azure's ManagedIdentityCredential was refused") as caught:
        catalogue.names()

    workspace.identity.audience = audience
    assert "AzureML Data Scientist" in caught.value.next


def test_no_token_is_told_with_the_credential(workspace: Workspace, tmp_path: Path) -> None:
    workspace.identity.status = 500
    catalogue = open_catalogue(workspace.address, root=tmp_path, access=workspace.access())

    with pytest.raises(LoginMissing, match="Azure's ManagedIdentityCredential gave no token"):
        catalogue.names()


def test_a_certificate_that_nobody_vouches_for_is_refused_before_the_token_is_sent(
    workspace: Workspace, tmp_path: Path
) -> None:
    access = replace(workspace.access(), authority=None)

    with pytest.raises(StoreUnreachable, match="the certificate is not trusted") as caught:
        open_catalogue(workspace.address, root=tmp_path, access=access).names()

    assert "[model] authority" in caught.value.next
    assert workspace.seen == []


@pytest.mark.parametrize(
    "address", [f"azureml://host{SCOPE}", "azureml://host/mlflow/v1.0/x", f"azureml://a@host/mlflow/v1.0{SCOPE}"]
)
def test_an_address_that_is_no_workspace_is_not_configured(address: str) -> None:
    with pytest.raises(NotConfigured, match="no workspace of Azure ML"):
        open_catalogue(address)
