"""Large objects in ranges, many at a time: down into a file, down in order, up in blocks.

Owns the threads, and a file's form while it is fetched: of the right size from the first byte
on, each range written in its place, and after the end four bytes for each range that say how
much of it has arrived. Knows neither stores nor models; memory does not grow with an object.
Threads are never waited for: an answer that does not come must not keep a command from its
end, and what comes too late is not written.
"""

from __future__ import annotations

import hashlib
import os
import queue
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import BinaryIO, Protocol, TypeVar

from shipway.errors import ModelCorrupt, ModelError
from shipway.stores import durable
from shipway.stores.objects import Found

RANGE_BYTES = 8 << 20
THREADS = 32  # of a download into a file
THREAD_NAME = "shipway-range"
_AHEAD_BYTES, _AHEAD_THREADS = 1 << 20, 8  # in memory, and the allocator keeps as much again for each thread
_SHORT_TRIES = 3
_HELD = struct.Struct("<I")

_Task = TypeVar("_Task")
_Done = TypeVar("_Done")


class Unasked(ModelCorrupt):
    """A store sent what nobody asked for."""


class Source(Protocol):
    """One large object: `Store.find` and `Store.stream` of its key; `str()` of it says where it is, for people."""

    def find(self) -> Found | None:
        """Return what is known of it, or `None` when it is not there."""

    def stream(self, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """Yield its bytes from `start` to before `stop`."""


class Part:
    """A file on its way: its ranges, and how much of each is there; one attempt at filling it."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        """Go on with what the file holds, if it has the form of such a part."""
        self.size_bytes = size_bytes
        self.count = -(-size_bytes // RANGE_BYTES)
        self._file = file.fileno()
        self._lock = threading.Lock()
        self._closed = False
        length = size_bytes + self.count * _HELD.size
        if os.fstat(self._file).st_size != length:
            os.ftruncate(self._file, 0)
            os.ftruncate(self._file, length)

    def bounds(self, index: int) -> tuple[int, int]:
        """Return where a range begins, and where the next one does."""
        return index * RANGE_BYTES, min(self.size_bytes, (index + 1) * RANGE_BYTES)

    def held(self, index: int) -> int:
        """Return how many bytes of a range have arrived."""
        start, stop = self.bounds(index)
        (held,) = _HELD.unpack(os.pread(self._file, _HELD.size, self.size_bytes + index * _HELD.size))
        return min(int(held), stop - start)

    @property
    def held_bytes(self) -> int:
        """How much of the file has arrived."""
        return sum(self.held(index) for index in range(self.count))

    def append(self, index: int, piece: bytes) -> None:
        """Write what came next of a range. Raises `Unasked` when too much came, or too late."""
        start, stop = self.bounds(index)
        with self._lock:
            at = start + self.held(index)
            if self._closed or at + len(piece) > stop:
                raise Unasked("more came than was asked for, or when nobody waited any more")
            _write(self._file, piece, at)
            _write(self._file, _HELD.pack(at + len(piece) - start), self.size_bytes + index * _HELD.size)

    def read(self, index: int) -> Iterator[bytes]:
        """Yield a range."""
        at, stop = self.bounds(index)
        while piece := os.pread(self._file, min(durable.PIECE_BYTES, stop - at), at):
            at += len(piece)
            yield piece

    def close(self) -> None:
        """Let nothing be written any more."""
        with self._lock:
            self._closed = True

    def finish(self) -> None:
        """Make the file what it is to be."""
        os.ftruncate(self._file, self.size_bytes)


def fill(part: Part, source: Source, *, etag: str | None, advance: Callable[[int], None]) -> str:
    """Fetch what is missing, and return the SHA-256 of the whole; hashed in order, while more arrives."""
    fetch = partial(_fetch, part, source, etag, advance)
    missing = dict.fromkeys(index for index in range(part.count) if _left(part, index))
    hashed = hashlib.sha256()
    try:
        arriving = in_order(missing, fetch, threads=THREADS, ahead=part.count)
        for index in range(part.count):
            if index in missing:
                next(arriving)
            for piece in part.read(index):
                hashed.update(piece)
    finally:
        part.close()
    return hashed.hexdigest()


def ahead(source: Source, size_bytes: int) -> Iterator[bytes]:
    """Yield an object in order, some ranges of it on their way at any time. Raises `Unasked`."""
    if size_bytes <= _AHEAD_BYTES:
        yield from at_most(size_bytes, source.stream(start=0, stop=size_bytes), str(source))
        return
    found = source.find()
    etag = found.etag if found else None

    def fetch(start: int) -> list[bytes]:
        stop = min(size_bytes, start + _AHEAD_BYTES)
        return list(at_most(stop - start, source.stream(start=start, stop=stop, etag=etag), str(source)))

    for pieces in in_order(range(0, size_bytes, _AHEAD_BYTES), fetch, threads=_AHEAD_THREADS, ahead=_AHEAD_THREADS):
        yield from pieces


def at_most(size_bytes: int, pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Yield what comes; raises `Unasked` when that is more than was asked for."""
    left = size_bytes
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise Unasked(f"{where}: more came than was asked for")
        yield piece


def send(
    pieces: Iterable[bytes], size_bytes: int, block_bytes: int, work: Callable[[int, bytes], _Done], *, threads: int
) -> list[_Done]:
    """Do `work` with each block's number, from 1, and bytes; return what it made, in order.

    No more blocks are in memory than are under way. Raises `ModelError` when another number
    of bytes came than was said.
    """
    free, came = threading.Semaphore(threads), 0

    def numbered() -> Iterator[tuple[int, bytes]]:
        nonlocal came
        for number, block in enumerate(blocks(pieces, block_bytes), start=1):
            came += len(block)
            yield number, block
            free.acquire()

    def work_once(task: tuple[int, bytes]) -> _Done:
        try:
            return work(*task)
        finally:
            free.release()

    done = list(in_order(numbered(), work_once, threads=threads, ahead=size_bytes))
    require_size(came, size_bytes)
    return done


def blocks(pieces: Iterable[bytes], block_bytes: int) -> Iterator[bytes]:
    """Yield the same bytes in blocks of this size, the last one shorter."""
    held: list[bytes] = []
    held_bytes = 0
    for piece in pieces:
        view = memoryview(piece)
        while held_bytes + len(view) >= block_bytes:
            part, view = view[: block_bytes - held_bytes], view[block_bytes - held_bytes :]
            yield b"".join([*held, part])
            held, held_bytes = [], 0
        if view:
            held.append(bytes(view))
            held_bytes += len(view)
    if held:
        yield b"".join(held)


def require_size(came: int, size_bytes: int) -> None:
    """Raise `ModelError` unless as much came to be stored as was said."""
    if came != size_bytes:
        raise ModelError(f"{came:,} of {size_bytes:,} bytes came to be stored")


def in_order(tasks: Iterable[_Task], work: Callable[[_Task], _Done], *, threads: int, ahead: int) -> Iterator[_Done]:
    """Yield what `work` makes of each task, in their order, at most `ahead` of them under way or waiting.

    When the caller stops, or a task fails, no other is begun; what is under way is left alone.
    """
    waiting: queue.SimpleQueue[tuple[_Task, Future[_Done]] | None] = queue.SimpleQueue()
    ended = threading.Event()

    def run() -> None:
        while (each := waiting.get()) and not ended.is_set():
            task, future = each
            try:
                future.set_result(work(task))
            except BaseException as error:  # noqa: BLE001 - handed over
                future.set_exception(error)

    def begin(task: _Task) -> Future[_Done]:
        future: Future[_Done] = Future()
        waiting.put((task, future))
        if len(crew) < threads:
            crew.append(threading.Thread(target=run, name=THREAD_NAME, daemon=True))
            crew[-1].start()
        return future

    crew: list[threading.Thread] = []
    under_way: deque[Future[_Done]] = deque()
    try:
        for task in tasks:
            under_way.append(begin(task))
            while under_way and (len(under_way) >= ahead or under_way[0].done()):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        ended.set()
        for _ in crew:
            waiting.put(None)


def _left(part: Part, index: int) -> int:
    start, stop = part.bounds(index)
    return stop - start - part.held(index)


def _fetch(part: Part, source: Source, etag: str | None, advance: Callable[[int], None], index: int) -> None:
    """Bring one range whole; a store that ends it early is asked for the rest, a few times."""
    start, stop = part.bounds(index)
    for _ in range(_SHORT_TRIES):
        if not _left(part, index):
            return
        for piece in source.stream(start=start + part.held(index), stop=stop, etag=etag):
            part.append(index, piece)
            advance(len(piece))
    if left := _left(part, index):
        raise ModelCorrupt(f"bytes {start:,} to {stop:,}: the last {left:,} did not come")


def _write(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
