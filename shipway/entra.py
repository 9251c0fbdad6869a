"""Entra's word for who we are: one Azure credential, chosen by its name in release.toml.

Owns the names, the ten seconds that an answer may take (the default chain can walk for half
a minute), and the words of a failure: which credential was tried, and what to do. Knows
nothing of what a token is for. On failure: `LoginMissing`, which never holds a token.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from shipway.errors import LoginMissing

DEADLINE_S = 10.0
_TICK_S = 0.1
_CERTIFICATE = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_CERTIFICATE_PATH")
_KINDS = {
    "cli": ("AzureCliCredential", "az login"),
    "managed_identity": ("ManagedIdentityCredential", "give this machine a managed identity with the role {role}"),
    "workload_identity": ("WorkloadIdentityCredential", "run under a service account with a workload identity"),
    "environment": (
        "EnvironmentCredential",
        "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET of an application with the role {role}",
    ),
    "certificate": (
        "CertificateCredential",
        f"set {', '.join(_CERTIFICATE[:2])} and {_CERTIFICATE[2]} of an application with the role {{role}}",
    ),
}

_T = TypeVar("_T")


class TokenSource(Protocol):
    """What azure-identity's credentials are."""

    def get_token(self, *scopes: str) -> Any:
        """Return an object whose `token` is the token, and `expires_on` its end."""


class Identity(Struct, frozen=True, kw_only=True):
    """One credential; `make` gives the object that is asked, by the class's name."""

    name: str
    advice: str
    make: Callable[[str], TokenSource]

    def __str__(self) -> str:
        return f"Azure's {self.name}"

    def token(self, scope: str) -> Any:
        """Return azure-identity's token for a scope, as soon as it comes. Raises `LoginMissing`."""
        try:
            return self.make(self.name).get_token(scope)
        except LoginMissing:
            raise
        except Exception as error:  # azure-identity raises ValueError, ClientAuthenticationError and more
            why = (str(error) or repr(error)).splitlines()[0][:300]
            raise LoginMissing(f"{self} gave no token", tail=why, advice=self.advice) from error

    def token_in_time(self, scope: str, *, deadline_s: float = DEADLINE_S) -> Any:
        """Return it within the deadline. Raises `LoginMissing`."""
        try:
            return within(deadline_s, partial(self.token, scope))
        except TimeoutError as error:
            raise LoginMissing(f"{self} gave no token within {deadline_s:g} s", advice=self.advice) from error


def identity(
    kind: str,
    *,
    role: str,
    setting: str,
    environ: Mapping[str, str],
    make: Callable[[str], TokenSource] | None = None,
) -> Identity:
    """Return the credential of this name; nobody is asked yet.

    `role` is the right that it needs, and `setting` what asks for it: both for people.
    """
    name, advice = _KINDS[kind]
    made = make or partial(_azure_identity, setting=setting, environ=environ)
    return Identity(name=name, advice=f"{advice.format(role=role)}, then invoke doctor", make=made)


def within(seconds: float, work: Callable[[], _T], *, go_on: Callable[[], bool] = lambda: True) -> _T:
    """Return what `work` does; raises `TimeoutError` after so long, or once `go_on` says no, and leaves it alone then.

    Looking up a name, and what azure-identity asks, cannot be cut short otherwise.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed over
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and go_on() and not future.done():
        wait([future], timeout=min(left, _TICK_S))
    return future.result(0)


def _azure_identity(name: str, *, setting: str, environ: Mapping[str, str]) -> TokenSource:
    """Make the one credential that the settings name: the default chain can walk for half a minute."""
    try:
        from azure import identity as azure  # noqa: PLC0415 - heavy, and needed only for Azure
    except ImportError as error:
        raise LoginMissing(
            f"{setting} needs azure-identity, which is not installed",
            advice="pip install '.[azure]' in a clone of shipway, then invoke doctor",
        ) from error
    logging.getLogger("azure").addHandler(logging.NullHandler())  # else it tells stderr too what our error says
    made: TokenSource = getattr(azure, name)(**_arguments(name, environ))
    return made


def _arguments(name: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return what a credential does not find by itself."""
    if name == "CertificateCredential":
        if missing := [variable for variable in _CERTIFICATE if not environ.get(variable)]:
            message = f"{missing[0]} is not set"
            raise ValueError(message)
        names = ("tenant_id", "client_id", "certificate_path")
        return {key: environ[variable] for key, variable in zip(names, _CERTIFICATE, strict=True)}
    if name == "ManagedIdentityCredential" and (client := environ.get("AZURE_CLIENT_ID")):
        return {"client_id": client}  # one of several identities that this machine has
    return {}
