"""A real registry for one benchmark, behind a wire that counts what moves in each direction.

Owns Debian's `docker-registry` on loopback and the listener in front of it. Counts every
byte of the connections, requests' headers and all, the same for whoever talks to it. Both
are gone, with all that was stored, when the `with` ends.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_START_S = 20.0
_PIECE_BYTES = 1 << 20
_CONFIG = """\
version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {root}
http:
  addr: {address}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Bytes to the registry, and back from it."""

    sent: int = 0
    received: int = 0

    def __sub__(self, earlier: Moved) -> Moved:
        return Moved(sent=self.sent - earlier.sent, received=self.received - earlier.received)


class Wire:
    """A listener that passes everything on to `address`, and counts it."""

    def __init__(self, address: tuple[str, int], *, listen: str = "127.0.0.1") -> None:
        """Listen on a free port of `listen`."""
        self._address = address
        self._listener = socket.create_server((listen, 0), backlog=64)
        self._counts = {"sent": 0, "received": 0}
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """`HOST:PORT`, as it stands in a repository's name."""
        return "{}:{}".format(*self._listener.getsockname())

    def beside(self, listen: str) -> Wire:
        """Return another way to the same place, which counts for itself."""
        return Wire(self._address, listen=listen)

    @property
    def moved(self) -> Moved:
        """What has moved until now."""
        with self._lock:
            return Moved(**self._counts)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                registry = socket.create_connection(self._address)
                for each in (client, registry):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for direction in ((client, registry, "sent"), (registry, client, "received")):
                    threading.Thread(target=self._pass_on, args=direction, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        piece = memoryview(bytearray(_PIECE_BYTES))
        with contextlib.suppress(OSError):  # either side may go away at any time
            while count := source.recv_into(piece):
                with self._lock:
                    self._counts[way] += count
                sink.sendall(piece[:count])
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[Wire]:
    """Start a registry that keeps its blobs in `folder`."""
    program = shutil.which("docker-registry")
    if program is None:
        message = "there is no docker-registry on the PATH: apt-get install docker-registry"
        raise FileNotFoundError(message)
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address: tuple[str, int] = free.getsockname()
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(root=folder / "storage", address="{}:{}".format(*address)))
    with subprocess.Popen([program, "serve", config], stderr=(folder / "log").open("wb")) as process:
        try:
            _wait(address)
            with Wire(address) as wire:
                yield wire
        finally:
            process.terminate()


def _wait(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address):
            return
        time.sleep(0.05)
    message = f"the registry did not get ready in {_START_S:.0f} s"
    raise TimeoutError(message)
