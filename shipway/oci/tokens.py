"""A registry's token service: a credential and scopes in, a bearer token out.

Owns the token protocol of distribution (https://distribution.github.io/distribution/spec/auth/)
and Azure's (https://azure.github.io/acr/AAD-OAuth.html). Knows neither whether the service
may be trusted with the credential nor what the token is for. Asks again while the service
is busy, follows no redirect, and is done within ten seconds: with a token, or with
`RegistryRefused`, `RegistryUnreachable` or `LoginMissing`.
"""

from __future__ import annotations

import base64
import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from msgspec import Struct
from msgspec.structs import replace

from shipway import documents
from shipway.entra import DEADLINE_S, within
from shipway.errors import LoginMissing, RegistryRefused, RegistryUnreachable
from shipway.oci.address import Url
from shipway.oci.client import NoAnswer, Request, untrusted
from shipway.oci.credentials import AzureCredential, Credential, Secret
from shipway.oci.patience import TRANSIENT, retry_after_s
from shipway.oci.transport import Sender, printable

_LIFE_S = 60.0  # of a token that does not say: the protocol's own default
_LONGEST_LIFE_S = 86_400.0  # that is believed
_ANSWER_BYTES = 1 << 20  # the longest answer that is read
_FIRST_PAUSE_S = 0.25


class Token(Struct, frozen=True, kw_only=True):
    """A bearer token, and for how long the registry takes it."""

    secret: Secret
    life_s: float


class _Answer(Struct, frozen=True, kw_only=True):
    status: int
    headers: Message
    body: bytes

    @property
    def document(self) -> Mapping[str, Any]:
        with contextlib.suppress(ValueError):
            document = documents.decoded(self.body)
            if isinstance(document, dict):
                return document
        return {}


