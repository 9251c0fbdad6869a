"""One HTTP request as it arrives, piece by piece: when is it whole, and may it go on?

Owns the limits on head and body, and the framing of a body. The head itself is parsed by
gunicorn as soon as it is there, so that a body that is too long is refused before it is sent.
Of a chunked body only the end is looked for; gunicorn checks and decodes it when it is read.
Knows nothing of sockets or of time.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import LimitRequestHeaders
from gunicorn.http.message import Request
from gunicorn.http.unreader import Unreader

from app.problems import Problem

MAX_HEAD_BYTES = 16_384
_END_OF_HEAD = b"\r\n\r\n"
_PIECE_BYTES = 4096  # gunicorn copies what is left of a piece for each chunk in it
_MANY_CHUNKS, _SMALL_BYTES = 1000, 64


class Incoming(Unreader):
    """Fed with bytes by whoever has the socket; read by gunicorn's parser once it is whole."""

    def __init__(self, cfg: Any, client: Any, *, max_body_bytes: int) -> None:
        """Start with nothing received; `cfg` and `client` are what gunicorn's parser needs."""
        super().__init__()
        self.request: Any = None
        self.size = 0
        self._cfg = cfg
        self._client = client
        self._max_body_bytes = max_body_bytes
        self._head = bytearray()
        self._body: _Length | _Chunks | None = None
        self._pieces: deque[bytes] = deque()

    def feed(self, data: bytes) -> bool:
        """Take more bytes; true when the request is whole.

        `request` is there from the end of the head on. Raises `Problem` when the body is too
        long or in too many small chunks, and gunicorn's `ParseException` when the head is wrong.
        """
        self.size += len(data)
        if self._body is None:
            if not self._ends_head(data):
                return False
            self._body = self._parse_head()
            data = self.take_buffered()
        # none is empty: that would tell the parser that the client hung up
        self._pieces.extend(data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES))
        whole = self._body.feed(data)
        if self._body.size > self._max_body_bytes:
            raise Problem(413, f"the body is longer than the {self._max_body_bytes:,} bytes allowed")
        return whole

    def chunk(self, size_hint: int | None = None) -> bytes:  # noqa: ARG002 - gunicorn's signature
        """Give gunicorn's parser the next piece."""
        return self._pieces.popleft() if self._pieces else b""

    def rest(self) -> bytes:
        """Return what came behind the request, once its body was read."""
        return bytes(self.take_buffered() + b"".join(self._pieces))

    def _ends_head(self, data: bytes) -> bool:
        seen = max(0, len(self._head) - len(_END_OF_HEAD))
        self._head += data
        end = self._head.find(_END_OF_HEAD, seen)
        if (len(self._head) if end < 0 else end) > MAX_HEAD_BYTES:
            raise LimitRequestHeaders(f"the head is longer than {MAX_HEAD_BYTES:,} bytes")
        return end >= 0

    def _parse_head(self) -> _Length | _Chunks:
        self._pieces.append(bytes(self._head))
        self.request = Request(self._cfg, self, self._client)
        reader = self.request.body.reader
        return _Chunks() if isinstance(reader, ChunkedReader) else _Length(reader.length)


class _Length:
    """A body whose length was announced."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._missing = size

    def feed(self, data: bytes) -> bool:
        self._missing -= len(data)
        return self._missing <= 0


class _Chunks:
    """A chunked body: steps from size line to size line; `size` counts the bytes as sent."""

    _SIZE = re.compile(rb"[0-9a-fA-F]{1,8}(?![0-9a-fA-F])")

    def __init__(self) -> None:
        self.size = 0
        self._line = b""
        self._skip = 0
        self._last = False
        self._count = 0
        self._held = 0

    def feed(self, data: bytes) -> bool:
        self.size += len(data)
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                return len(self._line) > MAX_HEAD_BYTES
            line, self._line, at = (self._line + data[at:end]).strip(), b"", end + 1
            if self._ends_with(line):
                return True
        return False

    def _ends_with(self, line: bytes) -> bool:
        """Take one line; also true for a wrong one, which gunicorn's parser will name."""
        if self._last:
            return not line  # behind the last chunk come trailers, then an empty line
        size = self._SIZE.match(line)
        if size is None:
            return True
        length = int(size[0], 16)
        self._last = length == 0
        if self._last:
            return False
        self._skip = length + len(b"\r\n")
        self._count += 1
        self._held += length
        if self._count > _MANY_CHUNKS and self._held < self._count * _SMALL_BYTES:
            raise Problem(400, "the body comes in too many small chunks")
        return False
