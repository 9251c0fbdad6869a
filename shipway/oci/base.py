"""The image that ours stands on, by digest, from wherever images live, and believed in nothing.

Owns the refusal of bases that lie or that hold what must not be built upon. Unpacks
nothing: layers are appended to as they are, so their device nodes and whiteouts are the
container runtime's business. Entry names with `..`, and anything but folders below `/srv`,
are refused, since nobody could say what our own paths would then mean. To see that, each
layer is read once, by the first machine that pushes an image on it; the others recall it.
Every refusal is a `BaseRefused` that names the base.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from msgspec import Struct

from shipway import documents
from shipway.artifacts import Descriptor, Digest, Layer
from shipway.documents import Document, Malformed, Meta
from shipway.errors import BaseRefused, ConfigError, ImageCorrupt, ImageMissing, LoginMissing, PushError
from shipway.oci.archive import NotAsSaid, Pieces, members
from shipway.oci.compose import CONFIG, INDEX, MANIFEST, TAR, TAR_GZIP, Base, Source
from shipway.oci.images import Advance, Images, counted, ignore
from shipway.oci.images import document as read_document
from shipway.oci.layers import Known, fingerprint
from shipway.oci.layout import Layout
from shipway.oci.reference import Reference
from shipway.oci.wheels import Target

OpenImages = Callable[[str], Images]

_DOCKER = "application/vnd.docker."
_MANIFESTS = {MANIFEST, f"{_DOCKER}distribution.manifest.v2+json"}
_INDEXES = {INDEX, f"{_DOCKER}distribution.manifest.list.v2+json"}
_CONFIGS = {CONFIG, f"{_DOCKER}container.image.v1+json"}
# zstd is missing on purpose: its tar cannot be listed with Python's own library.
_LAYERS = {TAR: TAR, TAR_GZIP: TAR_GZIP, f"{_DOCKER}image.rootfs.diff.tar.gzip": TAR_GZIP}
_OURS = PurePosixPath("srv")
_ON_DISK = re.compile(r"layout:(?P<folder>.+)@(?P<digest>sha256:[0-9a-f]{64})")
_PYTHON = "PYTHON_VERSION"  # official Python images, and many others, set it


class Ground(Struct, frozen=True, kw_only=True):
    """A base, how to come by its layers, and the key under which they are known to be good; see `Composed`."""

    base: Base
    sources: Mapping[Digest, Source] = {}
    origins: Mapping[Digest, str] = {}
    known: Mapping[str, tuple[Layer, ...]] = {}


class _Platform(Document, frozen=True, kw_only=True):
    architecture: str
    os: str


class _Descriptor(Document, frozen=True, kw_only=True):
    media_type: str = documents.field(name="mediaType")
    digest: Digest
    size_bytes: Annotated[int, Meta(ge=0)] = documents.field(name="size")
    platform: _Platform | None = None

    def described(self, media_type: str) -> Descriptor:
        return Descriptor(media_type=media_type, digest=self.digest, size_bytes=self.size_bytes)


class _Manifest(Document, frozen=True, kw_only=True):
    """A manifest or an index; never both."""

    schema_version: Literal[2] = documents.field(name="schemaVersion")
    media_type: str | None = documents.field(default=None, name="mediaType")
    config: _Descriptor | None = None
    layers: tuple[_Descriptor, ...] | None = None
    manifests: tuple[_Descriptor, ...] | None = None


class _Rootfs(Document, frozen=True, kw_only=True):
    diff_ids: tuple[Digest, ...]


class _Settings(Document, frozen=True, kw_only=True):
    env: tuple[Annotated[str, Meta(pattern="^[^=]+=")], ...] | None = documents.field(default=None, name="Env")


class _Config(_Platform, frozen=True, kw_only=True):
    rootfs: _Rootfs
    config: _Settings | None = None
    history: tuple[Mapping[str, Any], ...] | None = None


def read_base(
    reference: str,
    target: Target,
    *,
    root: Path,
    known: Known,
    images: Images,
    open_images: OpenImages,
    is_whole: bool = False,
    advance: Advance = ignore,
) -> Ground:
    """Return the base that `[image] base` names; `images` is where the image will live.

    One that `is_whole` gets no layers of ours, so that it may hold files below `/srv`.
    `advance` is told of what was read of its layers; what it raises ends the call.
    Raises `ConfigError` for a reference that is none, `BaseRefused` for a base that lies, and
    what the registry raises that cannot be asked.
    """
    os, architecture = target.platform.split("/")
    if reference == "scratch":
        return Ground(base=Base(os=os, architecture=architecture))
    place, digest = _find(reference, root, images, open_images)
    try:
        manifest, config = _documents(_Documents(place, known), digest, _Platform(os=os, architecture=architecture))
        environment = dict(item.split("=", 1) for item in (config.config and config.config.env) or ())
        _expect_python(environment.get(_PYTHON), target)
        layers = _layers(manifest, config)
        key = _look_inside(place, layers, known, is_whole=is_whole, advance=advance)
    except (NotAsSaid, Malformed, ImageMissing, ImageCorrupt) as error:
        raise BaseRefused(f"the base {reference} is refused: {error.args[0]}") from error
    base = Base(
        os=config.os,
        architecture=config.architecture,
        layers=layers,
        digest=digest,
        environment=environment,
        history=_history(config, layers),
    )
    return Ground(
        base=base,
        sources={layer.descriptor.digest: partial(place.pieces, layer.descriptor) for layer in layers},
        origins=_origins(place, images, layers),
        known={key: layers},
    )


def _find(reference: str, root: Path, images: Images, open_images: OpenImages) -> tuple[Images, Digest]:
    """Return where the base lives, and its digest."""
    if found := _ON_DISK.fullmatch(reference):
        return Layout(root / found["folder"]), Digest(found["digest"])
    try:
        name = Reference.parse(reference)
    except ConfigError as error:
        message = f"[image] base is {reference!r}, neither `scratch`, `Dockerfile`, `layout:FOLDER@sha256:…` "
        raise ConfigError(message + "nor an image of a registry, `HOST/NAME@sha256:…`", advice=error.next) from error
    place = images if name.repository == images.repository else open_images(name.repository)
    if name.digest is None:
        raise ConfigError(
            f"[image] base is {reference!r}: a name may mean another image tomorrow, a digest cannot",
            advice=_pinned(name, place),
        )
    return place, name.digest


def _pinned(name: Reference, place: Images) -> str:
    """Say what the reference means now, if somebody can say it."""
    tag = name.tag or "latest"
    with contextlib.suppress(PushError, LoginMissing):
        if digest := place.tagged(tag):
            return f"write {name.repository}:{tag}@{digest}, which it means now"
    return "write HOST/NAME@sha256:…; the registry did not say which digest it means now"


def _origins(place: Images, images: Images, layers: Sequence[Layer]) -> Mapping[Digest, str]:
    """Return the base's repository for each layer that `images`, in the same registry, can mount."""
    host, _, path = place.repository.partition("/")
    if not images.shared or place.repository == images.repository or host != images.repository.partition("/")[0]:
        return {}
    return {layer.descriptor.digest: path for layer in layers}


