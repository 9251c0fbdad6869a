"""Names for what runs on this machine: a proxy that leads `*.test` to loopback, and nothing elsewhere.

Shipway speaks plain http to loopback hosts, and TLS to all others; a registry with TLS needs
a name that is not loopback's, and no test may change /etc/hosts. Every client in the tests
takes `HTTPS_PROXY`, and only the proxy has to know where a name leads.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PIECE_BYTES = 1 << 16


@contextlib.contextmanager
def tunnel() -> Iterator[str]:
    """Give the address for `HTTPS_PROXY`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        if not host.endswith(".test"):
            self.send_error(http.client.FORBIDDEN, "names that end in .test only")
            return
        try:
            there = socket.create_connection(("127.0.0.1", int(port)), timeout=10)
        except OSError:
            self.send_error(http.client.BAD_GATEWAY)
            return
        with there:
            there.settimeout(None)
            self.send_response(http.client.OK, "Connection established")
            self.end_headers()
            back = threading.Thread(target=_pump, args=(there, self.connection), daemon=True)
            back.start()
            _pump(self.connection, there)
            back.join()
        self.close_connection = True

    def log_message(self, *_args: object) -> None:
        """Keep quiet: pytest shows what matters."""


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE_BYTES):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
