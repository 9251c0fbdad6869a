"""The HTTP client, on real connections of this machine: kept, cut, abandoned, led through a proxy."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

import pytest

from shipway import __version__
from shipway.oci.address import Url
from shipway.oci.client import Client, NoAnswer, Request
from shipway.oci.reference import Reference
from tests.silence import swallowing

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
FAR = Reference(host="registry.example", path="x")  # not loopback: the environment's proxies count


class Server:
    """Answers each request on each connection with the next of its scripted answers; `None` closes instead."""

    def __init__(self, answers: list[bytes | None], *, reads: int = 1 << 20) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answers = iter(answers)
        self._reads = reads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def url(self, path: str = "/v2/") -> Url:
        return Url.parse(f"http://127.0.0.1:{self.port}{path}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def cut(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)  # first, or one that is taken last would be closed by nobody
        self._listener.close()
        self.cut()
        for each in self._open:
            each.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._speak, args=(connection,), daemon=True).start()

    def _speak(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(self._reads):
                self.requests.append(data)
                answer = next(self._answers, b"")  # to more than was expected it says nothing
                if answer is None:
                    break
                connection.sendall(answer)
                if b"Connection: close" in answer:
                    break
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def client() -> Iterator[Client]:
    with contextlib.closing(Client(Reference(host="127.0.0.1", path="x"))) as client:
        yield client


def _request(url: Url, method: str = "GET", **more: object) -> Request:
    return Request(method=method, url=url, timeout_s=20, connect_s=20, **more)  # type: ignore[arg-type]


def _body(client: Client, url: Url, method: str = "GET") -> bytes:
    response = client.send(_request(url, method))
    with contextlib.closing(response):
        return b"".join(response.pieces())


def _taken(within_s: float, work: Callable[[], object]) -> float:
    began = time.monotonic()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(within_s)
    assert not thread.is_alive()
    return time.monotonic() - began


def test_connection_is_used_again_when_the_answer_was_read(client: Client) -> None:
    with Server([OK, OK, OK]) as server:
        bodies = [_body(client, server.url()) for _ in range(3)]

        assert (bodies, server.connections) == ([b"hi"] * 3, 1)


def test_connection_is_not_used_again_when_the_answer_was_left(client: Client) -> None:
    with Server([OK, OK]) as server:
        client.send(_request(server.url())).close()

        assert (_body(client, server.url()), server.connections) == (b"hi", 2)


def test_new_connection_is_made_when_the_server_has_closed_the_kept_one(client: Client) -> None:
    with Server([OK.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n"), OK]) as server:
        first = _body(client, server.url())
        server.cut()
        time.sleep(0.05)

        assert (first, _body(client, server.url()), server.connections) == (b"hi", b"hi", 2)


def test_request_has_the_fewest_headers_that_will_do(client: Client) -> None:
    with Server([OK.replace(b"hi", b"")]) as server:
        client.send(_request(server.url("/v2/a?b=c%2Fd"), "HEAD")).close()

        assert server.requests[0].decode().split("\r\n") == [
            "HEAD /v2/a?b=c%2Fd HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            f"User-Agent: shipway/{__version__}",
            *("", ""),
        ]


def test_answer_is_read_when_the_server_refuses_before_it_has_all(client: Client) -> None:
    refused = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with Server([refused], reads=1000) as server:
        pieces = (bytes(1 << 16) for _ in range(1000))
        status = None
        with contextlib.suppress(NoAnswer):  # the reset may overtake the answer
            status = client.send(_request(server.url(), "PATCH", pieces=pieces, size_bytes=1000 << 16)).status

    assert status in {413, None}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n9\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\nhi",
        b"what is this?\r\nConnection: close\r\n\r\n",
        None,
    ],
    ids=["short", "short chunk", "no chunk", "no HTTP", "nothing"],
)
def test_broken_answer_is_no_answer(client: Client, answer: bytes | None) -> None:
    with Server([answer]) as server, pytest.raises(NoAnswer):
        _body(client, server.url())


def test_chunked_answer_is_read_whole(client: Client) -> None:
    with Server([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n", OK]) as server:
        assert [_body(client, server.url()) for _ in range(2)] == [b"hi!", b"hi"]
        assert server.connections == 1


def test_error_of_the_source_passes_when_it_is_one_of_the_disk(client: Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"1"
        raise FileNotFoundError("model.onnx")

    with Server([OK]) as server, pytest.raises(FileNotFoundError):
        client.send(_request(server.url(), "PUT", pieces=pieces(), size_bytes=2))


def test_nobody_is_no_answer(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(NoAnswer, match="ConnectError: Connection refused"):
        client.send(_request(Url.parse(f"http://127.0.0.1:{port}/")))


# -- abandoned -------------------------------------------------------------------------------


def test_wait_for_an_answer_ends_when_the_client_is_abandoned(client: Client) -> None:
    with Server([b""]) as server:  # which is no answer
        threading.Timer(0.3, client.abandon).start()

        assert _taken(10, lambda: _fails(client, server.url())) < 5


def test_connecting_ends_when_the_client_is_abandoned_and_nobody_answers(client: Client) -> None:
    with swallowing() as port:
        threading.Timer(0.3, client.abandon).start()

        assert _taken(10, lambda: _fails(client, Url.parse(f"http://127.0.0.1:{port}/"))) < 5


def test_connecting_ends_in_time_when_nobody_answers(client: Client) -> None:
    with swallowing() as port, pytest.raises(NoAnswer, match="ConnectError: nobody answers there"):
        client.send(Request(method="GET", url=Url.parse(f"http://127.0.0.1:{port}/"), timeout_s=20, connect_s=0.3))


def _fails(client: Client, url: Url) -> None:
    with pytest.raises(NoAnswer):
        client.send(_request(url))


def test_client_goes_on_when_it_was_abandoned(client: Client) -> None:
    with Server([OK, OK]) as server:
        first = _body(client, server.url())
        client.abandon()

        assert (first, _body(client, server.url()), server.connections) == (b"hi", b"hi", 2)


def test_connection_that_is_cut_next_is_given_to_nobody_while_the_client_is_abandoned(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[int] = []
    shutdown = socket.socket.shutdown

    def after_another_request(sock: socket.socket, how: int) -> None:
        if threading.current_thread() is threading.main_thread() and not connections:
            _body(client, server.url())
            connections.append(server.connections)
        shutdown(sock, how)

    with Server([OK] * 3) as server:
        _body(client, server.url())
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "shutdown", after_another_request)
            client.abandon()
        _body(client, server.url())

        assert [*connections, server.connections] == [2, 2]  # a new one, which is kept


def test_threads_have_connections_of_their_own(client: Client) -> None:
    with Server([OK] * 40) as server:
        threads = [threading.Thread(target=partial(_body, client, server.url())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(server.requests) == 8
        assert 1 <= server.connections <= 8


# -- proxies ---------------------------------------------------------------------------------


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.closing(Client(FAR)) as client:
        yield client


def test_proxy_is_told_where_to_and_who_asks(far: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server([b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:open%20sesame@127.0.0.1:{proxy.port}")

        with pytest.raises(NoAnswer, match=r"ProxyError: the proxy 127.0.0.1:\d+ says 407") as caught:
            far.send(_request(Url.parse("https://registry.example/v2/")))

        lines = proxy.requests[0].decode().split("\r\n")
    assert lines[:2] == ["CONNECT registry.example:443 HTTP/1.1", "Host: registry.example:443"]
    assert "Proxy-Authorization: Basic YW5uOm9wZW4gc2VzYW1l" in lines
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("excepted", ["registry.example", ".example", "*"])
def test_proxy_is_left_out_when_the_environment_says_so(
    far: Client, monkeypatch: pytest.MonkeyPatch, excepted: str
) -> None:
    with Server([]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", excepted)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])

        with pytest.raises(NoAnswer, match="has no address"):
            far.send(_request(Url.parse("https://registry.example/v2/")))
        assert proxy.connections == 0


def test_no_proxy_leads_back_to_this_machine(far: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server([OK]) as server:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

        assert _body(far, server.url()) == b"hi"
