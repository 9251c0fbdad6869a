"""Requests to one registry: logged in, redirected, retried, and their failures told apart.

Owns which host may see the login (the registry's own, and no other), what is asked again and
how long, and how much of an answer is read. Knows nothing of images. A request that fails
raises `RegistryUnreachable` once patience has run out, or `RegistryRefused`; both name the
request without its query, which may hold secrets. https://www.rfc-editor.org/rfc/rfc9110
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import random
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import httpcore
import httpx

from shipway.errors import Interrupted, PushError, RegistryRefused, RegistryUnreachable
from shipway.oci.images import DOCUMENT_BYTES, Advance, ignore
from shipway.oci.reference import is_loopback

TRANSIENT = frozenset({408, 429, 499, 500, 502, 503, 504, 522})  # go-containerregistry's list
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPING_METHOD = frozenset({307, 308})
_HOPS = 5
_LOGINS = 2  # for one request: a token that ran out, and one more
_TRIES = 6  # without progress
_TRIES_IN_ALL = 100  # with some between them
_DEADLINE_S = 300.0  # without progress
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 60.0
_NOTICED_S = 3.0
_TICK_S = 0.2  # a wait is told of so often, so that it can be ended
_CONNECT_S, _READ_S = 10.0, 60.0
_FAREWELL_S = 0.75  # for each of the requests that cancel an upload, when somebody waits for the end
_ANSWER_S = 120.0  # for a whole document, however slowly its bytes drip
_SHOWN = 300  # characters of what a registry says of its errors


class Login(Protocol):
    """What a transport needs of `shipway.oci.login.Login`."""

    @property
    def source(self) -> str:
        """Which credential is used, in words."""

    def header(self, scopes: Sequence[str]) -> str | None:
        """Return the `Authorization` that is known for these scopes."""

    def answer(self, challenges: Sequence[str], scopes: Sequence[str], *, refused: str | None) -> str | None:
        """Return the `Authorization` to try again with, after a 401."""

    def refusal(self, what: str) -> RegistryRefused:
        """Build the error for a login that is not good enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What time it is, and how it passes."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a request sends. `pieces` is asked again when the request is made again."""

    size_bytes: int
    pieces: Callable[[], Iterable[bytes]]
    media_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request; `scopes` are the rights it needs, as a token service knows them."""

    method: str
    url: httpx.URL
    scopes: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    timeout_s: float = _READ_S

    def __str__(self) -> str:
        return f"{self.method} {shown(self.url)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer; of a body longer than any document, only so much that it shows."""

    call: Call
    url: httpx.URL
    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def location(self) -> httpx.URL | None:
        """Where the registry points to, if it does. Raises `RegistryRefused` for where nobody should go."""
        return _led(self.call, self.url, self.headers.get("location"))

    @property
    def next_page(self) -> httpx.URL | None:
        """Where a list goes on, if it does. Raises `RegistryRefused` for where nobody should go."""
        return _led(self.call, self.url, _links(self.headers).get("next"))

    @property
    def errors(self) -> tuple[Mapping[str, Any], ...]:
        """The registry's own words: each with `code`, `message`, `detail`, if it keeps to the specification."""
        try:
            return tuple(error for error in json.loads(self.body)["errors"] if isinstance(error, dict))
        except (ValueError, KeyError, TypeError):
            return ()

    @property
    def codes(self) -> frozenset[str]:
        """The registry's error codes."""
        return frozenset(str(error.get("code")) for error in self.errors)

    def __str__(self) -> str:
        said = "; ".join(f"{error.get('code')}: {error.get('message')}" for error in self.errors)
        return f"{self.call} was answered {_status(self.status)}" + (f" ({printable(said)})" if said else "")


class Passing(Exception):
    """A request failed in a way that may pass: it is worth another try. Never leaves `shipway.oci`."""

    def __init__(self, text: str, *, after_s: float | None = None) -> None:
        """Take what happened, and how long the registry asked to wait."""
        super().__init__(text)
        self.after_s = after_s


