"""An OCI image layout on disk: content by digest, names on top.

Owns the folder. Several processes may use it at once; whatever kills one of them, a blob
is there whole or not at all, and a name points only at what is whole. Knows nothing of how
images are made. A failed write leaves no partial file and raises `PushError`.
https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO, Any

from shipway.artifacts import Descriptor, Digest, Image
from shipway.errors import ImageCorrupt, ImageMissing, PushError
from shipway.oci import compose
from shipway.oci.staging import locked, staging, write_whole, writing

_DOCUMENT_BYTES = 4 << 20  # manifests and configurations; registries refuse longer ones too
_NAME = "org.opencontainers.image.ref.name"


class Layout:
    """A layout at `folder`, which appears with the first write."""

    def __init__(self, folder: Path) -> None:
        """Use the layout at `folder`."""
        self.folder = folder

    def path(self, digest: Digest) -> Path:
        """Return where a blob lies, or would."""
        return self.folder / "blobs" / "sha256" / digest.hex

    def has(self, digest: Digest, size_bytes: int) -> bool:
        """Tell whether the blob is there with this size; its bytes are checked when they are read."""
        try:
            return self.path(digest).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def open(self, digest: Digest) -> IO[bytes]:
        """Open a blob, unverified; raises `ImageMissing`."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError as error:
            message = f"there is no {digest} in {self.folder}"
            raise ImageMissing(message) from error

    def read(self, digest: Digest) -> bytes:
        """Return a manifest or configuration, verified; raises `ImageMissing`, `ImageCorrupt`."""
        with self.open(digest) as file:
            data = file.read(_DOCUMENT_BYTES + 1)
        if len(data) > _DOCUMENT_BYTES or Digest.of(data) != digest:
            raise _corrupt(self.path(digest), "its bytes have another digest")
        return data

    def image(self, digest: Digest) -> Image:
        """Return an image that shipway composed; raises `ImageMissing`, `ImageCorrupt`."""
        manifest = self.read(digest)
        try:
            config = self.read(compose.config_descriptor(manifest).digest)
            return compose.parse(manifest, config)
        except (ValueError, KeyError, TypeError) as error:
            raise _corrupt(self.path(digest), f"not an image that shipway composed ({error})") from error

    def add(self, descriptor: Descriptor, pieces: Iterable[bytes]) -> int:
        """Store a blob unless it is there; return the bytes written.

        `pieces` is not touched when the blob is there. Raises `PushError` when they are not
        what the descriptor says, and when they cannot be written.
        """
        if self.has(descriptor.digest, descriptor.size_bytes):
            return 0
        self._begin()
        path = self.path(descriptor.digest)
        with writing(path, descriptor.size_bytes), staging(self.folder) as folder:
            fresh = folder / descriptor.digest.hex
            with fresh.open("wb") as file:
                digest, size_bytes = _copy(pieces, file, descriptor.size_bytes)
            if (digest, size_bytes) != (descriptor.digest, descriptor.size_bytes):
                message = f"{descriptor.digest} of {descriptor.size_bytes} bytes was promised, {digest.short} of "
                raise PushError(message + f"{size_bytes} bytes came; nothing was stored")
            fresh.replace(path)
        return size_bytes

    def _begin(self) -> None:
        marker = self.folder / "oci-layout"
        if not marker.exists():
            blobs = self.folder / "blobs" / "sha256"
            with writing(blobs, 0):
                blobs.mkdir(parents=True, exist_ok=True)
            write_whole(marker, b'{"imageLayoutVersion":"1.0.0"}')

    def tag(self, name: str, digest: Digest, size_bytes: int) -> None:
        """Let `name` mean this manifest and no other; raises `PushError`, `ImageCorrupt`."""
        entry = {"mediaType": compose.MANIFEST, "digest": digest, "size": size_bytes, "annotations": {_NAME: name}}
        with self._index_locked():
            others = [old for old in self._index() if old.get("annotations", {}).get(_NAME) != name]
            self._write_index([*others, entry])

    def tags(self) -> dict[str, Digest]:
        """Return every name with its manifest; raises `ImageCorrupt`."""
        named = ((entry.get("annotations", {}).get(_NAME), entry) for entry in self._index())
        return {name: Digest(entry["digest"]) for name, entry in named if name}

    def _index(self) -> list[dict[str, Any]]:
        path = self.folder / "index.json"
        try:
            return list(json.loads(path.read_bytes())["manifests"])
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise _corrupt(path, f"no OCI image index ({error})") from error

    def _write_index(self, manifests: list[dict[str, Any]]) -> None:
        index = {"schemaVersion": 2, "mediaType": compose.INDEX, "manifests": manifests}
        write_whole(self.folder / "index.json", compose.canonical(index))

    def _index_locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._lock("index"))

    def _lock(self, name: str) -> Path:
        (self.folder / ".staging").mkdir(parents=True, exist_ok=True)
        return self.folder / ".staging" / f"{name}.lock"

    def pushing(self) -> contextlib.AbstractContextManager[None]:
        """Keep `prune` away while blobs are found or added that no manifest names yet."""
        return locked(self._lock("blobs"), shared=True)

    def prune(self, keep: Collection[Digest]) -> int:
        """Delete all that the manifests in `keep` do not need; return the bytes freed.

        Does nothing while somebody pushes.
        """
        with contextlib.suppress(BlockingIOError), locked(self._lock("blobs"), wait=False), self._index_locked():
            needed = {name for digest in keep for name in self._closure(digest)}
            self._write_index([entry for entry in self._index() if entry["digest"] in keep])
            blobs = [(blob.stat().st_size, blob) for blob in (self.folder / "blobs" / "sha256").glob("*")]
            # The small ones first: an image half deleted has then lost its manifest, and is believed by nobody.
            spare = sorted(pair for pair in blobs if pair[1].name not in needed)
            for _, blob in spare:
                blob.unlink()
            return sum(size for size, _ in spare)
        return 0

    def _closure(self, digest: Digest) -> set[str]:
        image = self.image(digest)
        return {digest.hex, Digest.of(image.config).hex, *(layer.descriptor.digest.hex for layer in image.layers)}


def _copy(pieces: Iterable[bytes], file: IO[bytes], limit: int) -> tuple[Digest, int]:
    """Write and hash `pieces`, at most one beyond `limit`, to the disk itself."""
    hashed, size_bytes = hashlib.sha256(), 0
    for piece in pieces:
        file.write(piece)
        hashed.update(piece)
        size_bytes += len(piece)
        if size_bytes > limit:
            break
    file.flush()
    os.fsync(file.fileno())
    return Digest("sha256:" + hashed.hexdigest()), size_bytes


def _corrupt(path: Path, why: str) -> ImageCorrupt:
    return ImageCorrupt(f"{path} is damaged: {why}")
