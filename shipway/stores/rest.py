"""Requests to one server over HTTP: logged in, asked again, and their failures told apart.

Owns who may see the login (the server's own host, and no other: no redirect is followed),
whose certificate is trusted, and how much of an answer is read. Knows nothing of models. What
may pass is asked again as long as `patience` says; what stays raises `StoreRefused` or
`StoreUnreachable`, which name the request without its query.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import re
import ssl
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, Protocol

import httpx

from shipway import __version__, documents
from shipway.documents import Malformed
from shipway.entra import Identity
from shipway.errors import ConfigError, ModelError, StoreRefused, StoreUnreachable
from shipway.stores.objects import Access
from shipway.stores.patience import TRANSIENT, Clock, Passing, persist, retry_after_s

_HEADERS = {"User-Agent": f"shipway/{__version__}", "Accept-Encoding": "identity"}
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_DOCUMENT_BYTES = 64 << 20
_ANSWER_S = 120.0  # for a whole document, however slowly its bytes drip
_SHOWN = 300  # characters of what a server says of its errors
_RENEW_S = 300  # so long before its end a token is asked for anew
_CLASH = "IntegrityError"  # two wrote one row of MLflow's database in one moment; again, the second finds it there
_ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST"})
_SENDABLE = re.compile(r"[!-~]*")  # in a header


class Login(Protocol):
    """What proves who we are; `str()` of it says in words where it comes from."""

    @property
    def advice(self) -> str:
        """What to do when it is refused."""

    def header(self) -> str | None:
        """Return the `Authorization` to send, if any."""


class Answered(StoreRefused):
    """The server answered with an error of its own, whose code is `reason`."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", advice: str = "") -> None:
        """Take what was asked, what was answered, and the codes."""
        super().__init__(message, advice=advice)
        self.status = status
        self.reason = reason


