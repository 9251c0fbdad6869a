"""One blob on its way to a registry: each rung of the ladder, and back on it after a fall.

Owns one upload. A small blob goes in one request, a big one in one streamed request, or in
chunks where that is refused; after a cut it goes on from the offset that the registry names,
or from the start when the upload is forgotten. The bytes are proven before the last of them
leaves, so that a registry never has a blob that is not what it says. A failed upload is
cancelled, and raises `PushError`, or what the source or `advance` raised.
https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pushing-blobs
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial

from msgspec.structs import replace

from shipway.artifacts import Descriptor
from shipway.errors import PushError, RegistryRefused
from shipway.oci.address import Url
from shipway.oci.compose import Source
from shipway.oci.images import Advance
from shipway.oci.patience import Passing
from shipway.oci.transport import Answer, Body, Call, Transport

PIECE_BYTES = 1 << 20  # so much of a blob is in memory; one that is no bigger goes in a single request
CHUNK_BYTES = 16 << 20
_BIG_BYTES = 1 << 16
_STEADY_TRIES = 3  # without progress; then the upload is begun anew, in chunks
_CANCEL_S = 5.0

_OK, _CREATED, _ACCEPTED, _NO_CONTENT = 200, 201, 202, 204
_BAD, _UNKNOWN, _TOO_LARGE, _NOT_THERE = 400, 404, 413, 416
# What a registry, or a proxy before it, says to a long PATCH that it does not take: the method, the length, the
# body's size, its type, or this way of sending.
_NOT_IN_ONE = frozenset({405, 411, _TOO_LARGE, 415, 501})
_SPOILT = frozenset({"DIGEST_INVALID", "SIZE_INVALID", "BLOB_UPLOAD_INVALID"})
_HELD = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_LEAST = re.compile(r"[0-9]{1,18}")


class Upload:
    """One blob's upload. `start` is the request that begins one; `lacking` looks whether the blob is lacking."""

    def __init__(
        self,
        blob: Descriptor,
        source: Source,
        *,
        transport: Transport,
        start: Call,
        cancel_scopes: tuple[str, ...],
        lacking: Callable[[], bool],
        advance: Advance,
    ) -> None:
        """Prepare; nothing is sent, and the source is not asked."""
        self._blob = blob
        self._bytes = _Outgoing(blob, source, advance)
        self._transport = transport
        self._start = start
        self._cancel_scopes = cancel_scopes
        self._lacking = lacking
        self._patience = transport.patience(advance)
        self._session: Url | None = None
        self._offset = 0
        self._furthest = 0
        self._chunk_bytes: int | None = None

    def run(self, session: Url | None) -> int:
        """Send the blob, first to a session that is open already, if one is; return the bytes sent."""
        self._session = session
        try:
            while not self._stored():
                pass
        except BaseException:
            self._cancel()
            raise
        self._bytes.all_arrived()
        return self._bytes.sent_bytes

    def _stored(self) -> bool:
        """Try once; where that failed, find out where to go on."""
        committing = False
        try:
            self._begin()
            while self._blob.size_bytes > PIECE_BYTES and self._offset < self._blob.size_bytes:
                self._patch()
            committing = True
            self._commit()
        except Passing as fault:
            self._patience.spend(fault)
            if committing and not self._lacking():
                return True  # the answer alone was lost
            self._look_where()
            return False
        return True

    def _begin(self) -> None:
        if self._session is None:
            self._offset = 0
            answer = self._transport.once(self._start, {_ACCEPTED})
            self._session = answer.location
            if self._session is None:
                raise RegistryRefused(f"{answer}, but without the Location to send to")

    def _patch(self) -> None:
        """Send all that is lacking, or the next chunk of it."""
        start, size = self._offset, self._blob.size_bytes
        end = min(size, start + (self._chunk_bytes or size))
        call = self._call("PATCH", self._address, start, end)
        answer = self._transport.once(call, {_CREATED, _ACCEPTED, _NO_CONTENT, _UNKNOWN, _NOT_THERE} | _NOT_IN_ONE)
        if answer.status in _NOT_IN_ONE:
            self._send_less(answer)
            return
        if answer.status == _UNKNOWN:
            self._session = None
        if answer.status in {_UNKNOWN, _NOT_THERE}:
            raise Passing(str(answer))
        self._session = answer.location or self._session
        self._go_on(min(end, _held(answer, otherwise=end)))  # some registries count one too many
        if self._offset <= start:
            raise Passing(f"{answer}, but nothing of what was sent was kept")

    def _send_less(self, answer: Answer) -> None:
        """Send less at once from now on, if that may help."""
        smaller = (self._chunk_bytes or 4 * CHUNK_BYTES) // 4
        least = _LEAST.fullmatch(answer.headers.get("oci-chunk-min-length", ""))
        chunk_bytes = max(smaller, PIECE_BYTES, int(least[0]) if least else 0)
        if self._chunk_bytes and (answer.status != _TOO_LARGE or chunk_bytes >= self._chunk_bytes):
            raise RegistryRefused(str(answer))
        self._chunk_bytes = chunk_bytes

    def _commit(self) -> None:
        """Send the digest, and with it the blob where that is small: from then on it is there."""
        call = self._call(
            "PUT", self._address.asking(("digest", self._blob.digest)), self._offset, self._blob.size_bytes
        )
        answer = self._transport.once(call, {_CREATED, _NO_CONTENT, _BAD, _UNKNOWN, _NOT_THERE})
        if answer.status in {_CREATED, _NO_CONTENT}:
            return
        if answer.status == _BAD and not answer.codes & _SPOILT:
            raise RegistryRefused(str(answer))
        self._session = None  # our bytes were proven, so they were lost or spoilt on their way
        raise Passing(str(answer))

    def _look_where(self) -> None:
        """Ask how much has arrived; where nobody can say, or nothing helps, begin anew."""
        if self._patience.tries == _STEADY_TRIES:
            self._cancel()
            self._chunk_bytes = self._chunk_bytes or CHUNK_BYTES
        session, self._session = self._session, None
        if session is not None:
            call = Call(method="GET", url=session, scopes=self._start.scopes)
            known = {_OK, _ACCEPTED, _NO_CONTENT}
            answer = self._transport.ask(call, known | {_BAD, _UNKNOWN, 405, _NOT_THERE}, self._patience)
            held = _held(answer, otherwise=-1)
            if answer.status in known and 0 <= held <= self._blob.size_bytes:
                self._session = answer.location or session
                self._go_on(held)

    def _go_on(self, held: int) -> None:
        self._offset = held
        if held > self._furthest:
            self._furthest = held
            self._patience.progressed()

    def _cancel(self) -> None:
        if self._session is None:
            return
        call = Call(method="GET", url=self._session, scopes=self._start.scopes, timeout_s=_CANCEL_S)
        with contextlib.suppress(Passing, PushError):  # registries forget stale uploads by themselves, too
            where = self._transport.once(call, {_OK, _ACCEPTED, _NO_CONTENT}).location or call.url
            self._transport.once(
                replace(call, method="DELETE", url=where, scopes=self._cancel_scopes), {_OK, _ACCEPTED, _NO_CONTENT}
            )
        self._session = None

    @property
    def _address(self) -> Url:
        if self._session is None:
            raise Passing(f"{self._start}: the upload was forgotten")
        return self._session

    def _call(self, method: str, url: Url, start: int, end: int) -> Call:
        body = Body(size_bytes=end - start, pieces=partial(self._bytes.between, start, end))
        part = start < end and (start, end) != (0, self._blob.size_bytes)
        headers = {"Content-Range": f"{start}-{end - 1}"} if part else {}
        return Call(method=method, url=url, scopes=self._start.scopes, headers=headers, body=body)


