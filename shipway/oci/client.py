"""HTTP/1.1 to one registry and those that it leads to: connections, whom they trust, which proxies they use.

Owns sockets: connections are kept and used again, and `abandon` ends at once what any thread
waits for, also a connection that nobody answers. Follows no redirect, keeps no cookie, asks
nothing twice. Knows no registry's protocol. What goes wrong on the way raises `NoAnswer`;
what the settings or the environment say wrongly, `ConfigError`. Python's own `http.client`:
the larger libraries take longer to import than a push takes.
https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import os
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from shipway import __version__
from shipway.entra import within
from shipway.errors import ConfigError, RegistryUnreachable
from shipway.oci.address import Url
from shipway.oci.reference import Reference, is_loopback

USER_AGENT = f"shipway/{__version__}"
_PIECE_BYTES = 1 << 16
_TICK_S = 0.1
_IDLE = 8  # connections kept for each origin


class NoAnswer(Exception):
    """The request, or its answer, did not come through."""

    def __init__(self, kind: str, text: str) -> None:
        """Take what kind of failure it was, and what it was."""
        super().__init__(f"{kind}: {text}")
        self.text = text


class Request(Struct, frozen=True, kw_only=True):
    """What is sent. `pieces` are `size_bytes` in all; each wait may take `timeout_s`, the connection `connect_s`."""

    method: str
    url: Url
    headers: Mapping[str, str] = {}
    pieces: Iterable[bytes] | None = None
    size_bytes: int = 0
    timeout_s: float
    connect_s: float

    @property
    def lines(self) -> Mapping[str, str]:
        """All headers, as few as will do: on a slow line they are most of a small push."""
        sent = {"Host": self.url.netloc, "User-Agent": USER_AGENT, **self.headers}
        if self.pieces is not None:
            sent["Content-Length"] = str(self.size_bytes)
        elif self.method == "GET":
            sent["Accept-Encoding"] = "identity"  # what is asked for is known by its digest
        return sent


class Response:
    """An answer whose body is still to be read; close it."""

    def __init__(
        self, status: int, headers: Message, url: Url, pieces: Iterator[bytes], close: Callable[[], None]
    ) -> None:
        """Take the body's bytes, and what is to be done when nobody wants more of them."""
        self.status = status
        self.headers = headers
        self.url = url
        self.close = close
        self._pieces = pieces

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it came over the wire; raises `NoAnswer` when it ends too early."""
        return self._pieces


class Client:
    """Connections; thread-safe."""

    def __init__(self, registry: Reference, *, authority: Path | None = None) -> None:
        """Connect to nobody yet; `authority` vouches for servers besides those whom everybody trusts."""
        self._authority = authority
        # No proxy leads back to this machine; a registry's token service or storage is reached as it is itself.
        self._proxies = not is_loopback(registry.host)
        self._idle: dict[tuple[str, str, int], list[http.client.HTTPConnection]] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._abandoned = 0
        self._lock = threading.Lock()
        self._trusting: ssl.SSLContext | None = None

    def send(self, request: Request) -> Response:
        """Make a request; return the answer once its headers are there. What `pieces` raises passes."""
        with _on_the_network():
            connection = self._connection(request)
        try:
            return self._asked(connection, request)
        except BaseException:
            connection.close()
            raise

    def abandon(self) -> None:
        """Cut every connection; what comes afterwards makes new ones."""
        with self._lock:
            self._abandoned += 1
            sockets = list(self._sockets)
            self._sockets.clear()
        self.close()  # first, so that whoever wakes takes none that is cut next
        for each in sockets:
            with contextlib.suppress(OSError):  # closed already, or not connected yet
                each.shutdown(socket.SHUT_RDWR)  # unlike closing, this wakes who reads or writes

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            connections = [each for kept in self._idle.values() for each in kept]
            self._idle.clear()
        for each in connections:
            each.close()

    # -- asking --------------------------------------------------------------------------

    def _asked(self, connection: http.client.HTTPConnection, request: Request) -> Response:
        with _on_the_network():
            self._begin(connection, request)
        for piece in request.pieces or ():
            with _on_the_network():
                try:
                    connection.send(piece)
                except (BrokenPipeError, ConnectionResetError):
                    break  # it may have said why before it closed
        with _on_the_network():
            answer = connection.getresponse()

        def close() -> None:
            answer.close()  # it has the socket too, and alone where the server closes after it
            connection.close()

        return Response(answer.status, answer.headers, request.url, self._body(answer, connection, request.url), close)

    def _begin(self, connection: http.client.HTTPConnection, request: Request) -> None:
        connection.putrequest(request.method, request.url.target, skip_host=True, skip_accept_encoding=True)
        for name, text in request.lines.items():
            connection.putheader(name, text)
        connection.endheaders()

    def _body(
        self, answer: http.client.HTTPResponse, connection: http.client.HTTPConnection, url: Url
    ) -> Iterator[bytes]:
        """Yield the body; once it is whole, the connection can be used again."""
        while True:
            with _on_the_network():
                piece = answer.read1(_PIECE_BYTES)
            if not piece:
                break
            yield piece
        if answer.length:
            raise NoAnswer("ReadError", f"the body ended {answer.length} bytes too early")
        if not answer.will_close:
            answer.close()
            self._keep(connection, url)

    # -- connections ---------------------------------------------------------------------

    def _connection(self, request: Request) -> http.client.HTTPConnection:
        """Return a connection that is not in use, a new one if need be."""
        origin = request.url.origin
        while True:
            with self._lock:
                kept = self._idle.get(origin)
                connection = kept.pop() if kept else None
            if connection is None:
                break
            if connection.sock is not None and not _is_readable(connection.sock):
                connection.sock.settimeout(request.timeout_s)
                return connection
            connection.close()  # the server has closed it, or said what nobody asked
        connection = _unconnected(request.url)
        connection.sock = self._connected(request.url, request.connect_s)
        connection.sock.settimeout(request.timeout_s)
        return connection

    def _keep(self, connection: http.client.HTTPConnection, url: Url) -> None:
        sock = connection.sock
        if sock is None:
            return
        # The response that is closed later closes its connection; from here on this one belongs to another.
        fresh = _unconnected(url)
        connection.sock, fresh.sock = None, sock
        with self._lock:
            kept = self._idle.setdefault(url.origin, [])
            if len(kept) < _IDLE and sock in self._sockets:  # and not abandoned meanwhile
                kept.append(fresh)
                return
        fresh.close()

    def _connected(self, url: Url, timeout_s: float) -> socket.socket:
        until = time.monotonic() + timeout_s
        proxy = _proxy(url) if self._proxies else None
        scheme, host, port = url.origin
        if scheme not in {"http", "https"}:
            raise NoAnswer("ConnectError", f"{scheme or 'nothing'} is no scheme that is spoken here")
        sock = self._opened(*(proxy.address if proxy else (host, port)), until)
        try:
            sock.settimeout(max(_TICK_S, until - time.monotonic()))
            if proxy:
                _through(sock, proxy, host, port)
            if scheme == "https":
                sock = self._trusted().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                self._remember(sock)
                sock.do_handshake()
        except BaseException:
            sock.close()
            raise
        return sock

    def _opened(self, host: str, port: int, until: float) -> socket.socket:
        """Return a socket that is connected to the first address that answers."""
        before = self._abandoned

        def go_on() -> bool:
            return self._abandoned == before

        failure = OSError(f"{host} has no address")
        for family, address in _addresses(host, port, until, go_on):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                self._remember(sock)
                _connect(sock, address, until, go_on)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise NoAnswer("ConnectError", f"{failure.strerror or failure}") from failure

    def _remember(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)

    def _trusted(self) -> ssl.SSLContext:
        with self._lock:
            if self._trusting is None:
                self._trusting = _trusting(self._authority)
            return self._trusting


@contextlib.contextmanager
def _on_the_network() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise NoAnswer("Timeout", f"{error.strerror or 'no answer in time'}") from error
    except OSError as error:
        raise NoAnswer("ReadError", f"{error.strerror or error}") from error
    except http.client.HTTPException as error:
        raise NoAnswer("RemoteProtocolError", f"{error or type(error).__name__}") from error


def _unconnected(url: Url) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(url.origin[1], url.origin[2])
    connection.auto_open = 0
    return connection


def untrusted(what: str, error: BaseException) -> RegistryUnreachable | None:
    """Return the error for a certificate that nobody here vouches for, if it is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RegistryUnreachable(
                f"{what}: the certificate is not trusted: {cause.verify_message}",
                advice="name the certificate authority's PEM file in [push] authority",
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _is_readable(sock: socket.socket) -> bool:
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(0))


