"""Requests to one registry: logged in, redirected, retried, and their failures told apart.

Owns which host may see the login (the registry's own, and no other), what is asked again and
how long, and how much of an answer is read. Knows nothing of images. A request that fails
raises `RegistryUnreachable` once patience has run out, or `RegistryRefused`; both name the
request without its query, which may hold secrets. https://www.rfc-editor.org/rfc/rfc9110
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from email.message import Message
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

from msgspec import Struct

from shipway import documents
from shipway.errors import Interrupted, PushError, RegistryRefused
from shipway.oci.address import Url
from shipway.oci.client import NoAnswer, Request, Response, untrusted
from shipway.oci.images import DOCUMENT_BYTES, Advance, ignore
from shipway.oci.patience import TRANSIENT, Clock, Passing, Patience, retry_after_s
from shipway.oci.reference import is_loopback

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPING_METHOD = frozenset({307, 308})
_HOPS = 5
_LOGINS = 2  # for one request: a token that ran out, and one more
_CONNECT_S, _READ_S = 10.0, 60.0
_FAREWELL_S = 0.75  # for each of the requests that cancel an upload, when somebody waits for the end
_ANSWER_S = 120.0  # for a whole document, however slowly its bytes drip
_SHOWN = 300  # characters of what a registry says of its errors
_LINK = re.compile(r"<([^>]*)>((?:\s*;\s*[^,;]+)*)")
_REL = re.compile(r";\s*rel\s*=\s*\"?([^\";]+)", re.IGNORECASE)


class Sender(Protocol):
    """What a transport needs of `shipway.oci.client.Client`."""

    def send(self, request: Request) -> Response:
        """Make a request; raises `NoAnswer`."""

    def abandon(self) -> None:
        """Cut every connection."""

    def close(self) -> None:
        """Close what nobody uses."""


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


class Body(Struct, frozen=True, kw_only=True):
    """What a request sends. `pieces` is asked again when the request is made again."""

    size_bytes: int
    pieces: Callable[[], Iterable[bytes]]
    media_type: str = "application/octet-stream"


class Call(Struct, frozen=True, kw_only=True):
    """One request; `scopes` are the rights it needs, as a token service knows them."""

    method: str
    url: Url
    scopes: tuple[str, ...]
    headers: Mapping[str, str] = {}
    body: Body | None = None
    timeout_s: float = _READ_S

    def __str__(self) -> str:
        return f"{self.method} {shown(self.url)}"


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer; of a body longer than any document, only so much that it shows."""

    registry: Url
    call: Call
    url: Url
    status: int
    headers: Message
    body: bytes

    @property
    def location(self) -> Url | None:
        """Where the registry points to, if it does. Raises `RegistryRefused` for where nobody should go."""
        return _led(self.registry, self.call, self.url, self.headers.get("location"))

    @property
    def next_page(self) -> Url | None:
        """Where a list goes on, if it does. Raises `RegistryRefused` for where nobody should go."""
        return _led(self.registry, self.call, self.url, _links(self.headers).get("next"))

    @property
    def errors(self) -> tuple[Mapping[str, Any], ...]:
        """The registry's own words: each with `code`, `message`, `detail`, if it keeps to the specification."""
        try:
            return tuple(error for error in documents.decoded(self.body)["errors"] if isinstance(error, dict))
        except (ValueError, KeyError, TypeError):
            return ()

    @property
    def codes(self) -> frozenset[str]:
        """The registry's error codes."""
        return frozenset(str(error.get("code")) for error in self.errors)

    def __str__(self) -> str:
        said = "; ".join(f"{error.get('code')}: {error.get('message')}" for error in self.errors)
        return f"{self.call} was answered {_status(self.status)}" + (f" ({printable(said)})" if said else "")


