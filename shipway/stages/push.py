"""Stage `push`: an image into the OCI layout, moving only what is not there.

Blobs first, then the configuration and the manifest, all read back, the names last: until
then nobody can meet the image. Run again after anything: what arrived is not sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from shipway.artifacts import Descriptor, Digest, Image, ImageRef, Layer
from shipway.console import Tell, size
from shipway.errors import ImageMissing
from shipway.oci.compose import CONFIG, MANIFEST, Composed, Source
from shipway.oci.layout import Layout

STAGE = "push"
DOCUMENTS = "documents"  # beside the four parts: configuration and manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How much was written, and how much was there."""

    bytes_sent: int
    bytes_reused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blob:
    part: str
    title: str
    descriptor: Descriptor
    source: Source


def push(composed: Composed, *, layout: Layout, tags: Sequence[str], tell: Tell) -> tuple[ImageRef, Sent]:
    """Write what the layout lacks, read all back, then let `tags` mean this image.

    Raises `PushError`; `ImageMissing` when a layer is lacking that nobody can make.
    """
    image, blobs = composed.image, _blobs(composed)
    with layout.pushing():
        sent = sum(_send(blob, layout, tell) for blob in blobs)
        _read_back(image, layout)
        for tag in tags:
            tell.say(STAGE, f"tag {tag}")
            layout.tag(tag, image.digest, len(image.manifest))
    total = sum(blob.descriptor.size_bytes for blob in blobs)
    ref = ImageRef(repository=f"layout:{layout.folder}", digest=image.digest)
    tell.say(STAGE, f"{size(sent)} written, {size(total - sent)} were there: {ref}")
    return ref, Sent(bytes_sent=sent, bytes_reused=total - sent)


def plan(composed: Composed, *, layout: Layout) -> dict[str, int]:
    """Return the bytes that a push would write now, for each part and for the documents."""
    moves = dict.fromkeys(("base", "dependencies", "model", "app", DOCUMENTS), 0)
    for blob in _blobs(composed):
        if not layout.has(blob.descriptor.digest, blob.descriptor.size_bytes):
            moves[blob.part] += blob.descriptor.size_bytes
    return moves


def _blobs(composed: Composed) -> list[_Blob]:
    """Return everything to push, what others point at first."""
    image = composed.image
    layers = {layer.descriptor.digest: layer for layer in image.layers}.values()
    return [
        *(
            _Blob(
                part=layer.part,
                title=layer.title,
                descriptor=layer.descriptor,
                source=composed.sources.get(layer.descriptor.digest, partial(_nobody_can_make, layer)),
            )
            for layer in layers
        ),
        _document("config", CONFIG, image.config),
        _document("manifest", MANIFEST, image.manifest),
    ]


def _nobody_can_make(layer: Layer) -> Iterable[bytes]:
    message = f"the {layer.part} layer {layer.title!r} ({layer.descriptor.digest}) is not in the layout any more"
    raise ImageMissing(message)


def _document(title: str, media_type: str, data: bytes) -> _Blob:
    descriptor = Descriptor(media_type=media_type, digest=Digest.of(data), size_bytes=len(data))
    return _Blob(part=DOCUMENTS, title=title, descriptor=descriptor, source=lambda: [data])


def _send(blob: _Blob, layout: Layout, tell: Tell) -> int:
    size_bytes = blob.descriptor.size_bytes
    if layout.has(blob.descriptor.digest, size_bytes):
        return 0
    label = blob.title if blob.part == DOCUMENTS else f"{blob.part} {blob.title}"
    tell.say(STAGE, f"{label}, {size(size_bytes)}")
    with tell.progress(STAGE, label, size_bytes) as advance:
        return layout.add(blob.descriptor, _counted(blob.source(), advance))


def _counted(pieces: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        advance(len(piece))


def _read_back(image: Image, layout: Layout) -> None:
    for layer in layout.image(image.digest).layers:
        if not layout.has(layer.descriptor.digest, layer.descriptor.size_bytes):
            message = f"{layer.part} layer {layer.title!r} ({layer.descriptor.digest}) vanished while it was pushed"
            raise ImageMissing(message, advice="run again: it is then written anew")
