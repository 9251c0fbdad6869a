"""An OCI image layout on disk: content by digest, names on top.

Owns the folder. Several processes may use it at once; whatever kills one of them, a blob
is there whole or not at all, and a name points only at what is whole. Knows nothing of how
images are made. A failed write leaves no partial file and raises `PushError`.
https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from shipway import documents
from shipway.artifacts import Descriptor, Digest
from shipway.errors import ImageCorrupt, ImageMissing, PushError
from shipway.oci import compose
from shipway.oci.archive import pieces
from shipway.oci.compose import Source
from shipway.oci.images import DOCUMENT_BYTES, Advance, counted, described, ignore
from shipway.oci.referrers import name_for, subject_of
from shipway.oci.staging import locked, staging, write_whole, writing

_NAME = "org.opencontainers.image.ref.name"


class Layout:
    """A layout at `folder`, which appears with the first write: `Images` on disk."""

    jobs = 1  # one disk
    shared = False

    def __init__(self, folder: Path) -> None:
        """Use the layout at `folder`."""
        self.folder = folder

    @property
    def repository(self) -> str:
        """See `Images.repository`."""
        return f"layout:{self.folder}"

    def path(self, digest: Digest) -> Path:
        """Return where a blob lies, or would."""
        return self.folder / "blobs" / "sha256" / digest.hex

    def has(self, blob: Descriptor) -> bool:
        """See `Images.has`; the bytes are checked when they are read."""
        try:
            return self.path(blob.digest).stat().st_size == blob.size_bytes
        except FileNotFoundError:
            return False

    def open(self, digest: Digest) -> IO[bytes]:
        """Open a blob, unverified; raises `ImageMissing`."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError as error:
            message = f"there is no {digest} in {self.folder}"
            raise ImageMissing(message) from error

    def pieces(self, blob: Descriptor) -> Iterator[bytes]:
        """See `Images.pieces`."""
        hashed, size_bytes = hashlib.sha256(), 0
        with self.open(blob.digest):
            for piece in pieces(self.path(blob.digest)):
                hashed.update(piece)
                size_bytes += len(piece)
                yield piece
        if (hashed.hexdigest(), size_bytes) != (blob.digest.hex, blob.size_bytes):
            raise _corrupt(self.path(blob.digest), "its bytes have another digest")

    def read(self, digest: Digest) -> bytes:
        """See `Images.read`."""
        with self.open(digest) as file:
            data = file.read(DOCUMENT_BYTES + 1)
        if len(data) > DOCUMENT_BYTES or Digest.of(data) != digest:
            raise _corrupt(self.path(digest), "its bytes have another digest")
        return data

    def add(
        self,
        blob: Descriptor,
        source: Source,
        *,
        origins: Sequence[str] = (),  # noqa: ARG002 - a layout has nowhere to mount from
        advance: Advance = ignore,
        anew: bool = False,
    ) -> int:
        """See `Images.add`."""
        if self.has(blob) and not anew:
            return 0
        self._begin()
        path = self.path(blob.digest)
        with writing(path, blob.size_bytes), staging(self.folder) as folder:
            fresh = folder / blob.digest.hex
            with fresh.open("wb") as file:
                digest, size_bytes = _copy(counted(source(), advance), file, blob.size_bytes)
            if (digest, size_bytes) != (blob.digest, blob.size_bytes):
                message = f"{blob.digest} of {blob.size_bytes} bytes was promised, {digest.short} of "
                raise PushError(message + f"{size_bytes} bytes came; nothing was stored")
            fresh.replace(path)
        return size_bytes

    def abandon(self) -> None:
        """See `Images.abandon`; whoever writes here meets its `advance` soon enough."""

    def put(self, manifest: bytes, media_type: str, *, anew: bool = False) -> int:  # noqa: ARG002 - a look costs nothing
        """See `Images.put`; that its blobs are there is the caller's to see to."""
        return self.add(described(manifest, media_type), lambda: [manifest])

    def _begin(self) -> None:
        marker = self.folder / "oci-layout"
        if not marker.exists():
            blobs = self.folder / "blobs" / "sha256"
            with writing(blobs, 0):
                blobs.mkdir(parents=True, exist_ok=True)
            write_whole(marker, b'{"imageLayoutVersion":"1.0.0"}')

    def tag(self, name: str, manifest: bytes, media_type: str) -> None:
        """See `Images.tag`; raises `PushError`, `ImageCorrupt`."""
        self.put(manifest, media_type)
        about = compose.blob_entry(described(manifest, media_type))
        with self._index_locked():
            others = [old for old in self._index() if _name(old) != name]
            self._write_index([*others, {**about, "annotations": {_NAME: name}}])

    def tagged(self, name: str) -> Digest | None:
        """See `Images.tagged`."""
        return self.tags().get(name)

    def names(self) -> Iterator[str]:
        """See `Images.names`."""
        yield from self.tags()

    def delete(self, digest: Digest) -> None:
        """See `Images.delete`; `prune` collects."""
        with self._index_locked():
            self._write_index([entry for entry in self._index() if entry["digest"] != digest])
            self.path(digest).unlink(missing_ok=True)

    def examined(self) -> str:
        """See `Images.examined`."""
        images = {digest for name, digest in self.tags().items() if not subject_of(name)}
        return f"{len(images)} in {self.folder}"

    def tags(self) -> dict[str, Digest]:
        """Return every name with its manifest, the one that was given last at the end; raises `ImageCorrupt`."""
        named = ((_name(entry), entry) for entry in self._index())
        return {name: Digest(entry["digest"]) for name, entry in named if name}

    def _index(self) -> list[dict[str, Any]]:
        path = self.folder / "index.json"
        try:
            return list(documents.decoded(path.read_bytes())["manifests"])
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

    def prune(self, choose: Callable[[], Collection[Digest]]) -> int:
        """Delete all that the manifests to keep, and what is attached to them, do not need; return the bytes freed.

        `choose` names those to keep while nobody can push or tag, so it may only look. Does
        nothing, and does not ask it, while somebody pushes.
        """
        with contextlib.ExitStack() as alone:
            try:
                alone.enter_context(locked(self._lock("blobs"), wait=False))
            except BlockingIOError:
                return 0
            alone.enter_context(self._index_locked())
            keep = choose()
            # The small ones first: an image half deleted has then lost its manifest, and is believed by nobody.
            spare = sorted(self._spare(keep))
            names = {name_for(digest) for digest in keep}
            self._write_index([old for old in self._index() if old["digest"] in keep or _name(old) in names])
            for _, blob in spare:
                blob.unlink()
            return sum(size for size, _ in spare)

    def spare_bytes(self, keep: Collection[Digest]) -> int:
        """Return how many bytes `prune` would free now."""
        return sum(size for size, _ in self._spare(keep))

    def _spare(self, keep: Collection[Digest]) -> list[tuple[int, Path]]:
        tags = self.tags()
        attached = [tags[name] for digest in keep if (name := name_for(digest)) in tags]
        needed = {hexadecimal for digest in keep for hexadecimal in self._reached(digest)}
        for digest in attached:
            needed |= {digest.hex}
            with contextlib.suppress(ImageMissing, ImageCorrupt):  # nobody runs what is attached
                needed |= set(self._reached(digest))
        blobs = (self.folder / "blobs" / "sha256").glob("*")
        return [(blob.stat().st_size, blob) for blob in blobs if blob.name not in needed]

    def _reached(self, digest: Digest) -> Iterator[str]:
        """Yield a manifest's or an index' blob and all that it names; raises `ImageMissing`, `ImageCorrupt`."""
        yield digest.hex
        try:
            document = documents.decoded(self.read(digest))
            inner = [Digest(entry["digest"]) for entry in document.get("manifests", ())]
            blobs = [*document.get("layers", ()), *([document["config"]] if "config" in document else [])]
            yield from [Digest(entry["digest"]).hex for entry in blobs]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _corrupt(self.path(digest), f"no manifest ({error})") from error
        for each in inner:
            yield from self._reached(each)


def _name(entry: Mapping[str, Any]) -> Any:
    return entry.get("annotations", {}).get(_NAME)


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
