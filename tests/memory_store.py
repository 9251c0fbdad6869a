"""Stores for tests: one in memory with a real store's behaviour, one that counts, one that fails."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from threading import Lock

from shipway.errors import ModelError, ModelMissing
from shipway.stores.objects import Found, Replaced, Store, Stored, require_small


class MemoryStore:
    """A `Store` in a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = Lock()

    def __str__(self) -> str:
        return "memory"

    def read(self, key: str) -> Stored | None:
        require_small(len(self.objects.get(key, b"")), f"{self}/{key}")
        return self._stored(key)

    def create(self, key: str, data: bytes) -> bool:
        with self._lock:
            is_new = key not in self.objects
            self.objects.setdefault(key, data)
            return is_new

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        with self._lock:
            stored = self._stored(key)
            if stored is None or stored.etag != etag:
                return False
            self.objects[key] = data
            return True

    def find(self, key: str) -> Found | None:
        stored = self._stored(key)
        return Found(size_bytes=len(stored.data), etag=stored.etag) if stored else None

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        data = b"".join(pieces)
        if len(data) != size_bytes:
            message = f"{key}: {len(data)} bytes, said {size_bytes}"
            raise AssertionError(message)
        self.objects[key] = data

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        stored = self._stored(key)
        if stored is None:
            message = f"there is no {key}"
            raise ModelMissing(message)
        if etag not in {None, stored.etag}:
            message = f"{key} was replaced"
            raise Replaced(message)
        data = stored.data[:stop]
        for at in range(start, len(data), 1000):
            yield data[at : at + 1000]

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def children(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        return sorted({key.removeprefix(prefix).split("/")[0] for key in self.objects if key.startswith(prefix)})

    def _stored(self, key: str) -> Stored | None:
        data = self.objects.get(key)
        return None if data is None else Stored(data=data, etag=hashlib.sha256(data).hexdigest())


class Wrapped:
    """Hands every call on to another store, and counts them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: Counter[str] = Counter()

    def __str__(self) -> str:
        return str(self._store)

    def read(self, key: str) -> Stored | None:
        self.calls["read"] += 1
        return self._store.read(key)

    def create(self, key: str, data: bytes) -> bool:
        self.calls["create"] += 1
        return self._store.create(key, data)

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        self.calls["replace"] += 1
        return self._store.replace(key, data, etag=etag)

    def find(self, key: str) -> Found | None:
        self.calls["find"] += 1
        return self._store.find(key)

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        self.calls["put"] += 1
        self._store.put(key, pieces, size_bytes=size_bytes)

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        self.calls["stream"] += 1
        return self._store.stream(key, start=start, stop=stop, etag=etag)

    def delete(self, key: str) -> None:
        self.calls["delete"] += 1
        self._store.delete(key)

    def children(self, folder: str) -> list[str]:
        self.calls["children"] += 1
        return self._store.children(folder)


Fault = Callable[[Iterator[bytes]], Iterator[bytes]]


class Faulty(Wrapped):
    """Sends what is stored through a fault, so many times."""

    def __init__(self, store: Store, fault: Fault, *, times: int) -> None:
        super().__init__(store)
        self._fault = fault
        self.times = times
        self.starts: list[int] = []

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        self.starts.append(start)
        pieces = super().stream(key, start=start, stop=stop, etag=etag)
        if self.times == 0:
            return pieces
        self.times -= 1
        return self._fault(pieces)


def reset(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Half of it, then a broken connection."""
    yield _half(pieces)
    message = "connection reset"
    raise ModelError(message)


def shortened(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Half of it, then a clean end."""
    yield _half(pieces)


def flipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """All of it, with one bit turned."""
    data = bytearray(b"".join(pieces))
    data[len(data) // 2] ^= 1
    yield bytes(data)


def lengthened(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """All of it, and a byte more."""
    yield from pieces
    yield b"!"


def _half(pieces: Iterator[bytes]) -> bytes:
    data = b"".join(pieces)
    return data[: len(data) // 2]
