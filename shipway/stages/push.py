"""Stage `push`: an image to where images live, moving only what is not there.

Blobs first, several at once; then the configuration and the manifest, all read back; the
names last: until then nobody can meet the image. Run again after anything: what arrived is
not sent twice. Knows not whether it is a registry or a layout on disk.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

from shipway.artifacts import Descriptor, Image, ImageRef, Layer
from shipway.console import Tell, size
from shipway.errors import BlobsLost, ImageMissing, Interrupted
from shipway.oci.compose import CONFIG, MANIFEST, Composed, Source
from shipway.oci.evidence import Evidence, lacking
from shipway.oci.images import EMPTY, EMPTY_TYPE, Advance, Images, described, read_image
from shipway.oci.layers import remember
from shipway.oci.referrers import attach

STAGE = "push"
DOCUMENTS = "documents"  # beside the four parts: configuration and manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How much was sent, and how much was there."""

    bytes_sent: int
    bytes_reused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blob:
    part: str
    title: str
    descriptor: Descriptor
    source: Source
    origins: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return self.title if self.part == DOCUMENTS else f"{self.part} {self.title}"


def push(
    composed: Composed,
    *,
    images: Images,
    tags: Sequence[str],
    tell: Tell,
    evidence: Evidence | None = None,
    clock: Callable[[], float] = time.time,
) -> tuple[ImageRef, Sent]:
    """Send what is lacking, read all back, attach the evidence, then let `tags` mean this image.

    Raises `PushError`; `ImageMissing` when a layer is lacking that nobody can make.
    """
    image, blobs = composed.image, _blobs(composed)
    manifest = described(image.manifest, MANIFEST)
    with images.pushing():
        sent = _send(blobs, images, tell)
        try:
            named = images.put(image.manifest, MANIFEST)
        except BlobsLost as lost:
            tell.warn(f"{lost.message}; sending it again")
            sent += _send([blob for blob in blobs if lost.concerns(blob.descriptor.digest)], images, tell, anew=True)
            named = images.put(image.manifest, MANIFEST)
        if named:
            tell.say(STAGE, f"manifest, {size(named)}")
        sent += named
        _read_back(image, images)
        if evidence:
            sent += _attach(evidence, image, images, tell, clock())
        if images.shared:
            for key, layers in composed.known.items():
                remember(images, key, layers)
        for tag in tags:
            if images.tagged(tag) != image.digest:
                tell.say(STAGE, f"tag {tag}")
                images.tag(tag, image.manifest, MANIFEST)
    total = sum(blob.descriptor.size_bytes for blob in blobs) + manifest.size_bytes
    ref = ImageRef(repository=images.repository, digest=image.digest)
    tell.say(STAGE, f"{size(sent)} sent, {size(max(0, total - sent))} were there: {ref}")
    return ref, Sent(bytes_sent=sent, bytes_reused=max(0, total - sent))


def plan(composed: Composed, *, images: Images) -> dict[str, int]:
    """Return the bytes that a push would send now, for each part and for the documents."""
    moves = dict.fromkeys(("base", "dependencies", "model", "app", DOCUMENTS), 0)
    manifest = described(composed.image.manifest, MANIFEST)
    for blob in (*_blobs(composed), _document("manifest", manifest, composed.image.manifest)):
        if not images.has(blob.descriptor):
            moves[blob.part] = moves.get(blob.part, 0) + blob.descriptor.size_bytes
    return moves


def _blobs(composed: Composed) -> list[_Blob]:
    """Return everything to push but the manifest, which names it all."""
    image = composed.image
    layers = {layer.descriptor.digest: layer for layer in image.layers}
    return [
        *(
            _Blob(
                part=layer.part,
                title=layer.title,
                descriptor=layer.descriptor,
                source=composed.sources.get(digest, partial(_nobody_can_make, layer)),
                origins=(composed.origins[digest],) if digest in composed.origins else (),
            )
            for digest, layer in layers.items()
        ),
        _document("config", described(image.config, CONFIG), image.config),
    ]


def _nobody_can_make(layer: Layer) -> Iterable[bytes]:
    message = f"the {layer.part} layer {layer.title!r} ({layer.descriptor.digest}) is not there any more"
    raise ImageMissing(message)


def _document(title: str, descriptor: Descriptor, data: bytes) -> _Blob:
    return _Blob(part=DOCUMENTS, title=title, descriptor=descriptor, source=lambda: [data])


def _send(blobs: Sequence[_Blob], images: Images, tell: Tell, *, anew: bool = False) -> int:
    """Send what is lacking, several blobs at once; what goes wrong first ends the others and is raised."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def send(blob: _Blob) -> int:
        if stop.is_set():
            return 0
        try:
            with tell.progress(STAGE, blob.label, blob.descriptor.size_bytes) as advance:
                return images.add(
                    blob.descriptor,
                    partial(_begun, blob, tell),
                    origins=blob.origins,
                    advance=partial(_unless_stopped, stop, advance),
                    anew=anew,
                )
        except BaseException as error:
            failures.append(error)
            stop.set()  # here, so that no thread begins another blob meanwhile
            raise

    with _several(images, stop) as pool:
        done = as_completed([pool.submit(send, blob) for blob in blobs])
        try:
            return sum(future.result() for future in done)
        except Interrupted as error:
            raise (failures or [error])[0] from None


@contextlib.contextmanager
def _several(images: Images, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Give threads for one errand; what goes wrong in it, or a signal, ends them all at once."""
    with ThreadPoolExecutor(images.jobs, thread_name_prefix=STAGE) as pool:
        try:
            yield pool
        except BaseException:
            stop.set()
            images.abandon()
            pool.shutdown(cancel_futures=True)
            raise


def _begun(blob: _Blob, tell: Tell) -> Iterable[bytes]:
    """Give a blob's bytes; that somebody asks for them means that they are lacking."""
    tell.say(STAGE, f"{blob.label}, {size(blob.descriptor.size_bytes)}")
    return blob.source()


def _unless_stopped(stop: threading.Event, advance: Advance, count: int) -> None:
    if stop.is_set():
        raise Interrupted("another layer failed, or a signal came")
    advance(count)


def _attach(evidence: Evidence, image: Image, images: Images, tell: Tell, now_s: float) -> int:
    """Attach what is not there, or was said too long ago; return the bytes sent."""
    attachments = lacking(images, image, evidence, now_s=now_s)
    if not attachments:
        return 0
    blobs = [_document(each.kind, each.blob, each.data) for each in attachments]
    sent = _send([*blobs, _document("empty", described(EMPTY, EMPTY_TYPE), EMPTY)], images, tell)
    return sent + attach(images, described(image.manifest, MANIFEST), attachments)


def _read_back(image: Image, images: Images) -> None:
    layers = read_image(images, image.digest).layers
    with _several(images, threading.Event()) as pool:
        there = list(pool.map(images.has, [layer.descriptor for layer in layers]))
    for layer, is_there in zip(layers, there, strict=True):
        if not is_there:
            message = f"{layer.part} layer {layer.title!r} ({layer.descriptor.digest}) vanished while it was pushed"
            raise ImageMissing(message, advice="run again: it is then sent anew")
