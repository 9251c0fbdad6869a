"""Which files of a cache are in use, told from one process to the others.

Owns a file for each process, whose lock says that the process lives: the kernel frees it,
however the process ends. What was used once stays in use until then, since a path that was
handed out may be read at any time. Knows nothing of what the names mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from shipway.stores import durable


@cache
def uses_of(folder: Path) -> Uses:
    """Return this process's uses of the cache that keeps them in this folder."""
    return Uses(folder)


class Uses:
    """What one process uses, and a look at what all do."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it comes into being with the first use."""
        self._folder = folder
        self._own: int | None = None  # a bare descriptor, which nothing closes before the process ends
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        """Tell that this process uses a file, and will until it ends; nobody removes it from now on."""
        with self._lock:
            if name in self._told:
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            with self.alone():
                if self._own is None:
                    path = self._folder / f"{os.getpid()}-{secrets.token_hex(8)}.use"
                    self._own = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                    fcntl.flock(self._own, fcntl.LOCK_EX)
                os.write(self._own, f"{name}\n".encode())
            self._told.add(name)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all processes from telling anything meanwhile."""
        with durable.locked(self._folder / "lock", create=True):
            yield

    def all(self) -> frozenset[str]:
        """Return what living processes use, and forget the dead; call it `alone`."""
        return frozenset(name for path in self._folder.glob("*.use") for name in _living(path))

    def close(self) -> None:
        """Use nothing any more, as the end of the process would."""
        with self._lock:
            if self._own is not None:
                os.close(self._own)
            self._own, self._told = None, set()


def _living(path: Path) -> list[str]:
    """Return what a process told, or nothing if it is dead: then its file goes too."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode().split()
        path.unlink()
    return []
