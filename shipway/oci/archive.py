"""Read a layer's tar that may be hostile, once, forwards, in little memory.

Owns the proof that a layer is what its descriptor says: size, digest, and digest of the
uncompressed tar are compared at the end of the very pass that read it. Extracts nothing;
whoever takes entries must throw them away when the pass ends in `NotAsSaid`.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

from shipway.artifacts import Digest, Layer

CHUNK = 1 << 20
_LAST_BLOCKS = 3 * 512  # the rest of a block, and the two empty ones that end a tar


class NotAsSaid(ValueError):
    """The layer is damaged, or a lie."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Pieces:
    """Pieces of bytes, as a file that is read forwards only."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        """Take the pieces when they are needed."""
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes, less only at the end."""
        data = bytearray()
        while len(data) < size:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            taken, self._rest = self._rest[: size - len(data)], self._rest[size - len(data) :]
            data += taken
        return bytes(data)


class _Tape:
    """A file that is read forwards only and hashed as it passes; skipping is reading.

    `padding` zeros seem to follow: umoci's `insert` writes tars without their last blocks,
    runtimes accept them, and whether bytes are missing the digests tell.
    """

    def __init__(self, source: _Readable, padding: int = 0) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._padding = padding
        self._position = 0
        self.size_bytes = 0

    def read(self, size: int) -> bytes:
        if size > CHUNK:  # tarfile wants long headers in one piece, however long they say they are
            message = f"a header of {size} bytes"
            raise NotAsSaid(message)
        try:
            data = self._source.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:  # here, as whoever reads an entry meets it too
            message = f"not a readable tar: {error}"
            raise NotAsSaid(message) from error
        self._hash.update(data)
        self.size_bytes += len(data)
        zeros = min(size - len(data), self._padding)
        self._padding -= zeros
        self._position += len(data) + zeros
        return data + bytes(zeros)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        while self._position < position and self.read(min(CHUNK, position - self._position)):
            pass

    def finish(self) -> Digest:
        while self.read(CHUNK):
            pass
        return Digest("sha256:" + self._hash.hexdigest())


def members(blob: _Readable, layer: Layer) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo, IO[bytes] | None]]:
    """Yield each entry of `layer` with its path below the root, and its bytes if it is a file.

    Raises `NotAsSaid` for a path with `..`, for what is no tar, and, at the end, when the
    blob is not what the descriptor says; entries seen until then prove nothing.
    """
    plain = stored = _Tape(blob, _LAST_BLOCKS)
    if layer.descriptor.media_type.endswith("gzip"):
        stored = _Tape(blob)
        plain = _Tape(gzip.GzipFile(fileobj=cast("IO[bytes]", stored)), _LAST_BLOCKS)
    try:
        with tarfile.TarFile(fileobj=cast("IO[bytes]", plain)) as archive:
            while (info := archive.next()) is not None:
                yield _path(info.name), info, archive.extractfile(info) if info.isreg() else None
                vars(archive)["members"].clear()  # it would remember every entry
        diff_id, digest = plain.finish(), stored.finish()
    except NotAsSaid:
        raise
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        message = f"not a readable tar: {error}"
        raise NotAsSaid(message) from error
    said = layer.descriptor
    if (digest, stored.size_bytes, diff_id) != (said.digest, said.size_bytes, layer.diff_id):
        message = f"it is {stored.size_bytes} bytes {digest.short}, unpacked {diff_id.short}; "
        raise NotAsSaid(message + f"said were {said.size_bytes}, {said.digest.short}, {layer.diff_id.short}")


def _path(name: str) -> PurePosixPath:
    path = PurePosixPath(name.lstrip("/"))
    if ".." in path.parts or "\0" in name:
        message = f"an entry named {name[:100]!r}"
        raise NotAsSaid(message)
    return path


def pieces(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, a little at a time."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece
