"""A wire that lets each connection carry so much and no more: `python -m benchmarks.slow PORT BYTES_PER_S`.

A process of its own, so that what it does is not counted as anybody's; it prints the port that
it listens on, and passes on bytes to `PORT` of loopback, TLS and all, as it is told nothing of
what they mean. A store in a cloud behaves so: one connection is slow, and many are not.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

_PIECE_BYTES = 1 << 17


@contextlib.contextmanager
def slow(port: int, bytes_per_s: int) -> Iterator[int]:
    """Give the port that leads to `port`, slowly."""
    argv = [sys.executable, "-m", "benchmarks.slow", str(port), str(bytes_per_s)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout  # noqa: S101 - for mypy
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def main() -> None:
    """Pass on what comes, until the process is ended."""
    port, bytes_per_s = int(sys.argv[1]), int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for way in ((client, server), (server, client)):
            threading.Thread(target=_pass_on, args=(*way, bytes_per_s), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, bytes_per_s: int) -> None:
    """Never faster than the limit, and with no credit for time in which nothing came."""
    free_at = time.monotonic()
    piece = memoryview(bytearray(_PIECE_BYTES))
    with contextlib.suppress(OSError):  # either side may go away at any time
        while count := source.recv_into(piece):
            free_at = max(free_at, time.monotonic()) + count / bytes_per_s
            sink.sendall(piece[:count])
            if (wait_s := free_at - time.monotonic()) > 0:
                time.sleep(wait_s)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