class Rest:
    """The way to one server; several threads may use it."""

    def __init__(self, base: httpx.URL, *, client: httpx.Client, login: Login, clock: Clock) -> None:
        """Take the address that every path is below of; `client` must not follow redirects."""
        self.base = base
        self.clock = clock
        self._client = client
        self._login = login
        weakref.finalize(self, client.close)

    def ask(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """Return what the server answers, a JSON document, or `None` where it has no such thing."""
        return persist(self.clock, lambda _again: self.once(method, path, query=query, body=body))

    def once(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """Ask once; raises `Passing` where another try may help."""
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        with self.opened(method, path, query=query, headers=headers, content=content) as response:
            return None if response is None else _document(self._told(method, response.url), response)

    def send(self, path: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """Write a file, once, as it comes; raises `Passing` where another try may help."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        with self.opened("PUT", path, headers=headers, content=pieces) as response:
            if response is None:
                raise Answered(f"PUT {path}: there is no such place")

    @contextlib.contextmanager
    def opened(
        self,
        method: str,
        where: str | httpx.URL,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        also: frozenset[int] = frozenset(),
    ) -> Iterator[httpx.Response | None]:
        """Make a request once; give its response, still to be read, or `None` where there is no such thing.

        `where` is a path below the server's address, or another server's address, which gets no
        login. A status of `also` is no failure.
        """
        if isinstance(where, str):
            url = self.base.copy_with(raw_path=self.base.raw_path.rstrip(b"/") + where.encode("ascii"))
            login = self._login.header()
        else:
            url, login = where, None
        sent = {**(headers or {}), **({"Authorization": login} if login else {})}
        told = self._told(method, url)
        try:
            request = self._client.build_request(method, url, params=query, headers=sent, content=content)
            response = self._client.send(request, stream=True)
            try:
                if response.is_success or response.status_code in also:
                    yield response
                elif (
                    failure := self._failure(told, response, asked=str(self._login) if login else "no login")
                ) is None:
                    yield None
                else:
                    raise failure
            finally:
                response.close()
        except httpx.LocalProtocolError:  # its words may hold the login
            raise StoreRefused(f"{told} is no request that HTTP knows", advice=self._login.advice) from None
        except httpx.TransportError as error:
            raise _unanswered(told, error) from error

    def _told(self, method: str, url: httpx.URL) -> str:
        return f"{method} {url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"

    def _failure(self, told: str, response: httpx.Response, *, asked: str) -> ModelError | Passing | None:
        status = response.status_code
        if response.is_redirect:
            return Answered(f"{told} is redirected, which is not followed", advice="mend the address in [model] store")
        reason, words = _said(_read(told, response, limit=_DOCUMENT_BYTES))
        said = f"{told} was answered {status}{f' {reason}' if reason else ''}{f' ({words})' if words else ''}"
        if status in TRANSIENT or (reason == "BAD_REQUEST" and _CLASH in words):
            return Passing(said, after_s=retry_after_s(response.headers))
        if status == HTTPStatus.NOT_FOUND or reason in _ABSENT:
            return None
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return Answered(f"{said}: {asked} was refused", status=status, advice=self._login.advice)
        return Answered(said, status=status, reason=reason)


class Variables:
    """A token, or a user and a password, from the variables that `[model]` names; or nothing."""

    def __init__(self, access: Access) -> None:
        """Look whether they are set; a token goes first. Raises `ConfigError` for one that no header can hold."""
        names = access.token_variable, access.user_variable, access.password_variable
        token, user, password = (access.environ.get(name, "").strip() for name in names)  # a file ends in a newline
        self.advice = f"set {names[0]}, or {names[1]} and {names[2]}, to a login that may do this"
        self._header: str | None = None
        self._words = "no login"
        if not _SENDABLE.fullmatch(token):
            raise ConfigError(f"{names[0]} has signs that no header can hold", advice="set it to the token alone")
        if token:
            self._header, self._words = f"Bearer {token}", f"the token in {names[0]}"
        elif user and password:
            packed = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
            self._header, self._words = f"Basic {packed}", f"the login in {names[1]} and {names[2]}"

    def __str__(self) -> str:
        return self._words

    def header(self) -> str | None:
        """See `Login.header`."""
        return self._header


class Entra:
    """A token of Entra ID, renewed before its end; asked by one thread at a time, in time."""

    def __init__(self, who: Identity, scope: str) -> None:
        """Ask nobody yet."""
        self.advice = who.advice
        self._who = who
        self._scope = scope
        self._lock = threading.Lock()
        self._held: Any = None

    def __str__(self) -> str:
        return str(self._who)

    def header(self) -> str | None:
        """See `Login.header`. Raises `LoginMissing`."""
        with self._lock:
            if self._held is None or self._held.expires_on - _RENEW_S < time.time():
                self._held = self._who.token_in_time(self._scope)
            return f"Bearer {self._held.token}"


def open_client(base: httpx.URL, *, authority: Path | None) -> httpx.Client:
    """Return the client for one server; `authority` vouches for it besides those whom everybody trusts."""
    local = is_loopback(base.host)  # no proxy leads back to this machine
    # reading all the world's certificates takes longer than a few requests
    trusted = _trusted(authority) if base.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client = httpx.Client(headers=_HEADERS, verify=trusted, trust_env=not local, timeout=_TIMEOUT)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ConfigError(f"the proxy that the environment names cannot be used: {error}") from error
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, whoever answers for names."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _trusted(authority: Path | None) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    try:
        if authority:
            context.load_verify_locations(cafile=authority)
    except OSError as error:
        raise ConfigError(f"[model] authority: {authority} is no file of certificates in PEM ({error})") from error
    return context


def _document(told: str, response: httpx.Response) -> Any:
    body = _read(told, response, limit=_DOCUMENT_BYTES)
    try:
        return documents.decoded(body) if body.strip() else {}
    except Malformed:
        raise Answered(f"{told}: the answer is no JSON", advice="mend the address in [model] store") from None


def _read(told: str, response: httpx.Response, *, limit: int) -> bytes:
    body, until = bytearray(), time.monotonic() + _ANSWER_S
    for piece in response.iter_raw():
        body += piece
        if time.monotonic() > until:
            raise Passing(f"{told}: the answer took longer than {_ANSWER_S:.0f} s")
        if len(body) > limit:
            raise Answered(f"{told}: the answer has more than {limit:,} bytes")
    return bytes(body)


def _said(body: bytes) -> tuple[str, str]:
    """Return the code and the words of an error, in one line without control characters."""
    try:
        document = documents.decoded(body)
        code, words = str(document.get("error_code", "")), str(document.get("message", ""))
    except (Malformed, AttributeError):
        code, words = "", ""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in words).split())
    return code[:_SHOWN], plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"


def _unanswered(told: str, error: httpx.TransportError) -> ModelError | Passing:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StoreUnreachable(
                f"{told}: the certificate is not trusted: {cause.verify_message}",
                advice="name the certificate authority's PEM file in [model] authority",
            )
        cause = cause.__cause__ or cause.__context__
    words = f"{told}: {type(error).__name__}: {str(error)[:_SHOWN] or 'no answer'}"
    return StoreUnreachable(words) if isinstance(error, httpx.ConnectTimeout) else Passing(words)