def _held(answer: Answer, *, otherwise: int) -> int:
    """Return how many bytes a registry says that it holds; distribution says `0-0` for none, too."""
    found = _HELD.fullmatch(answer.headers.get("range", ""))
    if not found:
        return otherwise
    last = int(found[1])
    return last + 1 if last else 0


class _Outgoing:
    """A blob's bytes as its source gives them, from any offset on, and proven before the last of them is given."""

    def __init__(self, blob: Descriptor, source: Source, advance: Advance) -> None:
        self._blob = blob
        self._source = source
        self._advance = advance
        self._told = 0
        self._rewind()
        self.sent_bytes = 0

    def between(self, start: int, end: int) -> Iterator[bytes]:
        """Yield these bytes; raises `PushError` when the source gives others than were promised."""
        self._tell(start)
        if start < self._position:
            self._rewind()
        while self._position < start:
            self._taken(start)
            self._advance(0)
        if not self._blob.size_bytes:
            self._prove()
        while self._position < end:
            piece = self._taken(end)
            self.sent_bytes += len(piece)
            yield piece
            self._tell(self._told + len(piece))

    def all_arrived(self) -> None:
        """Tell of what arrived although nobody answered."""
        self._tell(self._blob.size_bytes)

    def _tell(self, arrived: int) -> None:
        if arrived != self._told:
            more, self._told = arrived - self._told, arrived
            self._advance(more)

    def _rewind(self) -> None:
        self._pieces: Iterator[bytes] | None = None
        self._buffer = bytearray()
        self._hashed = hashlib.sha256()
        self._position = 0

    def _taken(self, end: int) -> bytes:
        """Take the next piece from the source, up to `end`."""
        count = min(PIECE_BYTES, end - self._position)
        piece = self._whole(count) or self._filled(count)
        self._hashed.update(piece)
        self._position += len(piece)
        if not piece or self._position == self._blob.size_bytes:
            self._prove()
        return piece

    def _whole(self, count: int) -> bytes | None:
        """Return a big piece as it came, if the next one is: copying weights takes as long as hashing them."""
        if self._buffer:
            return None
        piece = next(self._source_pieces, b"")
        if _BIG_BYTES <= len(piece) <= count:
            return piece
        self._buffer += piece
        return None

    def _filled(self, count: int) -> bytes:
        self._fill(count)
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        return piece

    def _fill(self, count: int) -> None:
        while len(self._buffer) < count:
            piece = next(self._source_pieces, None)
            if piece is None:
                return
            self._buffer += piece

    @property
    def _source_pieces(self) -> Iterator[bytes]:
        if self._pieces is None:
            self._pieces = iter(self._source())
        return self._pieces

    def _prove(self) -> None:
        self._fill(1)
        digest, size_bytes = self._hashed.hexdigest(), self._position + len(self._buffer)
        if (digest, size_bytes) != (self._blob.digest.hex, self._blob.size_bytes):
            message = f"{self._blob.digest} of {self._blob.size_bytes} bytes was promised, {digest[:12]} of "
            raise PushError(message + f"{size_bytes} bytes came; nothing was stored")
