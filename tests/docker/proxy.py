"""A test double in front of a real registry: counts what passes, and does harm where it is told to.

Owns one listener on loopback. Bodies are streamed both ways, connections are kept alive, and
each connection has a thread, and a connection to the registry, of its own. Without a plan
nothing is changed. What a plan does to a call is an `Act`; those below are the faults that
real registries, load balancers and networks show. The registry itself stays real: what can
be brought about behind the client's back (a session deleted, a blob collected) is.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from shipway.artifacts import Digest
from shipway.oci.compose import MANIFEST

PIECE_BYTES = 1 << 20
_LINGER_S, _SETTLE_S, _LOOK_S = 2.0, 20.0, 0.05
_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
_NO_BODY = {204, 304}


class Cut(Exception):
    """The connection to the client is reset."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One request as it came, and what became of it; `status` 0 means that no answer was begun.

    Headers have lower-case names, here and in an `Answer`. The bytes are those of the bodies:
    what came from the client, and what went back to it. They are final once it has its answer.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    received_bytes: int = 0
    sent_bytes: int = 0
    status: int = 0

    @property
    def size_bytes(self) -> int:
        """The length of the body that the client says it sends."""
        return int(self.headers.get("content-length", 0))

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back to the client. `clean_end`: where the body ends is said by closing alone."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Iterable[bytes] = ()
    clean_end: bool = False

    def having(self, **changed: str | None) -> Answer:
        """Return this with other headers: an underscore stands for a hyphen, `None` takes one away."""
        wanted = {**self.headers, **{name.replace("_", "-"): value for name, value in changed.items()}}
        headers = {name: value for name, value in wanted.items() if value is not None}
        return Answer(status=self.status, headers=headers, body=self.body, clean_end=self.clean_end)

    def with_body(self, body: Iterable[bytes], *, clean_end: bool = False) -> Answer:
        """Return this with another body."""
        return Answer(status=self.status, headers=self.headers, body=body, clean_end=clean_end)


Act = Callable[["Exchange"], None]
Plan = Callable[[Call], Act | None]


def no_harm(_call: Call) -> None:
    """Let everything pass: a `Plan`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secure:
    """TLS on both sides: the certificate that is shown, and the one that is believed."""

    listening: ssl.SSLContext
    asking: ssl.SSLContext


class Proxy:
    """A registry's address that is not quite the registry, or a store's; use it in a `with`."""

    def __init__(
        self, registry: str, *, plan: Plan = no_harm, authorization: str = "", secure: Secure | None = None
    ) -> None:
        """Stand in front of `registry`, `HOST:PORT`; `authorization` is added to what has none.

        With that it plays the storage behind a registry, whose addresses are signed and
        which must never see a credential.
        """
        self.registry = registry
        self.secure = secure
        self.plan = plan
        self.authorization = authorization
        self.calls: list[Call] = []
        self.ended = threading.Event()
        self.busy = 0
        self.idle = threading.Condition()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="proxy")

    @property
    def address(self) -> str:
        """`HOST:PORT`, for a repository's name."""
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()

    def settle(self) -> None:
        """Wait until nothing is under way any more."""
        with self.idle:
            assert self.idle.wait_for(lambda: not self.busy, _SETTLE_S), f"{self.busy} calls do not end"

    def forget(self) -> None:
        """Count from here."""
        self.calls = []

    def script(self, *faults: Fault) -> Script:
        """Do these from here on, and nothing else."""
        self.plan = script = Script(faults)
        return script

    def found(self, pattern: str = "") -> list[Call]:
        """Return the calls whose `METHOD PATH` has `pattern` in it."""
        return [call for call in self.calls if re.search(pattern, str(call))]

    def received_bytes(self, pattern: str = "") -> int:
        """Return how many bytes of bodies came from the client."""
        return sum(call.received_bytes for call in self.found(pattern))

    def sent_bytes(self, pattern: str = "") -> int:
        """Return how many bytes of bodies went back to it."""
        return sum(call.sent_bytes for call in self.found(pattern))


# -- what to do, and when ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Do `act` to calls whose `METHOD PATH` has `on` in it: to `times` of them, after `skip` others.

    `least_bytes`: only calls with so long a body fit.
    """

    act: Act
    on: str = ""
    least_bytes: int = 0
    skip: int = 0
    times: int = 1
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} on {self.on or 'anything'}, {self.times} times after {self.skip}"


class Script:
    """A `Plan`: some faults, each with a memory of the calls it has seen."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Do the first that fits."""
        self._faults = faults
        self._seen = [0] * len(faults)
        self._lock = threading.Lock()
        self.done = 0

    def __call__(self, call: Call) -> Act | None:
        """Return what to do to this call."""
        with self._lock:
            for number, fault in enumerate(self._faults):
                if re.search(fault.on, str(call)) and call.size_bytes >= fault.least_bytes:
                    self._seen[number] += 1
                    if fault.skip < self._seen[number] <= fault.skip + fault.times:
                        self.done += 1
                        return fault.act
        return None


