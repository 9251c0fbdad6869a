"""A registry in memory, as an HTTP transport: it behaves like distribution's, and fails as it is told to.

It passes the contract of `Images` as the real ones do. `script` puts faults in front of the
calls that they are meant for; what nobody scripted, and what no registry has, raises.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from shipway.artifacts import Digest
from shipway.errors import RegistryRefused
from shipway.oci.address import Url
from shipway.oci.patience import Clock
from shipway.oci.reference import Reference
from shipway.oci.registry import Repository
from shipway.oci.transport import Transport
from tests.httpx_client import FakeClient

HOST = "localhost:5000"
ADDRESS = f"http://{HOST}"
Handle = Callable[[httpx.Request], httpx.Response]
Fault = Callable[[httpx.Request, Handle], httpx.Response]
_PATH = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>blobs/uploads|blobs|manifests|tags)/(?P<last>[^/]*)")
_PAGE = 3  # tags on one page, however many are asked for


@dataclass(slots=True)
class Stored:
    """One repository's content."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Session:
    name: str
    data: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Scripted:
    method: str
    path: re.Pattern[str]
    faults: Iterator[Fault]


class FakeRegistry(httpx.BaseTransport):
    """The registry at `ADDRESS`, and whatever `elsewhere` plays at other addresses.

    `calls` are the requests in order, a line each, digests shortened. With `tokens`, only
    requests that bear one of them are let in.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Stored] = {}
        self.calls: list[str] = []
        self.requests: list[httpx.Request] = []
        self.tokens: set[str] | None = None
        self.elsewhere: Handle = _nobody
        self._sessions: dict[str, _Session] = {}
        self._numbers = itertools.count(1)
        self._scripted: list[_Scripted] = []
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> Stored:
        return self.repositories.setdefault(name, Stored())

    @property
    def open_sessions(self) -> int:
        """How many uploads were begun and neither finished nor cancelled."""
        return len(self._sessions)

    def forget_sessions(self) -> None:
        """Lose all uploads."""
        self._sessions.clear()

    def script(self, method: str, path: str, *faults: Fault) -> None:
        """Let the next calls of this method, whose path holds the pattern, meet these faults, one each."""
        self._scripted.append(_Scripted(method=method, path=re.compile(path), faults=iter(faults)))

    def require_all_met(self) -> None:
        """Fail when a fault was scripted that nobody met."""
        left = [f"{each.method} {each.path.pattern}" for each in self._scripted for _ in each.faults]
        assert left == []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._lock:  # a registry may be asked by several at once, a test reads one story
            self.calls.append(_line(request))
            self.requests.append(request)
            fault = self._fault(request)
            return fault(request, self._answer) if fault else self._answer(request)

    def _fault(self, request: httpx.Request) -> Fault | None:
        for each in self._scripted:
            if each.method == request.method and each.path.search(request.url.path):
                fault = next(each.faults, None)
                if fault:
                    return fault
        return None

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if f"{request.url.scheme}://{request.url.netloc.decode()}" != ADDRESS:
            return self.elsewhere(request)
        assert request.headers.get("accept-encoding") == ("identity" if request.method == "GET" else None)
        if self.tokens is not None and request.headers.get("authorization") not in self.tokens:
            return problem(401, "UNAUTHORIZED", headers={"WWW-Authenticate": 'Bearer realm="https://tokens.example"'})
        found = _PATH.fullmatch(request.url.path)
        assert found, f"no registry answers {request.method} {request.url}"
        handler = getattr(self, f"_{request.method.lower()}_{found['kind'].rpartition('/')[2]}", None)
        assert handler, f"the fake does not know {request.method} {request.url}"
        response: httpx.Response = handler(request, self[found["name"]], found["name"], found["last"])
        return response

    # -- blobs ---------------------------------------------------------------------------

    def _head_blobs(self, _request: httpx.Request, stored: Stored, _name: str, digest: str) -> httpx.Response:
        if digest not in stored.blobs:
            return answer(404)
        return answer(200, headers={"Content-Length": str(len(stored.blobs[digest]))})

    def _get_blobs(self, request: httpx.Request, stored: Stored, _name: str, digest: str) -> httpx.Response:
        if digest not in stored.blobs:
            return problem(404, "BLOB_UNKNOWN")
        data = stored.blobs[digest]
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if not asked:
            return answer(200, data)
        start = int(asked[1])
        if start >= len(data):
            return answer(416)
        said = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return answer(206, data[start:], {"Content-Range": said})

    def _post_uploads(self, request: httpx.Request, stored: Stored, name: str, _last: str) -> httpx.Response:
        query = request.url.params
        if "mount" in query:
            data = self[query["from"]].blobs.get(query["mount"])
            if data is not None:
                stored.blobs[query["mount"]] = data
                return answer(201)
        session = str(next(self._numbers))
        self._sessions[session] = _Session(name=name)
        return self._where(202, session)

    def _where(self, status: int, session: str) -> httpx.Response:
        held = self._sessions[session]
        location = f"{ADDRESS}/v2/{held.name}/blobs/uploads/{session}?_state=a%2Bb%3D{len(held.data)}"
        return answer(status, headers={"Location": location, "Range": f"0-{max(0, len(held.data) - 1)}"})

    def _get_uploads(self, _request: httpx.Request, _stored: Stored, _name: str, session: str) -> httpx.Response:
        return self._where(204, session) if session in self._sessions else problem(404, "BLOB_UPLOAD_UNKNOWN")

    def _patch_uploads(self, request: httpx.Request, _stored: Stored, _name: str, session: str) -> httpx.Response:
        return self._received(request, session) or self._where(202, session)

    def _received(self, request: httpx.Request, session: str) -> httpx.Response | None:
        """Keep what a request brings; return the answer where it cannot be kept."""
        if session not in self._sessions:
            return problem(404, "BLOB_UPLOAD_UNKNOWN")
        held = self._sessions[session]
        assert request.url.params["_state"].startswith("a+b="), "the Location was not taken as it was"
        if request.url.params["_state"] != f"a+b={len(held.data)}":
            return problem(416, "RANGE_INVALID")
        if "content-range" in request.headers:
            first, last = (int(end) for end in request.headers["content-range"].split("-"))
            if (first, last + 1 - first) != (len(held.data), int(request.headers["content-length"])):
                return problem(416, "RANGE_INVALID")
        for piece in _body(request):
            held.data += piece
        return None

    def _put_uploads(self, request: httpx.Request, stored: Stored, _name: str, session: str) -> httpx.Response:
        if refused := self._received(request, session):
            return refused
        data, digest = bytes(self._sessions.pop(session).data), request.url.params["digest"]
        if Digest.of(data) != digest:
            return problem(400, "DIGEST_INVALID")
        stored.blobs[digest] = data
        return answer(201, headers={"Docker-Content-Digest": digest})

    def _delete_uploads(self, _request: httpx.Request, _stored: Stored, _name: str, session: str) -> httpx.Response:
        return answer(204 if self._sessions.pop(session, None) else 404)

    # -- manifests and tags --------------------------------------------------------------

    def _head_manifests(self, request: httpx.Request, stored: Stored, name: str, last: str) -> httpx.Response:
        whole = self._get_manifests(request, stored, name, last)
        return answer(whole.status_code, headers=whole.headers)

    def _get_manifests(self, request: httpx.Request, stored: Stored, _name: str, last: str) -> httpx.Response:
        digest = stored.tags.get(last, last)
        media_type, data = stored.manifests.get(digest, ("", b""))
        if not media_type or media_type not in request.headers["accept"]:  # as distribution has it
            return problem(404, "MANIFEST_UNKNOWN")
        return answer(200, data, {"Content-Type": media_type, "Docker-Content-Digest": digest})

    def _put_manifests(self, request: httpx.Request, stored: Stored, _name: str, last: str) -> httpx.Response:
        data = b"".join(_body(request))
        digest, media_type = Digest.of(data), request.headers["content-type"]
        if ":" in last and last != digest:
            return problem(400, "DIGEST_INVALID")
        lost = [each for each in _named(json.loads(data)) if each not in {*stored.blobs, *stored.manifests}]
        if lost:
            return problem(400, "MANIFEST_BLOB_UNKNOWN", details=[{"Digest": each} for each in lost])
        stored.manifests[digest] = (media_type, data)
        if ":" not in last:
            stored.tags[last] = digest
        return answer(201, headers={"Docker-Content-Digest": digest})

    def _delete_manifests(self, _request: httpx.Request, stored: Stored, _name: str, digest: str) -> httpx.Response:
        if stored.manifests.pop(digest, None) is None:
            return problem(404, "MANIFEST_UNKNOWN")
        for tag in [tag for tag, meant in stored.tags.items() if meant == digest]:
            del stored.tags[tag]
        return answer(202)

    def _get_tags(self, request: httpx.Request, stored: Stored, name: str, last: str) -> httpx.Response:
        assert last == "list"
        if not stored.manifests:
            return problem(404, "NAME_UNKNOWN")
        after = request.url.params.get("last", "")
        left = sorted(tag for tag in stored.tags if tag > after)
        page = left[:_PAGE]
        more = {"Link": f'</v2/{name}/tags/list?last={page[-1]}&n={_PAGE}>; rel="next"'} if left[_PAGE:] else {}
        return answer(200, json.dumps({"name": name, "tags": page or None}).encode(), more)


def answer(status: int, data: bytes = b"", headers: Mapping[str, str] | None = None) -> httpx.Response:
    """Return an answer whose body is still to be read, as from a connection."""
    length = {"Content-Length": str(len(data))} if data else {}
    return httpx.Response(status, headers={**length, **(headers or {})}, stream=httpx.ByteStream(data))


def problem(
    status: int, code: str, *, details: Sequence[object] = (None,), headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """Return an error as the specification has it."""
    errors = [{"code": code, "message": code.lower().replace("_", " "), "detail": detail} for detail in details]
    return answer(status, json.dumps({"errors": errors}).encode(), headers)


def _body(request: httpx.Request) -> Iterator[bytes]:
    assert isinstance(request.stream, httpx.SyncByteStream)
    came = 0
    for piece in request.stream:
        came += len(piece)
        yield piece
    assert came == int(request.headers["content-length"]), "a real connection would hang, or break"


def _named(document: Mapping[str, Any]) -> list[str]:
    """Return what a manifest or an index names, and what must be there before it."""
    entries = [document["config"], *document["layers"]] if "layers" in document else document["manifests"]
    return [entry["digest"] for entry in entries]


def _nobody(request: httpx.Request) -> httpx.Response:
    message = f"nobody is at {request.url}"
    raise AssertionError(message)


def _line(request: httpx.Request) -> str:
    path = re.sub(r"sha256:([0-9a-f]{6})[0-9a-f]{58}", r"\1", request.url.path)
    return f"{request.method} {path.removeprefix('/v2/')}"


# -- faults ------------------------------------------------------------------------------


def answers(status: int, code: str = "UNKNOWN", headers: Mapping[str, str] | None = None) -> Fault:
    """Answer this instead of doing anything."""
    return lambda _request, _handle: problem(status, code, headers=headers)


def redirects(location: str, status: int = 307) -> Fault:
    """Send elsewhere."""
    return lambda _request, _handle: answer(status, headers={"Location": location})


def cut(_request: httpx.Request, _handle: Handle) -> httpx.Response:
    """Break the connection before anything arrives."""
    message = "connection reset by peer"
    raise httpx.ReadError(message)


def lose_answer(request: httpx.Request, handle: Handle) -> httpx.Response:
    """Do all of it, and break the connection before anybody hears of it."""
    handle(request)
    return cut(request, handle)


def keep(count: int) -> Fault:
    """Keep so many bytes of the body alone, and say so."""

    def fault(request: httpx.Request, handle: Handle) -> httpx.Response:
        data = b"".join(_body(request))[:count]
        return handle(httpx.Request(request.method, request.url, headers=_like(request), content=data))

    return fault


def cut_after(count: int) -> Fault:
    """Break the connection when so many bytes of the body have arrived; those are kept."""

    def fault(request: httpx.Request, handle: Handle) -> httpx.Response:
        keep(count)(request, handle)
        return cut(request, handle)

    return fault


def spoil(request: httpx.Request, handle: Handle) -> httpx.Response:
    """Flip a bit of what is sent."""
    data = flipped(b"".join(_body(request)))
    return handle(httpx.Request(request.method, request.url, headers=_like(request), content=data))


def _like(request: httpx.Request) -> dict[str, str]:
    return {name: text for name, text in request.headers.items() if name not in {"content-length", "content-range"}}


def first(act: Callable[[], object]) -> Fault:
    """Do something before the registry gets the request."""

    def fault(request: httpx.Request, handle: Handle) -> httpx.Response:
        act()
        return handle(request)

    return fault


def saying(**headers: str | None) -> Fault:
    """Do as asked, but answer with other headers; `None` takes one away."""

    def fault(request: httpx.Request, handle: Handle) -> httpx.Response:
        response = handle(request)
        for name, text in headers.items():
            response.headers.pop(name.replace("_", "-"), None)
            if text is not None:
                response.headers[name.replace("_", "-")] = text
        return response

    return fault


def sending(change: Callable[[bytes], bytes | Iterator[bytes]]) -> Fault:
    """Do as asked, but send another body."""

    def fault(request: httpx.Request, handle: Handle) -> httpx.Response:
        response = handle(request)
        assert isinstance(response.stream, httpx.SyncByteStream)
        changed = change(b"".join(response.stream))
        stream = httpx.ByteStream(changed) if isinstance(changed, bytes) else _Stream(changed)
        return httpx.Response(response.status_code, headers=response.headers, stream=stream)

    return fault


class _Stream(httpx.SyncByteStream):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces


def flipped(data: bytes) -> bytes:
    """One bit turned."""
    return data[:-1] + bytes([data[-1] ^ 1])


def broken_after(count: int) -> Callable[[bytes], Iterator[bytes]]:
    """So many bytes, then a broken connection."""

    def pieces(data: bytes) -> Iterator[bytes]:
        yield data[:count]
        message = "connection reset by peer"
        raise httpx.ReadError(message)

    return pieces


# -- a repository of it ------------------------------------------------------------------


class QuickClock:
    """A clock on which every wait is over at once, and remembered."""

    def __init__(self) -> None:
        self.waited_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.waited_s += seconds

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.waited_s, sleep=self.sleep)


class ScriptedLogin:
    """A login that knows the headers that it is given, one after another, and remembers for what it was asked."""

    source = "a scripted login"

    def __init__(self, *headers: str) -> None:
        self._headers = iter(headers)
        self._known: str | None = None
        self.challenges: list[list[str]] = []
        self.scopes: list[tuple[str, ...]] = []

    def header(self, _scopes: Sequence[str]) -> str | None:
        return self._known

    def answer(self, challenges: Sequence[str], scopes: Sequence[str], *, refused: str | None) -> str | None:
        assert refused == self._known
        self.challenges.append(list(challenges))
        self.scopes.append(tuple(scopes))
        self._known = next(self._headers)
        return self._known

    def refusal(self, what: str) -> RegistryRefused:
        return RegistryRefused(f"{what} ({self.source})")


def repository(
    fake: FakeRegistry,
    name: str = "team/service",
    *,
    login: ScriptedLogin | None = None,
    clock: Clock | None = None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Repository:
    """Return a repository of the fake; its waits are over at once."""
    transport = Transport(
        Url.parse(ADDRESS),
        client=FakeClient(fake),
        login=login or ScriptedLogin(),
        clock=clock or QuickClock().clock,
        warn=warn,
    )
    return Repository(Reference(host=HOST, path=name), transport)
