"""Gzip files that are the same on every machine, since layers are known by their digests.

`stored` compresses nothing, for what does not shrink: it is as fast as its checksum, and its
length is known beforehand. `compressed` takes libdeflate, which setup.cfg pins (the output of
zlib differs from build to build), a member at a time: gzip files may follow one another, and
so little memory is enough, and several processors can help. Pure.
https://www.rfc-editor.org/rfc/rfc1952#section-2.2
https://www.rfc-editor.org/rfc/rfc1951#section-3.2.4
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

_BEGIN = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no flags, no time, no system
_LAST = b"\x01\0\0\xff\xff"  # an empty block
_BLOCK = 65_535
_BLOCK_HEAD = struct.Struct("<BHH")
_CHECK = struct.Struct("<II")
_AT_ONCE = 16 * _BLOCK
_MEMBER = 1 << 20
_MOST_THREADS = 4


def stored(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the gzip file of what the pieces hold together, nothing compressed."""
    yield _BEGIN
    checksum, size_bytes, rest = 0, 0, bytearray()
    for piece in pieces:
        checksum, size_bytes = zlib.crc32(piece, checksum), size_bytes + len(piece)
        rest += piece
        if len(rest) >= _AT_ONCE:
            whole = len(rest) - len(rest) % _BLOCK
            yield _blocks(rest[:whole])
            del rest[:whole]
    yield _blocks(rest) + _LAST + _CHECK.pack(checksum, size_bytes & 0xFFFFFFFF)


def stored_bytes(size_bytes: int) -> int:
    """Return how long the file is that `stored` makes of so many bytes."""
    blocks = -(-size_bytes // _BLOCK)
    return len(_BEGIN) + size_bytes + blocks * _BLOCK_HEAD.size + len(_LAST) + _CHECK.size


def _blocks(data: bytearray) -> bytes:
    parts: list[bytes | memoryview] = []
    view = memoryview(data)
    for start in range(0, len(data), _BLOCK):
        block = view[start : start + _BLOCK]
        parts += [_BLOCK_HEAD.pack(0, len(block), len(block) ^ 0xFFFF), block]
    return b"".join(parts)


def compressed(pieces: Iterable[bytes], level: int) -> Iterator[bytes]:
    """Yield a gzip file of what the pieces hold together; `level` is libdeflate's, 1 to 12."""
    from deflate import gzip_compress  # noqa: PLC0415 - not needed where all layers are known

    jobs = min(_MOST_THREADS, os.cpu_count() or 1)
    begun: deque[Future[bytes | bytearray]] = deque()
    with ThreadPoolExecutor(jobs, thread_name_prefix="gzip") as pool:
        for member in _members(pieces):
            begun.append(pool.submit(gzip_compress, member, level))
            if len(begun) > jobs:
                yield bytes(begun.popleft().result())
        while begun:
            yield bytes(begun.popleft().result())


def _members(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of one size; at least one, since no file at all is no gzip."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        while len(rest) > _MEMBER:
            with memoryview(rest) as view:
                member = bytes(view[:_MEMBER])
            yield member
            del rest[:_MEMBER]
    yield bytes(rest)