class Exchange:
    """One call in the hands of an `Act`: forward it, answer it, both, or neither."""

    def __init__(self, call: Call, handler: _Handler, proxy: Proxy) -> None:
        """See `Proxy`."""
        self.call = call
        self._handler = handler
        self._proxy = proxy

    def body(self) -> Iterator[bytes]:
        """Yield what the client sends, or what is left of it."""
        for piece in self._handler.body:
            self.call.received_bytes += len(piece)
            yield piece

    def forward(
        self,
        *,
        body: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> Answer:
        """Send the call on, or this body of this `length` in its place; return what the registry answers."""
        given = dict(self.call.headers if headers is None else headers)
        if length is not None:
            given["content-length"] = str(length)
        return self._handler.ask(self.call.method, self.call.path, given, self.body() if body is None else body)

    def behind(self, method: str, path: str) -> int:
        """Ask the registry something that the client knows nothing of; return the status."""
        connection = http.client.HTTPConnection(self._proxy.registry, timeout=30)
        with contextlib.closing(connection):
            login = self._proxy.authorization or self.call.headers.get("authorization", "")
            headers = {"Accept": MANIFEST, **({"Authorization": login} if login else {})}
            connection.request(method, path, headers=headers)
            return connection.getresponse().status

    def wait(self, seconds: float) -> None:
        """Do nothing for so long; raises `Cut` when the client goes away meanwhile."""
        self._handler.wait(seconds)

    def reply(self, answer: Answer) -> None:
        """Answer the client; what it still sends then is read and thrown away."""
        self._handler.reply(answer, self.call)


def _pass(exchange: Exchange) -> None:
    exchange.reply(exchange.forward())


# -- the calls of a push, as `Fault.on` ------------------------------------------------------

LOOK = r"^HEAD .*/blobs/"
BEGIN = r"^POST "
SEND = r"^PATCH "
FINISH = r"^PUT .*/blobs/uploads/"
PUT_MANIFEST = r"^PUT .*/manifests/sha256:"
READ_MANIFEST = r"^GET .*/manifests/sha256:"
READ_BLOB = r"^GET .*/blobs/sha256:"
ASK_TAG = r"^HEAD .*/manifests/(?!sha256:)"
PUT_TAG = r"^PUT .*/manifests/(?!sha256:)"


# -- the faults: statuses and connections ----------------------------------------------------


def status(code: int, *, after: bool = False, headers: Mapping[str, str] | None = None) -> Act:
    """Answer with an error; `after` the registry did what was asked."""

    def act(exchange: Exchange) -> None:
        if after:
            drain(exchange.forward().body)
        drain(exchange.body())
        body = b"<html>an error of the proxy</html>"
        exchange.reply(Answer(status=code, headers={"content-length": str(len(body)), **(headers or {})}, body=[body]))

    return act


def cut_at_once(_exchange: Exchange) -> None:
    """Reset the connection before anything is done."""
    raise Cut


def lose_answer(exchange: Exchange) -> None:
    """Let the registry do it, then reset the connection."""
    drain(exchange.forward().body)
    raise Cut


def cut_upload(after_bytes: int) -> Act:
    """Reset the connection when so much of the body has come; the registry has got that."""
    return lambda exchange: exchange.reply(exchange.forward(body=_until(exchange.body(), after_bytes)))


def cut_download(after_bytes: int) -> Act:
    """Reset the connection when so much of the answer has gone."""
    return _changed(lambda answer: answer.with_body(_until(answer.body, after_bytes)))


def delay(seconds: float) -> Act:
    """Do nothing for a while, then what was asked."""

    def act(exchange: Exchange) -> None:
        exchange.wait(seconds)
        _pass(exchange)

    return act


def slow_upload(bytes_per_s: int) -> Act:
    """Read the body no faster than this."""

    def pieces(exchange: Exchange) -> Iterator[bytes]:
        for piece in exchange.body():
            exchange.wait(len(piece) / bytes_per_s)
            yield piece

    return lambda exchange: exchange.reply(exchange.forward(body=pieces(exchange)))


# -- the faults: answers that lie ------------------------------------------------------------


def end_short(missing_bytes: int) -> Act:
    """End the answer cleanly, without the last bytes, its length never said."""
    return _changed(
        lambda answer: answer.having(content_length=None).with_body(_without(answer, missing_bytes), clean_end=True)
    )


def shorten(missing_bytes: int) -> Act:
    """Take away the last bytes, and say a length that fits."""

    def change(answer: Answer) -> Answer:
        data = b"".join(_without(answer, missing_bytes))
        return answer.having(content_length=str(len(data))).with_body([data])

    return _changed(change)


def flip_a_bit(at_byte: int) -> Act:
    """Change one bit of the answer."""

    def change(answer: Answer) -> Answer:
        data = bytearray(b"".join(answer.body))
        if data:
            data[at_byte % len(data)] ^= 1
        return answer.with_body([bytes(data)])

    return _changed(change)


def answer_with(data: bytes, media_type: str) -> Act:
    """Answer a GET with something else."""
    headers = {"content-length": str(len(data)), "content-type": media_type}
    return lambda exchange: exchange.reply(Answer(status=200, headers=headers, body=[data]))


def say_it_is_there(sizes: Mapping[Digest, int]) -> Act:
    """Answer the HEAD of a blob as if it were there; `sizes` by digest."""

    def act(exchange: Exchange) -> None:
        digest = Digest(exchange.call.path.rpartition("/")[2])
        length = {"content-length": str(sizes[digest])} if digest in sizes else {}
        exchange.reply(Answer(status=200, headers={"docker-content-digest": digest, **length}))

    return act


def say_another_digest(exchange: Exchange) -> None:
    """Do what was asked, and say that something else came of it."""
    exchange.reply(exchange.forward().having(docker_content_digest="sha256:" + "0" * 64))


# -- the faults: uploads, addresses, logins --------------------------------------------------


def lose_session(exchange: Exchange) -> None:
    """Delete the upload session before the call that continues it."""
    exchange.behind("DELETE", exchange.call.path.partition("&digest=")[0])
    _pass(exchange)


def take_half(exchange: Exchange) -> None:
    """Give the registry half of the body; the client reads of the smaller Range in the registry's own answer."""
    half = exchange.call.size_bytes // 2
    data = b"".join(exchange.body())
    exchange.reply(exchange.forward(body=[data[:half]], length=half))


def locate_relatively(exchange: Exchange) -> None:
    """Say the Location without scheme and host."""
    answer = exchange.forward()
    where = urlsplit(answer.headers["location"])
    exchange.reply(answer.having(location=f"{where.path}?{where.query}" if where.query else where.path))


def locate_at(other: str) -> Act:
    """Say a Location on another host, `HOST:PORT`, where the same session goes on."""

    def change(answer: Answer) -> Answer:
        where = urlsplit(answer.headers["location"])
        return answer.having(location=where._replace(scheme="http", netloc=other).geturl())

    return _changed(change)


def redirect_to(other: str, code: int = 307) -> Act:
    """Send the client to another host, `HOST:PORT`, for the same thing."""

    def act(exchange: Exchange) -> None:
        drain(exchange.body())
        where = f"http://{other}{exchange.call.path}"
        exchange.reply(Answer(status=code, headers={"location": where, "content-length": "0"}))

    return act


def mount_declined(exchange: Exchange) -> None:
    """Open an upload session instead of mounting, as a registry may that cannot read the other repository."""
    path = exchange.call.path
    exchange.call.path = path.partition("?")[0]
    try:
        answer = exchange.forward()
    finally:
        exchange.call.path = path
    exchange.reply(answer)


def without_login(exchange: Exchange) -> None:
    """Let the registry see no login, as if it had run out: it answers 401 in its own words."""
    headers = {name: value for name, value in exchange.call.headers.items() if name != "authorization"}
    exchange.reply(exchange.forward(headers=headers))


def after_deleting(path: str) -> Act:
    """Delete something from the registry first, such as `/v2/NAME/blobs/DIGEST`."""

    def act(exchange: Exchange) -> None:
        exchange.behind("DELETE", path)
        _pass(exchange)

    return act


def _changed(change: Callable[[Answer], Answer]) -> Act:
    """Do what was asked, and change what is answered; an error is none of its business."""

    def act(exchange: Exchange) -> None:
        answer = exchange.forward()
        exchange.reply(change(answer) if answer.status < http.HTTPStatus.BAD_REQUEST else answer)

    return act


def _until(pieces: Iterable[bytes], limit: int) -> Iterator[bytes]:
    passed = 0
    for piece in pieces:
        yield piece[: limit - passed]
        passed += len(piece)
        if passed >= limit:
            raise Cut
    raise Cut


def _without(answer: Answer, missing_bytes: int) -> list[bytes]:
    data = b"".join(answer.body)
    return [data[: max(0, len(data) - missing_bytes)]]


def drain(pieces: Iterable[bytes]) -> None:
    """Read to the end."""
    for _ in pieces:
        pass


# -- HTTP ------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.open: set[socket.socket] = set()
        self.reset: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[Any, Any]:
        request, address = super().get_request()
        if self.proxy.secure:
            context = self.proxy.secure.listening
            request = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, address

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        if request in self.reset:  # closing alone resets it, see `_Handler.cut`
            self.reset.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def end_connections(self) -> None:
        for each in list(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client may go away at any time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()  # here and not in `accept`, which serves everybody
        super().setup()
        self.server.open.add(self.connection)
        self.registry = self._to_registry()
        self.body: Iterator[bytes] = iter(())

    def _to_registry(self) -> http.client.HTTPConnection:
        proxy = self.server.proxy
        if proxy.secure:
            return http.client.HTTPSConnection(proxy.registry, timeout=60, context=proxy.secure.asking)
        return http.client.HTTPConnection(proxy.registry, timeout=60)

    def finish(self) -> None:
        self.registry.close()
        super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        """Keep quiet."""

    def send_response_only(self, code: int, message: str | None = None) -> None:
        """Say no more than the status: the rest is the registry's to say."""
        self._headers_buffer = [f"HTTP/1.1 {code} {message or http.client.responses.get(code, '')}\r\n".encode()]

    def _serve(self) -> None:
        call = Call(method=self.command, path=self.path, headers=_lowered(self.headers.items()))
        proxy = self.server.proxy
        proxy.calls.append(call)
        self.body = self._read_body()
        with proxy.idle:
            proxy.busy += 1
        try:
            (proxy.plan(call) or _pass)(Exchange(call, self, proxy))
        except Cut:
            self._cut()
        finally:
            with proxy.idle:
                proxy.busy -= 1
                proxy.idle.notify_all()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names are the library's

    def wait(self, seconds: float) -> None:
        """See `Exchange.wait`."""
        gone = select.poll()
        gone.register(self.connection, select.POLLRDHUP)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.server.proxy.ended.wait(min(left, _LOOK_S)):
            if gone.poll(0):
                raise Cut

    def _cut(self) -> None:
        """Let the registry come to its end with what it has got, then reset the connection to the client."""
        if self.registry.sock is not None:
            with contextlib.suppress(OSError):
                self.registry.sock.shutdown(socket.SHUT_WR)
                self.registry.sock.settimeout(_LINGER_S)
                while self.registry.sock.recv(PIECE_BYTES):
                    pass
        self.registry.close()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.reset.add(self.connection)
        self.close_connection = True

    def _read_body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while left := int(self.rfile.readline().partition(b";")[0], 16):
                yield from self._read(left)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._read(int(self.headers.get("Content-Length", 0)))

    def _read(self, left: int) -> Iterator[bytes]:
        while left:
            piece = self.rfile.read1(min(left, PIECE_BYTES))
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
            yield piece

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: Iterable[bytes]) -> Answer:
        """Send a request on, and return the answer as it comes."""
        self.registry.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name not in _HOP_BY_HOP:
                self.registry.putheader(name, value)
        if self.server.proxy.authorization and "authorization" not in headers:
            self.registry.putheader("Authorization", self.server.proxy.authorization)
        chunked = "transfer-encoding" in headers and "content-length" not in headers
        if chunked:
            self.registry.putheader("Transfer-Encoding", "chunked")
        self.registry.endheaders()
        whole = self._send_on(body, chunked=chunked)
        answered = self.registry.getresponse()
        pieces = self._pieces(answered, reusable=whole)
        return Answer(status=answered.status, headers=_lowered(answered.getheaders()), body=pieces)

    def _send_on(self, body: Iterable[bytes], *, chunked: bool) -> bool:
        """Send the body on, unless the registry answers before it has all of it; say whether it has."""
        for piece in body:
            if select.select([self.registry.sock], [], [], 0)[0]:
                return False
            try:
                self.registry.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            except ConnectionError:
                return False
        if chunked:
            self.registry.send(b"0\r\n\r\n")
        return True

    def _pieces(self, answered: http.client.HTTPResponse, *, reusable: bool) -> Iterator[bytes]:
        with answered:
            while piece := answered.read1(PIECE_BYTES):
                yield piece
        if not reusable:
            self.registry.close()

    def reply(self, answer: Answer, call: Call) -> None:
        """Answer, with a length, in chunks, or until the connection ends."""
        call.status = answer.status
        bare = self.command == "HEAD" or answer.status in _NO_BODY
        chunked = not bare and "content-length" not in answer.headers and not answer.clean_end
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name not in _HOP_BY_HOP:
                self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        early = next(self.body, None)
        if answer.clean_end or early is not None:
            self.send_header("Connection", "close")
        self.end_headers()
        for piece in () if bare else answer.body:
            call.sent_bytes += len(piece)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        if bare:
            drain(answer.body)
        if early is not None:
            call.received_bytes += len(early)
            self._linger(call)

    def _linger(self, call: Call) -> None:
        """Let a client that still sends read the answer before the connection goes, as servers do."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_LINGER_S)
        with contextlib.suppress(OSError):
            for piece in self.body:
                call.received_bytes += len(piece)


def _lowered(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}