class Patience:
    """How long one errand goes on though it fails: bounded in tries and time without progress, and in all tries."""

    def __init__(self, clock: Clock, advance: Advance, warn: Callable[[str], None]) -> None:
        """Begin; `advance` is told of every wait and may end it, `warn` of those that people notice."""
        self._clock = clock
        self._warn = warn
        self._advance = advance
        self._in_all = 0
        self.tries = 0
        self._since = clock.now()

    def progressed(self) -> None:
        """Begin to count `tries` anew: something more has arrived."""
        self.tries = 0
        self._since = self._clock.now()

    def spend(self, fault: Passing) -> None:
        """Wait until the next try is due; raises `RegistryUnreachable` when there were enough."""
        self.tries += 1
        self._in_all += 1
        wait_s = self._wait_s(fault)
        late = self._clock.now() + wait_s - self._since > _DEADLINE_S
        if self.tries >= _TRIES or self._in_all >= _TRIES_IN_ALL or late:
            times = "once" if self._in_all == 1 else f"{self._in_all} times"
            raise RegistryUnreachable(f"{fault}, tried {times}") from fault
        if wait_s > _NOTICED_S:
            self._warn(f"{fault}; asking again in {wait_s:.0f} s")
        until = self._clock.now() + wait_s
        while (left := until - self._clock.now()) > 0:
            self._advance(0)
            self._clock.sleep(min(left, _TICK_S))
        self._advance(0)

    def _wait_s(self, fault: Passing) -> float:
        if fault.after_s is not None:
            return min(max(fault.after_s, 0.0), _LONGEST_WAIT_S)
        return _FIRST_WAIT_S * (1 << self.tries - 1) * random.uniform(0.5, 1)  # noqa: S311 - no secret


