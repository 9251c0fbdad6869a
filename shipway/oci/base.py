"""The image that ours stands on, read from an OCI layout on disk and believed in nothing.

Owns the refusal of bases that lie or that hold what must not be built upon. Unpacks
nothing: layers are appended to as they are, so their device nodes and whiteouts are the
container runtime's business. Entry names with `..`, and anything but folders below `/srv`,
are refused, since nobody could say what our own paths would then mean.
Every refusal is a `BaseRefused` that names the base.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shipway.artifacts import Descriptor, Digest, Layer
from shipway.errors import BaseRefused, ConfigError, PushError
from shipway.oci.archive import NotAsSaid, members, pieces
from shipway.oci.compose import CONFIG, INDEX, MANIFEST, TAR, TAR_GZIP, Base, Source
from shipway.oci.layers import Known, fingerprint
from shipway.oci.layout import Layout

_DOCKER = "application/vnd.docker."
_MANIFESTS = {MANIFEST, f"{_DOCKER}distribution.manifest.v2+json"}
_INDEXES = {INDEX, f"{_DOCKER}distribution.manifest.list.v2+json"}
_CONFIGS = {CONFIG, f"{_DOCKER}container.image.v1+json"}
# zstd is missing on purpose: its tar cannot be listed with Python's own library.
_LAYERS = {TAR: TAR, TAR_GZIP: TAR_GZIP, f"{_DOCKER}image.rootfs.diff.tar.gzip": TAR_GZIP}
_OURS = PurePosixPath("srv")
_REFERENCE = re.compile(r"layout:(?P<folder>.+)@(?P<digest>sha256:[0-9a-f]{64})")


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Platform(_Document):
    architecture: str
    os: str


class _Descriptor(_Document):
    media_type: str = Field(alias="mediaType")
    digest: Annotated[str, AfterValidator(Digest)]
    size_bytes: int = Field(alias="size", ge=0)
    platform: _Platform | None = None


class _Manifest(_Document):
    """A manifest or an index; never both."""

    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str | None = Field(None, alias="mediaType")
    config: _Descriptor | None = None
    layers: tuple[_Descriptor, ...] | None = None
    manifests: tuple[_Descriptor, ...] | None = None


class _Rootfs(_Document):
    diff_ids: tuple[Annotated[str, AfterValidator(Digest)], ...]


class _Settings(_Document):
    env: tuple[Annotated[str, Field(pattern="^[^=]+=")], ...] | None = Field(None, alias="Env")


class _Config(_Platform):
    rootfs: _Rootfs
    config: _Settings | None = None
    history: tuple[Mapping[str, Any], ...] | None = None


def read_base(reference: str, *, root: Path, platform: str, known: Known) -> tuple[Base, Mapping[Digest, Source]]:
    """Return the base that `[image] base` names, and how to get its layers' bytes.

    Raises `ConfigError` for a reference that is none, `BaseRefused` for a base that lies.
    """
    os, architecture = platform.split("/")
    if reference == "scratch":
        return Base(os=os, architecture=architecture), {}
    found = _REFERENCE.fullmatch(reference)
    if not found:
        message = f"[image] base is {reference!r}, neither `scratch` nor `layout:FOLDER@sha256:…`"
        raise ConfigError(message)
    layout = Layout(root / found["folder"])
    try:
        manifest, config = _documents(layout, Digest(found["digest"]), _Platform(os=os, architecture=architecture))
        layers = _layers(layout, manifest, config)
        _look_inside(layout, layers, known)
    except (NotAsSaid, ValidationError, PushError) as error:
        message = f"the base {reference} is refused: {_reason(error)}"
        raise BaseRefused(message) from error
    base = Base(
        os=config.os,
        architecture=config.architecture,
        layers=layers,
        environment=dict(item.split("=", 1) for item in (config.config and config.config.env) or ()),
        history=_history(config, layers),
    )
    return base, {layer.descriptor.digest: partial(pieces, layout.path(layer.descriptor.digest)) for layer in layers}


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error.args[0])
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(word) for word in first['loc'])}: {first['msg']}"


def _documents(layout: Layout, digest: Digest, wanted: _Platform) -> tuple[_Manifest, _Config]:
    document = _Manifest.model_validate_json(layout.read(digest))
    if document.manifests is not None and document.layers is None and document.config is None:
        _expect(document.media_type or INDEX, _INDEXES)
        for entry in document.manifests:
            if entry.platform and (entry.platform.os, entry.platform.architecture) == (wanted.os, wanted.architecture):
                document = _Manifest.model_validate_json(_read(layout, entry, _MANIFESTS))
                break
    if document.manifests is not None or document.layers is None or document.config is None:
        kind = "both layers and manifests" if document.layers is not None and document.manifests is not None else ""
        message = f"it has {kind or f'no image for {wanted.os}/{wanted.architecture}'}"
        raise NotAsSaid(message)
    _expect(document.media_type or MANIFEST, _MANIFESTS)
    config = _Config.model_validate_json(_read(layout, document.config, _CONFIGS))
    if (config.os, config.architecture) != (wanted.os, wanted.architecture):
        message = f"it is made for {config.os}/{config.architecture}, not {wanted.os}/{wanted.architecture}"
        raise NotAsSaid(message)
    return document, config


def _read(layout: Layout, entry: _Descriptor, media_types: Collection[str]) -> bytes:
    _expect(entry.media_type, media_types)
    data = layout.read(Digest(entry.digest))
    if len(data) != entry.size_bytes:
        message = f"{entry.digest} has {len(data)} bytes, said were {entry.size_bytes}"
        raise NotAsSaid(message)
    return data


def _expect(media_type: str, known: Collection[str]) -> None:
    if media_type not in known:
        message = f"media type {media_type!r} stands where one of {', '.join(sorted(known))} belongs"
        raise NotAsSaid(message)


def _layers(layout: Layout, manifest: _Manifest, config: _Config) -> tuple[Layer, ...]:
    entries, diff_ids = manifest.layers or (), config.rootfs.diff_ids
    if len(entries) != len(diff_ids):
        message = f"it has {len(entries)} layers, but {len(diff_ids)} diff_ids"
        raise NotAsSaid(message)
    return tuple(
        _layer(layout, entry, Digest(diff_id), f"base layer {number}")
        for number, (entry, diff_id) in enumerate(zip(entries, diff_ids, strict=True), start=1)
    )


def _layer(layout: Layout, entry: _Descriptor, diff_id: Digest, title: str) -> Layer:
    _expect(entry.media_type, _LAYERS)
    digest = Digest(entry.digest)
    if not layout.has(digest, entry.size_bytes):
        message = f"{title}, {digest}, is not there with the {entry.size_bytes} bytes that were said"
        raise NotAsSaid(message)
    descriptor = Descriptor(media_type=_LAYERS[entry.media_type], digest=digest, size_bytes=entry.size_bytes)
    return Layer(part="base", title=title, descriptor=descriptor, diff_id=diff_id)


def _look_inside(layout: Layout, layers: Sequence[Layer], known: Known) -> None:
    """List every layer once; a base that was found good is known by its layers."""
    key = fingerprint("base", *(word for layer in layers for word in (layer.descriptor.digest, layer.diff_id)))
    if known.load(key) is not None:
        return
    for layer in layers:
        with layout.open(layer.descriptor.digest) as blob:
            for path, info, _ in members(blob, layer):
                if path.parts[:1] == _OURS.parts and not info.isdir():
                    message = f"{layer.title} holds /{path}, where only shipway's own layers may lie"
                    raise NotAsSaid(message)
    known.save(key, layers)


def _history(config: _Config, layers: Sequence[Layer]) -> tuple[Mapping[str, Any], ...]:
    """Return the base's history, or a plain one where it does not fit the layers."""
    history = config.history or ()
    if sum(not entry.get("empty_layer") for entry in history) == len(layers):
        return history
    return tuple({"created_by": layer.title} for layer in layers)