def _expect_python(version: str | None, target: Target) -> None:
    if version is not None and version.split(".")[:2] != target.python.split("."):
        message = f"it has Python {version}, but [image] python is {target.python}"
        raise NotAsSaid(message)


class _Documents:
    """Manifests and configurations by digest: those of a registry are asked for once, since none can ever change."""

    def __init__(self, images: Images, known: Known) -> None:
        self._images = images
        self._known = known

    def manifest(self, digest: Digest) -> bytes:
        return self._once(digest, lambda: self._images.read(digest))

    def config(self, blob: Descriptor) -> bytes:
        return self._once(blob.digest, lambda: read_document(self._images, blob))

    def _once(self, digest: Digest, fetch: Callable[[], bytes]) -> bytes:
        return self._known.document(digest, fetch) if self._images.shared else fetch()


def _documents(read: _Documents, digest: Digest, wanted: _Platform) -> tuple[_Manifest, _Config]:
    document = documents.parse(_Manifest, read.manifest(digest))
    if document.manifests is not None and document.layers is None and document.config is None:
        _expect(document.media_type or INDEX, _INDEXES)
        for entry in document.manifests:
            if entry.platform and (entry.platform.os, entry.platform.architecture) == (wanted.os, wanted.architecture):
                document = _listed(read, entry)
                break
    if document.manifests is not None or document.layers is None or document.config is None:
        kind = "both layers and manifests" if document.layers is not None and document.manifests is not None else ""
        message = f"it has {kind or f'no image for {wanted.os}/{wanted.architecture}'}"
        raise NotAsSaid(message)
    _expect(document.media_type or MANIFEST, _MANIFESTS)
    _expect(document.config.media_type, _CONFIGS)
    config = documents.parse(_Config, read.config(document.config.described(CONFIG)))
    if (config.os, config.architecture) != (wanted.os, wanted.architecture):
        message = f"it is made for {config.os}/{config.architecture}, not {wanted.os}/{wanted.architecture}"
        raise NotAsSaid(message)
    return document, config