class Transport:
    """The way to one registry; thread-safe."""

    def __init__(
        self,
        registry: httpx.URL,
        *,
        client: httpx.Client,
        login: Login,
        warn: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        """Use `client`, which must not follow redirects by itself; `warn` is told of long waits."""
        self.registry = registry
        self.login = login
        self._warn = warn
        self._client = client
        self._client.event_hooks = {"request": [self._watch]}
        self._clock = clock or Clock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._abandoned = False

    def abandon(self) -> None:
        """End what other threads wait for: connections are cut, no errand goes on, nothing new may take long."""
        self._abandoned = True
        for each in list(self._sockets):
            with contextlib.suppress(OSError):  # closed already
                each.shutdown(socket.SHUT_RDWR)  # unlike closing, this wakes who reads or writes

    def _watch(self, request: httpx.Request) -> None:
        request.extensions = {**request.extensions, "trace": self._note}

    def _note(self, _event: str, info: Mapping[str, Any]) -> None:
        """Remember the socket when a connection was made, and another one when it became TLS."""
        stream = info.get("return_value")
        if isinstance(stream, httpcore.NetworkStream):
            self._sockets.add(stream.get_extra_info("socket"))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def patience(self, advance: Advance = ignore) -> Patience:
        """Return the patience for one errand."""
        return Patience(self._clock, partial(self._unless_abandoned, advance), self._warn)

    def _unless_abandoned(self, advance: Advance, count: int) -> None:
        if self._abandoned:
            raise Interrupted("it was abandoned because of another failure, or of a signal")
        advance(count)

    def ask(self, call: Call, expected: Collection[int], patience: Patience | None = None) -> Answer:
        """Make a request, again where that may help; return an answer with an expected status."""
        patience = patience or self.patience()
        while True:
            try:
                return self.once(call, expected)
            except Passing as fault:
                patience.spend(fault)

    def once(self, call: Call, expected: Collection[int]) -> Answer:
        """Make a request once; raises `Passing` where another try may help."""
        with self.opened(call, expected) as response:
            return self._read(call, response)

    @contextlib.contextmanager
    def opened(self, call: Call, expected: Collection[int]) -> Iterator[httpx.Response]:
        """Make a request once; give its response, whose body is still to be read."""
        try:
            response = self._arrived(call)
            try:
                if response.status_code not in expected:
                    raise self._failure(self._read(call, response))
                yield response
            finally:
                response.close()
        except httpx.TransportError as error:
            raise _translated(call, error) from error

    def _arrived(self, call: Call) -> httpx.Response:
        """Return the response of whoever answers in the end: logged in, and every redirect followed."""
        url, authorization, logins, hops = call.url, self.login.header(call.scopes), 0, 0
        while True:
            own = _origin(url) == _origin(self.registry)
            response = self._sent(call, url, authorization if own else None)
            try:
                if response.status_code == HTTPStatus.UNAUTHORIZED and own and logins < _LOGINS:
                    challenges = response.headers.get_list("www-authenticate")
                    authorization = self.login.answer(challenges, call.scopes, refused=authorization)
                    logins += 1
                elif response.status_code in _REDIRECTS and "location" in response.headers:
                    url = self._redirected(call, response, hops)
                    hops += 1
                else:
                    return response
                self._read(call, response)  # so that the connection can be used again
            except BaseException:
                response.close()
                raise
            response.close()

    def _sent(self, call: Call, url: httpx.URL, authorization: str | None) -> httpx.Response:
        headers = {**call.headers} | ({"Authorization": authorization} if authorization else {})
        content: Iterable[bytes] | None = None
        if call.body:
            headers |= {"Content-Type": call.body.media_type, "Content-Length": str(call.body.size_bytes)}
            content = call.body.pieces()
        longest_s = _FAREWELL_S if self._abandoned else call.timeout_s
        timeout = httpx.Timeout(longest_s, connect=min(longest_s, _CONNECT_S))
        request = self._client.build_request(call.method, url, headers=headers, content=content, timeout=timeout)
        return self._client.send(request, stream=True)

    def _redirected(self, call: Call, response: httpx.Response, hops: int) -> httpx.URL:
        if hops == _HOPS:
            raise RegistryRefused(f"{call} was redirected more than {_HOPS} times")
        if response.status_code not in _KEEPING_METHOD and call.method not in {"GET", "HEAD"}:
            raise RegistryRefused(f"{call} was answered {_status(response.status_code)}, which loses what is sent")
        url = _led(call, response.request.url, response.headers["location"])
        if url is None:
            raise RegistryRefused(f"{call} was redirected to nowhere")
        return url

    def _read(self, call: Call, response: httpx.Response) -> Answer:
        """Read an answer's body as it came over the wire, as much as shows that it is too long, and not for ever."""
        body, until = bytearray(), self._clock.now() + _ANSWER_S
        for piece in response.iter_raw():
            body += piece
            if len(body) > DOCUMENT_BYTES:
                break
            if self._clock.now() > until:
                raise Passing(f"{call}: the answer took longer than {_ANSWER_S:.0f} s")
        return Answer(
            call=call,
            url=response.request.url,
            status=response.status_code,
            headers=response.headers,
            body=bytes(body[: DOCUMENT_BYTES + 1]),
        )

    def _failure(self, answer: Answer) -> PushError | Passing:
        if answer.status in TRANSIENT:
            return Passing(str(answer), after_s=_after_s(answer.headers.get("retry-after")))
        own = _origin(answer.url) == _origin(self.registry)
        if own and answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return self.login.refusal(str(answer))
        by = "" if own else f", by {_host(answer.url)}, where the registry redirected to"
        return RegistryRefused(f"{answer}{by}")


def shown(url: httpx.URL) -> str:
    """Return an address for people: without its query and login, which may be secrets."""
    return f"{url.scheme}://{_host(url)}{url.path}"


def printable(text: str) -> str:
    """Return what a stranger said in one line without control characters, and not more of it than helps."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"


def _status(status: int) -> str:
    with contextlib.suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _host(url: httpx.URL) -> str:
    return url.netloc.decode("ascii", "replace")


def _led(call: Call, url: httpx.URL, location: str | None) -> httpx.URL | None:
    """Return where a registry leads to, resolved but never rebuilt: it may be relative and hold a query."""
    if not location:
        return None
    try:
        there = url.join(location)
    except httpx.InvalidURL as error:
        raise RegistryRefused(f"{call} leads to an address that is none: {printable(str(error))}") from error
    if not there.host or there.userinfo:
        raise RegistryRefused(f"{call} leads to an address without a host, or with a login in it")
    if there.scheme == "https" or (there.scheme == "http" and is_loopback(_host(there))):
        return there
    raise RegistryRefused(
        f"{call} leads to {shown(there)}, which is not https",
        advice="a registry behind a proxy must be told its own public address, https included",
    )


def _links(headers: httpx.Headers) -> Mapping[str, str]:
    """Return the addresses in `Link`, by their relation."""
    return {link["rel"]: link["url"] for link in httpx.Response(200, headers=headers).links.values() if "rel" in link}


def _after_s(text: str | None) -> float | None:
    """Return what `Retry-After` says, in seconds or as a date."""
    if not text:
        return None
    with contextlib.suppress(ValueError):
        return float(int(text))
    with contextlib.suppress(ValueError):
        date = email.utils.parsedate_to_datetime(text)
        return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None


def untrusted(what: str, error: httpx.TransportError) -> RegistryUnreachable | None:
    """Return the error for a certificate that nobody here vouches for, if it is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RegistryUnreachable(
                f"{what}: the certificate is not trusted: {cause.verify_message}",
                advice="name the certificate authority's PEM file in [push] authority",
            )
        cause = cause.__cause__ or cause.__context__  # behind a proxy, httpcore raises without `from`
    return None


def _translated(call: Call, error: httpx.TransportError) -> PushError | Passing:
    if refused := untrusted(str(call), error):
        return refused
    return Passing(f"{call}: {type(error).__name__}: {printable(str(error)) or 'no answer'}")
