"""What of a registry's repository nobody needs any more, and its deletion.

Owns the question which image may go. One stays when an environment runs it or may go back
to it, when any tag but its own build id and its commit's names it, when it is among the last
that were pushed, when it was pushed within two hours, and when nobody knows when that was, as
only its provenance says. What shipway did not make is never touched. A memory of layers, or a base,
stays as long as an image that stays has all of their layers. A load generator goes two hours
after it was pushed last: a test that still runs has pulled it, and the next makes it anew.

Deletes what names others first, so that a run that is killed leaves nothing that the next
one does not find: an image, what was attached to it, the name under which that was found.
Blobs are the registry's to collect.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from shipway import documents
from shipway.artifacts import Digest, Image
from shipway.console import Tell
from shipway.errors import ImageCorrupt, ImageMissing
from shipway.oci import compose, evidence, tested
from shipway.oci.images import Images, document, read_image
from shipway.oci.referrers import attached, belongs, name_for, subject_of

GRACE_S = 7200.0
_TAGS_LAST_S = 30.0  # so long a list of all tags is believed while images are deleted
_SPARE_NAME = re.compile(r"(layers|base|loadtest)-[0-9a-f]{16,64}")

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Kind = Literal["image", "layers", "base", "generator", "attachments", "foreign"]


class Stored(Struct, frozen=True, kw_only=True):
    """One manifest of a repository: what it is, and why it goes or stays.

    `blobs` are the sizes of what it needs, itself and its `layers` included; `pushed_s` is when
    it was pushed, in seconds since 1970, where that is known.
    """

    kind: Kind
    digest: Digest
    names: frozenset[str] = frozenset()
    why: str = ""
    image: Image | None = None
    pushed_s: float | None = None
    layers: frozenset[Digest] = frozenset()
    blobs: Mapping[Digest, int] = {}


class Verdict(Struct, frozen=True, kw_only=True):
    """What goes, what stays, and the bytes that nothing needs then."""

    going: tuple[Stored, ...]
    staying: tuple[Stored, ...]

    @property
    def freed_bytes(self) -> int:
        """The size of what only those need that go."""
        needed = {blob for each in self.staying for blob in each.blobs}
        spare = {blob: size for each in self.going for blob, size in each.blobs.items() if blob not in needed}
        return sum(spare.values())


# -- looking -----------------------------------------------------------------------------


def examine(images: Images, *, in_use: Mapping[Digest, str], newest: int, now_s: float | None) -> Verdict:
    """Say what may go and what stays; `in_use` are images that must stay, and why. Changes nothing.

    The `newest` images that were pushed last stay too. With `now_s` of `None` age does not count:
    nobody else uses these images.
    """
    names: dict[Digest, set[str]] = {digest: set() for digest in in_use}
    for name, digest in _resolved(images, list(images.names())):
        names.setdefault(digest, set()).update({name} - {name_for(digest)})
    found = _mapped(images, lambda digest: _look(images, digest, frozenset(names[digest])), list(names))
    return _judge([each for each in found if each], in_use, newest, now_s)


def is_image_name(name: str) -> bool:
    """Tell whether a name is neither one of ours for something else nor one of attachments."""
    return not (_SPARE_NAME.fullmatch(name) or subject_of(name) or tested.is_one(name))


def _resolved(images: Images, names: Sequence[str]) -> list[tuple[str, Digest]]:
    """Return what each name means; the name of attachments means the image that they belong to."""
    meant = _mapped(images, lambda name: subject_of(name) or images.tagged(name), names)
    return [(name, digest) for name, digest in zip(names, meant, strict=True) if digest]


def _look(images: Images, digest: Digest, names: frozenset[str]) -> Stored | None:
    """Return what lies under a digest; nothing where there is neither a manifest nor an attachment."""
    try:
        data = images.read(digest)
    except ImageMissing:
        orphaned = images.tagged(name_for(digest)) is not None
        return Stored(kind="attachments", digest=digest) if orphaned else None
    found = _weighed(Stored(kind="foreign", digest=digest, names=names), data)
    begins = {match[1] if (match := _SPARE_NAME.fullmatch(name)) else "" for name in names}
    if begins == {"layers"}:
        return replace(found, kind="layers")
    if begins == {"base"}:
        return replace(found, kind="base", pushed_s=_built_s(images, data))
    if begins == {"loadtest"}:
        return _dated(replace(found, kind="generator"), images)
    try:
        return _dated(replace(found, kind="image", image=read_image(images, digest)), images)
    except ImageCorrupt:
        return found


def _dated(each: Stored, images: Images) -> Stored:
    """Add when it was pushed, where a statement says so."""
    with suppress(ImageCorrupt):
        return replace(each, pushed_s=evidence.pushed_s(images, each.digest))
    return each


def _weighed(each: Stored, data: bytes) -> Stored:
    """Add what a manifest needs: an index, or what is no manifest at all, only itself."""
    blobs, layers = {each.digest: len(data)}, frozenset[Digest]()
    with suppress(ValueError, KeyError, TypeError):
        manifest = documents.decoded(data)
        config, *rest = map(compose.read_blob, (manifest["config"], *manifest["layers"]))
        blobs |= {blob.digest: blob.size_bytes for blob in (config, *rest)}
        layers = frozenset(blob.digest for blob in rest)
    return replace(each, blobs=blobs, layers=layers)


def _built_s(images: Images, manifest: bytes) -> float | None:
    """Return when a base was built, which is shortly before it was pushed."""
    with suppress(ValueError, KeyError, TypeError, OverflowError, ImageCorrupt, ImageMissing):
        created = documents.decoded(document(images, compose.config_descriptor(manifest)))["created"]
        return datetime.fromisoformat(created).timestamp()
    return None


def _mapped(images: Images, function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    with ThreadPoolExecutor(images.jobs, thread_name_prefix="prune") as pool:
        return list(pool.map(function, items))


# -- judging -----------------------------------------------------------------------------


def _judge(found: Sequence[Stored], in_use: Mapping[Digest, str], newest: int, now_s: float | None) -> Verdict:
    dated = [(each.pushed_s, each.digest) for each in found if each.image and each.pushed_s is not None]
    last = [digest for _, digest in sorted(dated, reverse=True)[:newest]]
    must = {**dict.fromkeys(last, f"one of the {newest} that were pushed last"), **in_use}
    going: list[Stored] = []
    staying: list[Stored] = []
    for each in sorted(found, key=lambda each: not _has_layers(each)):  # these first: layers stay on their account
        why = _why_it_stays(each, must, staying, now_s)
        (staying if why else going).append(replace(each, why=why or _why_it_goes(each)))
    return Verdict(going=tuple(going), staying=tuple(staying))


def _has_layers(each: Stored) -> bool:
    return each.kind in {"image", "generator"}


def _why_it_stays(
    each: Stored, must: Mapping[Digest, str], staying: Sequence[Stored], now_s: float | None
) -> str | None:
    if each.kind == "foreign":
        return "shipway did not make it"
    if each.kind == "attachments":
        return None
    if each.image:
        return must.get(each.digest) or _why_named(each.image, each.names) or _why_young(each, now_s)
    if each.kind == "generator":
        return _why_young(each, now_s)
    for kept in staying:
        if _has_layers(kept) and each.layers <= kept.layers:
            return f"{kept.digest.short} is made of it"
    return _why_young(each, now_s) if each.kind == "base" else None


def _why_named(image: Image, names: Iterable[str]) -> str | None:
    tags = sorted(name for name in names if name != image.build and not tested.is_one(name))
    return f"tagged {', '.join(tags)}" if tags else None


def _why_young(each: Stored, now_s: float | None) -> str | None:
    if now_s is None:
        return None
    if each.pushed_s is None:
        return "nothing says when it was pushed"
    age_s = now_s - each.pushed_s
    return f"pushed {max(0, age_s) / 60:.0f} minutes ago" if age_s < GRACE_S else None


def _why_it_goes(each: Stored) -> str:
    if each.kind in {"attachments", "generator"}:
        return "its image is gone" if each.kind == "attachments" else "no load test began with it lately"
    return "nothing runs it or goes back to it" if each.image else "no image that stays is made of it"


# -- deleting ----------------------------------------------------------------------------


def carry_out(
    images: Images,
    verdict: Verdict,
    *,
    in_use: Callable[[], Mapping[Digest, str]],
    tell: Tell,
    clock: Callable[[], float] = time.time,
) -> Verdict:
    """Delete what goes, unless it came into use meanwhile; return what went and what stayed.

    Raises `RegistryRefused` when the registry takes no deletions.
    """
    going: list[Stored] = []
    staying = list(verdict.staying)
    tags = _Tags(images, verdict, clock)
    for each in verdict.going:
        why = in_use().get(each.digest) or _why_after_all(images, each, tags, staying, clock())
        if why:
            tell.warn(f"{each.digest} stays: {why}")
            staying.append(replace(each, why=why))
            continue
        tell.say("prune", f"deleting {told(each)}")
        if each.kind != "attachments":  # whose image is gone, and may come back at any moment
            images.delete(each.digest)
        if each.kind in {"image", "generator", "attachments"}:
            _delete_attachments(images, each.digest)
        going.append(each)
    return Verdict(going=tuple(going), staying=tuple(staying))


def told(each: Stored) -> str:
    """Name something of a repository for people."""
    names = f" ({', '.join(sorted(each.names))})" if each.names and not each.image else ""
    return f"{compose.version(each.image)}, {each.digest}" if each.image else f"{each.kind} {each.digest}{names}"


class _Tags:
    """Which images the tags mean, but for build ids: looked at anew when that was half a minute ago."""

    def __init__(self, images: Images, verdict: Verdict, clock: Callable[[], float]) -> None:
        self._images = images
        self._clock = clock
        self._builds = {
            name
            for each in (*verdict.going, *verdict.staying)
            if each.image
            for name in each.names & {each.image.build}
        }
        self._meant: list[tuple[str, Digest]] = []
        self._looked_at = float("-inf")

    def of(self, digest: Digest) -> set[str]:
        if self._clock() - self._looked_at > _TAGS_LAST_S:
            self._looked_at = self._clock()
            names = [name for name in self._images.names() if is_image_name(name) and name not in self._builds]
            self._meant = _resolved(self._images, names)
        return {name for name, meant in self._meant if meant == digest}


def _why_after_all(images: Images, each: Stored, tags: _Tags, staying: Sequence[Stored], now_s: float) -> str | None:
    """Look again right before a deletion: a tag may have come, or another push."""
    if each.kind == "attachments":
        now = _look(images, each.digest, each.names)
        return "its image is there again" if now and now.kind != "attachments" else None
    if each.image is None:
        return _why_it_stays(_dated(each, images) if each.kind == "generator" else each, {}, staying, now_s)
    return _why_named(each.image, tags.of(each.digest)) or _why_young(
        replace(each, pushed_s=evidence.pushed_s(images, each.digest)), now_s
    )


def _delete_attachments(images: Images, subject: Digest) -> None:
    index = images.tagged(name_for(subject))
    if index is not None:
        with suppress(ImageCorrupt):  # then nobody can tell what it named
            for each in attached(images, subject):
                if belongs(images, each, subject):
                    images.delete(each.descriptor.digest)
        images.delete(index)