def _listed(read: _Documents, entry: _Descriptor) -> _Manifest:
    """Return the manifest that an index names."""
    _expect(entry.media_type, _MANIFESTS)
    data = read.manifest(entry.digest)
    if len(data) != entry.size_bytes:
        message = f"{entry.digest} has {len(data)} bytes, said were {entry.size_bytes}"
        raise NotAsSaid(message)
    return documents.parse(_Manifest, data)


def _expect(media_type: str, known: Collection[str]) -> None:
    if media_type not in known:
        message = f"media type {media_type!r} stands where one of {', '.join(sorted(known))} belongs"
        raise NotAsSaid(message)


def _layers(manifest: _Manifest, config: _Config) -> tuple[Layer, ...]:
    entries, diff_ids = manifest.layers or (), config.rootfs.diff_ids
    if len(entries) != len(diff_ids):
        message = f"it has {len(entries)} layers, but {len(diff_ids)} diff_ids"
        raise NotAsSaid(message)
    return tuple(
        _layer(entry, diff_id, f"base layer {number}")
        for number, (entry, diff_id) in enumerate(zip(entries, diff_ids, strict=True), start=1)
    )


def _layer(entry: _Descriptor, diff_id: Digest, title: str) -> Layer:
    _expect(entry.media_type, _LAYERS)
    descriptor = entry.described(_LAYERS[entry.media_type])
    return Layer(part="base", title=title, descriptor=descriptor, diff_id=diff_id)


def _look_inside(images: Images, layers: tuple[Layer, ...], known: Known, *, is_whole: bool, advance: Advance) -> str:
    """List every layer once; return the key under which a base that was found good is known."""
    kind = "whole" if is_whole else "base"
    key = fingerprint(kind, *(word for layer in layers for word in (layer.descriptor.digest, layer.diff_id)))
    if known.load(key) != layers:
        for layer in layers:
            pieces = counted(images.pieces(layer.descriptor), advance)
            for path, info, _ in members(Pieces(pieces), layer):
                if path.parts[:1] == _OURS.parts and not (info.isdir() or is_whole):
                    message = f"{layer.title} holds /{path}, where only shipway's own layers may lie"
                    raise NotAsSaid(message)
        known.save(key, layers)
    return key


def _history(config: _Config, layers: Sequence[Layer]) -> tuple[Mapping[str, Any], ...]:
    """Return the base's history, or a plain one where it does not fit the layers."""
    history = config.history or ()
    if sum(not entry.get("empty_layer") for entry in history) == len(layers):
        return history
    return tuple({"created_by": layer.title} for layer in layers)
