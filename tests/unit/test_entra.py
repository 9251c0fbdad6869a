"""One Azure credential by name: made with what it needs, asked in time, and named when it fails."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from shipway import entra
from shipway.errors import LoginMissing

CERTIFICATE = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_CERTIFICATE_PATH": "/c.pem"}


class Hanging:
    def get_token(self, *_scopes: str) -> Any:
        threading.Event().wait(30)


def _identity(kind: str, environ: Mapping[str, str], **more: Any) -> entra.Identity:
    return entra.identity(kind, role="Reader", setting="[model] store", environ=environ, **more)


def _install(monkeypatch: pytest.MonkeyPatch, **classes: type) -> None:
    """Stand in for azure-identity, which opens sockets as soon as it is imported."""
    identity = SimpleNamespace(**classes)
    monkeypatch.setitem(sys.modules, "azure", cast("ModuleType", SimpleNamespace(identity=identity)))


def test_certificate_is_made_of_three_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    class Recording:
        def __init__(self, **arguments: str) -> None:
            given.append(arguments)

        def get_token(self, *_scopes: str) -> str:
            return "token"

    _install(monkeypatch, CertificateCredential=Recording)

    assert _identity("certificate", CERTIFICATE).token("scope") == "token"

    assert given == [{"tenant_id": "t", "client_id": "c", "certificate_path": "/c.pem"}]


@pytest.mark.parametrize("missing", CERTIFICATE)
def test_error_names_the_variable_when_a_certificate_lacks_one(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, CertificateCredential=Hanging)
    environ = {name: text for name, text in CERTIFICATE.items() if name != missing}

    with pytest.raises(LoginMissing) as caught:
        _identity("certificate", environ).token("scope")

    assert caught.value.message == "Azure's CertificateCredential gave no token"
    assert caught.value.tail == f"{missing} is not set"
    assert caught.value.next.endswith("of an application with the role Reader, then invoke doctor")


def test_managed_identity_is_the_named_one_when_a_variable_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    class Recording(Hanging):
        def __init__(self, **arguments: str) -> None:
            given.append(arguments)

    _install(monkeypatch, ManagedIdentityCredential=Recording)

    for environ in ({}, {"AZURE_CLIENT_ID": "one of several"}):
        identity = _identity("managed_identity", environ)
        identity.make(identity.name)

    assert given == [{}, {"client_id": "one of several"}]


def test_error_comes_at_the_deadline_when_nobody_answers() -> None:
    identity = _identity("cli", {}, make=lambda _name: Hanging())

    with pytest.raises(LoginMissing, match=r"Azure's AzureCliCredential gave no token within 0\.1 s") as caught:
        identity.token_in_time("scope", deadline_s=0.1)

    assert caught.value.next == "az login, then invoke doctor"
