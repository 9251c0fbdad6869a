"""Stage `push`: an image to where images live, moving only what is not there.

Blobs first, several at once, those that are known early while the rest of the
image is still made; then the manifest, and all read back; the names last: until
then nobody can meet the image. What waits for nothing else goes at the same time. Run again
after anything: what arrived is not sent twice. Knows not whether it is a registry or a layout on disk.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import ParamSpec, Self, TypeVar

from msgspec import Struct

from shipway.artifacts import Descriptor, Digest, Image, ImageRef, Layer
from shipway.console import Tell, size
from shipway.errors import BlobsLost, ImageMissing, Interrupted
from shipway.oci.compose import CONFIG, MANIFEST, Composed, Source
from shipway.oci.evidence import Evidence, lacking
from shipway.oci.images import EMPTY, EMPTY_TYPE, Advance, Images, described, read_image
from shipway.oci.layers import remember
from shipway.oci.referrers import Attachment, attach, attached

STAGE = "push"
DOCUMENTS = "documents"  # beside the four parts: configuration and manifest
_FRESH_S = 10.0  # for so long a blob that was seen in the registry counts as there: no clean-up is quicker
_STOPPED = "another layer failed, or a signal came"
_TICK_S = 0.1  # so often whoever waits for a source looks whether it is to stop
_Given = queue.Queue[bytes | BaseException | None]  # pieces, and at the end an error or nothing

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Sent(Struct, frozen=True, kw_only=True):
    """How much was sent, and how much was there."""

    bytes_sent: int
    bytes_reused: int


class _Blob(Struct, frozen=True, kw_only=True):
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
    begun: Crew | None = None,
) -> tuple[ImageRef, Sent]:
    """Send what is lacking, read all back, attach the evidence, then let `tags` mean this image.

    `begun` has sent some of it already: see `at_work`.
    Raises `PushError`; `ImageMissing` when a layer is lacking that nobody can make.
    """
    image, blobs = composed.image, _blobs(composed)
    manifest = described(image.manifest, MANIFEST)
    with contextlib.nullcontext(begun) if begun else at_work(images, tell, clock) as crew:
        is_there = crew.begin(images.has, manifest)
        found = crew.begin(attached, images, image.digest) if evidence else None
        moved = crew.move(blobs)
        before = crew.end(found) if found else ()
        said = lacking(images, before, image, evidence, now_s=clock()) if evidence else []
        saying = crew.begin_move(_papers(said))
        named, moved_again = (0, {}) if crew.end(is_there) else _put(image, blobs, images, crew)
        moved_said = crew.end_move(saying)
        attaching = crew.begin(attach, images, manifest, said, before)
        sure = _seen(blobs, moved) if not moved_again and clock() - crew.began_s < _FRESH_S else frozenset()
        _read_back(image, images, crew, sure)
        remembering = [crew.begin(remember, images, *each) for each in composed.known.items() if images.shared]
        sent = named + crew.end(attaching)
        crew.ended(remembering)
        new = [tag for tag in tags if named or images.tagged(tag) != image.digest]
        for tag in new:
            tell.say(STAGE, f"tag {tag}")
        crew.ended([crew.begin(images.tag, tag, image.manifest, MANIFEST) for tag in new])
    sent += sum(size for each in (moved, moved_again, moved_said) for size in each.values())
    total = sum(blob.descriptor.size_bytes for blob in blobs) + manifest.size_bytes
    ref = ImageRef(repository=images.repository, digest=image.digest)
    tell.say(STAGE, f"{size(sent)} sent, {size(max(0, total - sent))} were there: {ref}")
    return ref, Sent(bytes_sent=sent, bytes_reused=max(0, total - sent))


@contextlib.contextmanager
def at_work(images: Images, tell: Tell, clock: Callable[[], float] = time.time) -> Iterator[Crew]:
    """Give what sends layers while their image is still made, for `push` to go on with.

    Nobody can meet what was sent; if there is no `push`, what moves is cancelled.
    """
    with images.pushing(), Crew(images, tell, began_s=clock()) as crew:
        yield crew


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


def _papers(attachments: Sequence[Attachment]) -> list[_Blob]:
    """Return the blobs of what is to be attached."""
    blobs = [_document(each.kind, each.blob, each.data) for each in attachments]
    return [*blobs, _document("empty", described(EMPTY, EMPTY_TYPE), EMPTY)] if blobs else []


def _put(image: Image, blobs: Sequence[_Blob], images: Images, crew: Crew) -> tuple[int, dict[Digest, int]]:
    """Store the manifest, and once again what the registry has lost of what it names; return the bytes sent."""
    again: dict[Digest, int] = {}
    try:
        named = images.put(image.manifest, MANIFEST, anew=True)
    except BlobsLost as lost:
        crew.tell.warn(f"{lost.message}; sending it again")
        again = crew.move([blob for blob in blobs if lost.concerns(blob.descriptor.digest)], anew=True)
        named = images.put(image.manifest, MANIFEST, anew=True)
    crew.tell.say(STAGE, f"manifest, {size(named)}")
    return named, again


def _seen(blobs: Sequence[_Blob], moved: Mapping[Digest, int]) -> frozenset[Digest]:
    """Return what the registry had: neither sent nor mounted now."""
    return frozenset(blob.descriptor.digest for blob in blobs if not (moved[blob.descriptor.digest] or blob.origins))


def _read_back(image: Image, images: Images, crew: Crew, sure: Collection[Digest]) -> None:
    """Prove that all is there: the documents by their bytes, a layer by a look unless that was `sure` a moment ago."""
    layers = [layer for layer in image.layers if layer.descriptor.digest not in sure]
    reading = crew.begin(read_image, images, image.digest)
    there = crew.ended([crew.begin(images.has, layer.descriptor) for layer in layers])
    crew.end(reading)
    for layer, is_there in zip(layers, there, strict=True):
        if not is_there:
            message = f"{layer.part} layer {layer.title!r} ({layer.descriptor.digest}) vanished while it was pushed"
            raise ImageMissing(message, advice="run again: it is then sent anew")


class Crew:
    """The threads of one push; what goes wrong first, or a signal, ends them all at once and is raised."""

    def __init__(self, images: Images, tell: Tell, *, began_s: float) -> None:
        """Start no thread yet."""
        self.tell = tell
        self.began_s = began_s
        self._images = images
        self._pool = ThreadPoolExecutor(images.jobs, thread_name_prefix=STAGE)
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._sent_early: dict[Digest, Future[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._images.abandon()  # before anybody stops by itself, and cancels what this would cut
            self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def send(self, layer: Layer, source: Source) -> None:
        """Begin to send a layer, if it is lacking: a `Ready`; raises what went wrong with an earlier one."""
        if self._failures:
            raise self._failures[0]
        blob = _Blob(part=layer.part, title=layer.title, descriptor=layer.descriptor, source=source)
        self._sent_early[layer.descriptor.digest] = self.begin(self._moved, blob, anew=False)

    def begin(self, errand: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Let a thread do this."""

        def run() -> _T:
            if self._stop.is_set():
                raise Interrupted(_STOPPED)
            try:
                return errand(*args, **kwargs)
            except BaseException as error:
                self._failures.append(error)
                self._stop.set()  # here, so that no thread begins anything else meanwhile
                raise

        return self._pool.submit(run)

    def ended(self, futures: Sequence[Future[_T]]) -> list[_T]:
        """Return what came of these; what went wrong first, in whichever thread, is raised."""
        try:
            for future in as_completed(futures):
                future.result()
        except Interrupted as error:
            raise (self._failures or [error])[0] from None
        return [future.result() for future in futures]

    def end(self, future: Future[_T]) -> _T:
        """Return what came of this."""
        return self.ended([future])[0]

    def move(self, blobs: Sequence[_Blob], *, anew: bool = False) -> dict[Digest, int]:
        """Send what is lacking, several blobs at once; return the bytes sent of each."""
        return self.end_move(self.begin_move(blobs, anew=anew))

    def begin_move(self, blobs: Sequence[_Blob], *, anew: bool = False) -> dict[Digest, Future[int]]:
        """Begin to send what is lacking."""
        early = {} if anew else self._sent_early
        return {
            (digest := blob.descriptor.digest): early.get(digest) or self.begin(self._moved, blob, anew=anew)
            for blob in blobs
        }

    def end_move(self, moving: Mapping[Digest, Future[int]]) -> dict[Digest, int]:
        """Wait until it has arrived."""
        return dict(zip(moving, self.ended(list(moving.values())), strict=True))

    def _moved(self, blob: _Blob, *, anew: bool) -> int:
        with (
            self.tell.progress(STAGE, blob.label, blob.descriptor.size_bytes) as advance,
            contextlib.ExitStack() as reading,
        ):
            return self._images.add(
                blob.descriptor,
                partial(self._pieces, blob, reading),
                origins=blob.origins,
                advance=partial(_unless_stopped, self._stop, advance),
                anew=anew,
            )

    def _pieces(self, blob: _Blob, reading: contextlib.ExitStack) -> Iterable[bytes]:
        """Give a blob's bytes, until `reading` ends; that somebody asks for them means that they are lacking."""
        self.tell.say(STAGE, f"{blob.label}, {size(blob.descriptor.size_bytes)}")
        pieces = blob.source()
        return pieces if isinstance(pieces, Sequence) else reading.enter_context(_read_beside(pieces, self._stop))