class Transport:
    """The way to one registry; thread-safe."""

    def __init__(
        self,
        registry: Url,
        *,
        client: Sender,
        login: Login,
        warn: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        """Use `client`, which must not follow redirects by itself; `warn` is told of long waits."""
        self.registry = registry
        self.login = login
        self._warn = warn
        self._client = client
        self._clock = clock or Clock()
        self._abandoned = False

    def abandon(self) -> None:
        """End what other threads wait for: connections are cut, no errand goes on, nothing new may take long."""
        self._abandoned = True
        self._client.abandon()

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
    def opened(self, call: Call, expected: Collection[int]) -> Iterator[Response]:
        """Make a request once; give its response, whose body is still to be read."""
        try:
            response = self._arrived(call)
            try:
                if response.status not in expected:
                    raise self._failure(self._read(call, response))
                yield response
            finally:
                response.close()
        except NoAnswer as error:
            raise untrusted(str(call), error) or Passing(f"{call}: {printable(str(error))}") from error

    def _arrived(self, call: Call) -> Response:
        """Return the response of whoever answers in the end: logged in, and every redirect followed."""
        url, authorization, logins, hops = call.url, self.login.header(call.scopes), 0, 0
        while True:
            own = url.origin == self.registry.origin
            response = self._sent(call, url, authorization if own else None)
            try:
                if response.status == HTTPStatus.UNAUTHORIZED and own and logins < _LOGINS:
                    challenges = response.headers.get_all("www-authenticate", [])
                    authorization = self.login.answer(challenges, call.scopes, refused=authorization)
                    logins += 1
                elif response.status in _REDIRECTS and "location" in response.headers:
                    url = self._redirected(call, response, hops)
                    hops += 1
                else:
                    return response
                self._read(call, response)  # so that the connection can be used again
            except BaseException:
                response.close()
                raise
            response.close()

    def _sent(self, call: Call, url: Url, authorization: str | None) -> Response:
        headers = {**call.headers} | ({"Authorization": authorization} if authorization else {})
        if call.body:
            headers["Content-Type"] = call.body.media_type
        longest_s = _FAREWELL_S if self._abandoned else call.timeout_s
        return self._client.send(
            Request(
                method=call.method,
                url=url,
                headers=headers,
                pieces=call.body.pieces() if call.body else None,
                size_bytes=call.body.size_bytes if call.body else 0,
                timeout_s=longest_s,
                connect_s=min(longest_s, _CONNECT_S),
            )
        )

    def _redirected(self, call: Call, response: Response, hops: int) -> Url:
        if hops == _HOPS:
            raise RegistryRefused(f"{call} was redirected more than {_HOPS} times")
        if response.status not in _KEEPING_METHOD and call.method not in {"GET", "HEAD"}:
            raise RegistryRefused(f"{call} was answered {_status(response.status)}, which loses what is sent")
        url = _led(self.registry, call, response.url, response.headers["location"])
        if url is None:
            raise RegistryRefused(f"{call} was redirected to nowhere")
        return url

    def _read(self, call: Call, response: Response) -> Answer:
        """Read an answer's body as it came over the wire, as much as shows that it is too long, and not for ever."""
        body, until = bytearray(), self._clock.now() + _ANSWER_S
        for piece in response.pieces():
            body += piece
            if len(body) > DOCUMENT_BYTES:
                break
            if self._clock.now() > until:
                raise Passing(f"{call}: the answer took longer than {_ANSWER_S:.0f} s")
        return Answer(
            registry=self.registry,
            call=call,
            url=response.url,
            status=response.status,
            headers=response.headers,
            body=bytes(body[: DOCUMENT_BYTES + 1]),
        )

    def _failure(self, answer: Answer) -> PushError | Passing:
        if answer.status in TRANSIENT:
            return Passing(str(answer), after_s=retry_after_s(answer.headers.get("retry-after")))
        own = answer.url.origin == self.registry.origin
        if own and answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return self.login.refusal(str(answer))
        by = "" if own else f", by {answer.url.netloc}, where the registry redirected to"
        return RegistryRefused(f"{answer}{by}")


def shown(url: Url) -> str:
    """Return an address for people: without its query and login, which may be secrets."""
    return f"{url.scheme}://{url.netloc}{url.path}"


def printable(text: str) -> str:
    """Return what a stranger said in one line without control characters, and not more of it than helps."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"


def _status(status: int) -> str:
    with contextlib.suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)


def _led(registry: Url, call: Call, url: Url, location: str | None) -> Url | None:
    """Return where a registry leads to, resolved but never rebuilt: it may be relative and hold a query."""
    if not location:
        return None
    try:
        there = url.join(location)
    except ValueError as error:
        raise RegistryRefused(f"{call} leads to an address that is none: {printable(str(error))}") from error
    if not there.host or there.has_login:
        raise RegistryRefused(f"{call} leads to an address without a host, or with a login in it")
    local = is_loopback(registry.netloc) and is_loopback(there.netloc)  # else a stranger could reach what listens here
    if there.scheme == "https" or (there.scheme == "http" and local):
        return there
    raise RegistryRefused(
        f"{call} leads to {shown(there)}, which is not https",
        advice="a registry behind a proxy must be told its own public address, https included",
    )


def _links(headers: Message) -> Mapping[str, str]:
    """Return the addresses in `Link` (RFC 8288), by their relation."""
    found = (match for text in headers.get_all("link", []) for match in _LINK.finditer(text))
    return {rel[1].strip(): match[1] for match in found if (rel := _REL.search(match[2]))}