def _addresses(host: str, port: int, until: float, go_on: Callable[[], bool]) -> Iterator[tuple[int, Any]]:
    """Yield families and addresses; a name service may be as silent as anybody."""
    name = host.encode() if host.isascii() else host  # a text would be taken for an international name, at 3 ms
    look_up = partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
    found = look_up() if is_loopback(host) else within(until - time.monotonic(), look_up, go_on=go_on)
    for family, _, _, _, address in found:
        yield family, address


def _connect(sock: socket.socket, address: Any, until: float, go_on: Callable[[], bool]) -> None:
    """Connect, looking up now and then whether anybody still waits: a network may swallow every packet."""
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        waiting = select.poll()
        waiting.register(sock, select.POLLOUT)
        while go_on() and not waiting.poll(_TICK_S * 1000):
            if time.monotonic() > until:
                raise TimeoutError(errno.ETIMEDOUT, "nobody answers there") from None
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code)) from None
    if not go_on():
        raise ConnectionAbortedError(errno.ECONNABORTED, "nobody waits for it any more")
    sock.setblocking(True)


# -- proxies -------------------------------------------------------------------------------


class _Proxy(Struct, frozen=True, kw_only=True):
    address: tuple[str, int]
    authorization: str | None


def _proxy(url: Url) -> _Proxy | None:
    """Return the proxy that the environment names for an address, if it names one."""
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - not for a registry on this machine

    if is_loopback(url.host) or proxy_bypass(url.netloc):
        return None
    found = getproxies()
    text = found.get(url.scheme) or found.get("all") or ""
    if not text:
        return None
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if parts.scheme != "http" or not host:
        raise ConfigError(
            f"the proxy that the environment names cannot be used: it is no http://HOST:PORT but {parts.scheme}://…",
            advice="correct HTTPS_PROXY, or except the registry from it with NO_PROXY",
        )
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    packed = base64.b64encode(login.encode()).decode("ascii") if parts.username else None
    return _Proxy(address=(host, port), authorization=f"Basic {packed}" if packed else None)


def _through(sock: socket.socket, proxy: _Proxy, host: str, port: int) -> None:
    """Let the proxy connect us to the host."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}", f"User-Agent: {USER_AGENT}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    with contextlib.closing(http.client.HTTPResponse(sock, method="CONNECT")) as answer:
        answer.begin()  # nobody speaks on the other side before we do, so no byte of theirs is read here
    if answer.status != http.client.OK:
        said = f"the proxy {proxy.address[0]}:{proxy.address[1]} says {answer.status} {answer.reason}"
        raise NoAnswer("ProxyError", said)


# -- trust -----------------------------------------------------------------------------------


def _trusting(authority: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):  # a slim image without the system's own list
        with contextlib.suppress(ImportError):
            import certifi  # noqa: PLC0415

            context.load_verify_locations(cafile=certifi.where())
    try:
        if authority:
            context.load_verify_locations(cafile=authority)
    except OSError as error:
        raise ConfigError(f"[push] authority: {authority} is no file of certificates in PEM ({error})") from error
    return context