@contextlib.contextmanager
def _read_beside(pieces: Iterable[bytes], stop: threading.Event) -> Iterator[Iterator[bytes]]:
    """Read in a thread; whoever waits for a piece that does not come is let go when `stop` is set.

    Nothing else could end that wait: a store may stall, uv may take long.
    """
    given: _Given = queue.Queue(1)  # each piece may be big
    left = threading.Event()
    threading.Thread(target=_hand_over, args=(pieces, given, left), name=f"{STAGE}-source", daemon=True).start()
    try:
        yield _handed_over(given, stop)
    finally:
        left.set()
        with contextlib.suppress(queue.Empty):
            given.get_nowait()  # so that who wants to hand over one more can, and sees that nobody is there


def _handed_over(given: _Given, stop: threading.Event) -> Iterator[bytes]:
    while True:
        try:
            piece = given.get(timeout=_TICK_S)
        except queue.Empty:
            if stop.is_set():
                raise Interrupted(_STOPPED) from None
            continue
        if piece is None:
            return
        if isinstance(piece, BaseException):
            raise piece
        yield piece


def _hand_over(pieces: Iterable[bytes], given: _Given, left: threading.Event) -> None:
    try:
        for piece in pieces:
            given.put(piece)
            if left.is_set():
                return
        given.put(None)
    except BaseException as error:  # noqa: BLE001 - handed over
        given.put(error)


def _unless_stopped(stop: threading.Event, advance: Advance, count: int) -> None:
    if stop.is_set():
        raise Interrupted(_STOPPED)
    advance(count)