class TokenService:
    """One token service, as a registry's challenge names it; not for several threads at once."""

    def __init__(self, realm: Url, name: str, *, client: Sender, deadline_s: float = DEADLINE_S) -> None:
        """Take its address, and its name for the registry."""
        self.realm = realm
        self._name = name
        self._client = client
        self._deadline_s = deadline_s
        self._azure_refresh: Secret | None = None

    def token(self, credential: Credential | AzureCredential | None, scopes: Sequence[str]) -> Token:
        """Buy a token for these scopes, in this order; without a credential, one that anybody gets."""
        until = time.monotonic() + self._deadline_s
        match credential:
            case AzureCredential():
                answer = self._from_azure(credential, scopes, until)
            case Credential(kind="identity"):
                bought = ("scope", " ".join(scopes)), ("refresh_token", credential.secret.reveal())
                form = (("grant_type", "refresh_token"), ("client_id", "shipway"), *bought)
                answer = self._ask(self._post(self.realm, form), credential, until)
            case _:
                answer = self._ask(self._get(scopes, credential), credential, until)
        return Token(secret=self._secret(answer, "token", "access_token"), life_s=_life_s(answer))

    def _get(self, scopes: Sequence[str], credential: Credential | None) -> Request:
        url = self.realm.asking(("service", self._name), *(("scope", scope) for scope in scopes))
        headers = {"Authorization": basic(credential)} if credential else {}
        return Request(method="GET", url=url, headers=headers, timeout_s=self._deadline_s, connect_s=self._deadline_s)

    def _post(self, url: Url, form: Sequence[tuple[str, str]]) -> Request:
        content = urlencode([("service", self._name), *form]).encode()
        return Request(
            method="POST",
            url=url,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            pieces=[content],
            size_bytes=len(content),
            timeout_s=self._deadline_s,
            connect_s=self._deadline_s,
        )

    def _from_azure(self, credential: AzureCredential, scopes: Sequence[str], until: float) -> _Answer:
        """Use the refresh token of before, which lives three hours, or else a new one."""
        if self._azure_refresh:
            try:
                return self._ask(self._azure_access(self._azure_refresh, scopes), credential, until)
            except RegistryRefused:
                self._azure_refresh = None
        self._azure_refresh = self._azure_exchange(credential, until)
        return self._ask(self._azure_access(self._azure_refresh, scopes), credential, until)

    def _azure_exchange(self, credential: AzureCredential, until: float) -> Secret:
        try:
            entra = within(until - time.monotonic(), credential.entra)
        except TimeoutError as error:
            raise LoginMissing(
                f"{credential} gave no token within {self._deadline_s:g} s", advice=credential.advice
            ) from error
        form = (("grant_type", "access_token"), ("access_token", entra.reveal()))
        request = self._post(self.realm.join("/oauth2/exchange"), form)
        return self._secret(self._ask(request, credential, until), "refresh_token")

    def _azure_access(self, refresh: Secret, scopes: Sequence[str]) -> Request:
        """Build the request for a token; Azure takes each scope in a field of its own."""
        named = (("scope", scope) for scope in scopes)
        return self._post(self.realm, (("grant_type", "refresh_token"), *named, ("refresh_token", refresh.reveal())))

    def _ask(self, request: Request, credential: Credential | AzureCredential | None, until: float) -> _Answer:
        """Send the request until it is answered; raises `RegistryRefused` unless the answer is 200."""
        try:
            answer = within(until - time.monotonic(), partial(self._patiently, request, until))
        except TimeoutError as error:
            raise self._unreachable(f"gave no answer within {self._deadline_s:g} s") from error
        if answer.status == HTTPStatus.OK:
            return answer
        who, advice = (str(credential), credential.advice) if credential else ("a login without a credential", "")
        if HTTPStatus(300) <= answer.status < HTTPStatus(400):
            what = f"sends {who} on to another address: nothing was sent there"
        else:
            what = f"refused {who}: {answer.status} {_said(answer)}".rstrip()
        raise RegistryRefused(f"the token service {self._host} {what}", advice=advice)

    def _patiently(self, request: Request, until: float) -> _Answer:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                answer = self._once(request, until)
                if answer.status not in TRANSIENT:
                    return answer
                after_s = retry_after_s(answer.headers.get("retry-after"))
                why, wait_s = f"answered {answer.status}", pause_s if after_s is None else max(0.0, after_s)
            except NoAnswer as error:
                if refused := untrusted(f"the token service {self._host}", error):
                    raise refused from error
                why, wait_s = f"cannot be reached: {printable(error.text)}", pause_s
            if time.monotonic() + wait_s >= until:
                raise self._unreachable(why)
            time.sleep(wait_s)
            pause_s *= 2

    def _once(self, request: Request, until: float) -> _Answer:
        left_s = max(0.1, until - time.monotonic())
        response = self._client.send(replace(request, timeout_s=left_s, connect_s=left_s))
        with contextlib.closing(response):
            body = b""
            for piece in response.pieces():
                body += piece
                if len(body) > _ANSWER_BYTES:
                    break
        return _Answer(status=response.status, headers=response.headers, body=body)

    def _unreachable(self, why: str) -> RegistryUnreachable:
        return RegistryUnreachable(f"the token service {self._host} {why}")

    def _secret(self, answer: _Answer, *names: str) -> Secret:
        """Return a token of the answer; it must be fit for a header."""
        for name in names:
            text = answer.document.get(name)
            if isinstance(text, str) and re.fullmatch(r"[!-~]+", text):
                return Secret(text)
        raise RegistryRefused(
            f"the token service {self._host} answered without a token", advice="look at the registry's token realm"
        )

    @property
    def _host(self) -> str:
        return self.realm.netloc


def basic(credential: Credential) -> str:
    """Return the `Authorization` of a user and a password (RFC 7617)."""
    pair = f"{credential.user}:{credential.secret.reveal()}"
    return f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"


def _life_s(answer: _Answer) -> float:
    """Return how long the token is good from now on; both times are the service's, so that no clock must be right."""
    said = answer.document.get("expires_in")
    life_s = float(min(said, _LONGEST_LIFE_S)) if isinstance(said, (int, float)) and said > 0 else _LIFE_S
    try:
        issued = datetime.fromisoformat(answer.document["issued_at"])
        now = parsedate_to_datetime(answer.headers["date"])
        age_s = (now - issued).total_seconds()
    except (KeyError, ValueError, TypeError, OverflowError):
        return life_s
    return life_s - min(max(0.0, age_s), life_s)


def _said(answer: _Answer) -> str:
    """Return the service's own words: OAuth's, or the registry's."""
    errors = answer.document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else answer.document
    if not isinstance(first, dict):
        return ""
    words = first.get("message") or first.get("error_description") or first.get("details") or first.get("error") or ""
    return printable(str(words))
