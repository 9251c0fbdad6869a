"""Where images live: content by digest, names on top.

Owns what an OCI layout on disk and a repository of a registry have in common, and what can
be said of an image through that alone. What is read is believed only once its size and
digest are proven. Knows neither files nor HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from shipway.artifacts import Descriptor, Digest, Image
from shipway.errors import ImageCorrupt
from shipway.oci import compose
from shipway.oci.compose import Source

DOCUMENT_BYTES = 4 << 20  # the longest manifest or configuration; registries refuse longer ones too
EMPTY, EMPTY_TYPE = b"{}", "application/vnd.oci.empty.v1+json"  # the configuration of what is no image

Advance = Callable[[int], None]


def ignore(_count: int) -> None:
    """Show nothing of what moves: an `Advance`."""


class Images(Protocol):
    """An OCI layout on disk, or a repository of a registry.

    Several processes may use it at once. Every function raises `PushError`, or one of its
    children, when what is asked for cannot be done.
    """

    @property
    def repository(self) -> str:
        """What stands before the `@` in a reference."""

    @property
    def jobs(self) -> int:
        """How many blobs may usefully move at once."""

    @property
    def shared(self) -> bool:
        """Whether other machines use it too."""

    def pushing(self) -> AbstractContextManager[None]:
        """Keep clean-up on this machine away while blobs are found or added that no manifest names yet."""

    def has(self, blob: Descriptor) -> bool:
        """Tell whether a blob is there with this size."""

    def add(
        self,
        blob: Descriptor,
        source: Source,
        *,
        origins: Sequence[str] = (),
        advance: Advance = ignore,
        anew: bool = False,
    ) -> int:
        """Store a blob unless it is there; return the bytes sent, 0 when it was there or could be mounted.

        `source` is asked only when bytes are needed, and again when they must be sent again.
        `origins` are repositories of the same registry that may hold it. `advance` takes how
        many bytes more have arrived, negative when some were lost, and 0 now and then while
        nothing moves; what it raises ends the call. `anew` sends what only seems to be there.
        Raises `PushError` when the bytes are not what `blob` says; then nothing is stored.
        """

    def abandon(self) -> None:
        """End at once what other threads are doing here; each raises. Nothing more can be asked for then."""

    def pieces(self, blob: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes; raises `ImageMissing`, and `ImageCorrupt` at the end when they are not what it says."""

    def read(self, digest: Digest) -> bytes:
        """Return a manifest, verified; raises `ImageMissing`, `ImageCorrupt`."""

    def put(self, manifest: bytes, media_type: str, *, anew: bool = False) -> int:
        """Store a manifest under its digest; return the bytes sent, 0 when it was there; `anew` does not look.

        What it names must be there: raises `BlobsLost` when the registry has not got it.
        """

    def tag(self, name: str, manifest: bytes, media_type: str) -> None:
        """Let `name` mean this manifest and no other; it is stored too where it is not there yet.

        What it names must be there: raises as `put` does.
        """

    def tagged(self, name: str) -> Digest | None:
        """Return what `name` means now, if anything."""

    def names(self) -> Iterator[str]:
        """Yield every name."""

    def delete(self, digest: Digest) -> None:
        """Delete a manifest and every name of it, if it is there; what it alone needed is collected later."""

    def examined(self) -> str:
        """Say, in a line for people, that images can be stored here; raise what a push would, and leave nothing."""


def read_image(images: Images, digest: Digest) -> Image:
    """Return an image that shipway composed; raises `ImageMissing`, `ImageCorrupt`."""
    manifest = images.read(digest)
    try:
        return compose.parse(manifest, document(images, compose.config_descriptor(manifest)))
    except (ValueError, KeyError, TypeError) as error:
        raise ImageCorrupt(
            f"{images.repository}@{digest} is not an image that shipway composed ({error})",
            advice="name the digest of one that invoke build pushed",
        ) from error


def document(images: Images, blob: Descriptor) -> bytes:
    """Return a small blob, such as a configuration; raises `ImageMissing`, `ImageCorrupt`."""
    if blob.size_bytes > DOCUMENT_BYTES:
        raise ImageCorrupt(f"{images.repository}: {blob.digest} says that it has {blob.size_bytes} bytes: no document")
    return b"".join(images.pieces(blob))


def described(data: bytes, media_type: str) -> Descriptor:
    """Return the descriptor of these bytes."""
    return Descriptor(media_type=media_type, digest=Digest.of(data), size_bytes=len(data))


def counted(pieces: Iterable[bytes], advance: Advance) -> Iterator[bytes]:
    """Yield the pieces, and tell of each once the next is asked for."""
    for piece in pieces:
        yield piece
        advance(len(piece))
