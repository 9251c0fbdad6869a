"""A layer as gzip that compresses nothing, for programs that take every layer for gzip.

The same bytes give the same file on every machine: blocks of a fixed length, no name, no time,
no compressor whose output could differ. It is as fast to make as its checksum. Pure.
https://www.rfc-editor.org/rfc/rfc1951#section-3.2.4
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

_BEGIN = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no flags, no time, no system
_LAST = b"\x01\0\0\xff\xff"  # an empty block
_BLOCK = 65_535
_AT_ONCE = 16 * _BLOCK


def stored(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the gzip file of what the pieces hold together."""
    yield _BEGIN
    checksum, size_bytes, rest = 0, 0, bytearray()
    for piece in pieces:
        checksum, size_bytes = zlib.crc32(piece, checksum), size_bytes + len(piece)
        rest += piece
        if len(rest) >= _AT_ONCE:
            whole = len(rest) - len(rest) % _BLOCK
            yield _blocks(rest[:whole])
            del rest[:whole]
    yield _blocks(rest) + _LAST + struct.pack("<II", checksum, size_bytes & 0xFFFFFFFF)


def _blocks(data: bytearray) -> bytes:
    parts: list[bytes | memoryview] = []
    view = memoryview(data)
    for start in range(0, len(data), _BLOCK):
        block = view[start : start + _BLOCK]
        parts += [struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF), block]
    return b"".join(parts)
