"""What is attached to an image by its digest: bills of materials, statements, signatures.

Owns the artifact manifests that name an image as their `subject`, and the name under which
they are found: `sha256-<hex>`, an index of them, since not every registry answers the API
for it. Others may attach things of their own, which stay. Knows nothing of what is attached.
https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#referrers-tag-schema
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from shipway import documents
from shipway.artifacts import Descriptor, Digest
from shipway.errors import ImageCorrupt, ImageMissing, PushError
from shipway.oci.compose import INDEX, MANIFEST, blob_entry, canonical, read_blob
from shipway.oci.images import EMPTY, EMPTY_TYPE, Images, described, document

KIND = "dev.shipway.kind"
CREATED = "org.opencontainers.image.created"
_TRIES = 5
_NAME = re.compile(r"sha256-([0-9a-f]{64})")


class Attachment(Struct, frozen=True, kw_only=True):
    """A document to attach. An image has one of a kind from us; `created` is in RFC 3339, UTC."""

    kind: str
    media_type: str
    data: bytes
    created: str
    annotations: Mapping[str, str] = {}

    @property
    def blob(self) -> Descriptor:
        """The document's own descriptor."""
        return described(self.data, self.media_type)

    def manifest(self, subject: Descriptor) -> bytes:
        """Return the artifact that attaches it to `subject`."""
        return canonical(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "artifactType": self.media_type,
                "config": blob_entry(described(EMPTY, EMPTY_TYPE)),
                "layers": [blob_entry(self.blob)],
                "subject": blob_entry(subject),
                "annotations": self._annotations,
            }
        )

    def entry(self, subject: Descriptor) -> dict[str, Any]:
        """Return how the index of `subject` names it."""
        manifest = described(self.manifest(subject), MANIFEST)
        return {**blob_entry(manifest), "artifactType": self.media_type, "annotations": self._annotations}

    @property
    def _annotations(self) -> dict[str, str]:
        return {**self.annotations, CREATED: self.created, KIND: self.kind}


class Attached(Struct, frozen=True, kw_only=True):
    """What an image's index names, ours or not."""

    descriptor: Descriptor
    artifact_type: str
    annotations: Mapping[str, str]
    entry: Mapping[str, Any]

    @property
    def kind(self) -> str | None:
        """Which of our kinds it is; `None` for another's."""
        return self.annotations.get(KIND)


def name_for(subject: Digest) -> str:
    """Return the name under which an image's attachments are found."""
    return f"sha256-{subject.hex}"


def subject_of(name: str) -> Digest | None:
    """Return whose attachments a name stands for, if it is such a name."""
    found = _NAME.fullmatch(name)
    return Digest(f"sha256:{found[1]}") if found else None


def attached(images: Images, subject: Digest) -> tuple[Attached, ...]:
    """Return all that is attached to an image; raises `ImageCorrupt` for an index that is none."""
    digest = images.tagged(name_for(subject))
    if digest is None:
        return ()
    try:
        return tuple(_parsed(entry) for entry in documents.decoded(images.read(digest))["manifests"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{images.repository}: {name_for(subject)} is no OCI image index ({error})"
        raise ImageCorrupt(
            message, advice=f"delete the tag {name_for(subject)}; the next push attaches anew"
        ) from error


def belongs(images: Images, each: Attached, subject: Digest) -> bool:
    """Tell whether what an index names says itself that it is attached there: whoever may push can name anything."""
    try:
        return bool(documents.decoded(images.read(each.descriptor.digest))["subject"]["digest"] == subject)
    except (ImageMissing, ImageCorrupt, ValueError, KeyError, TypeError):
        return False


def attach(
    images: Images, subject: Descriptor, attachments: Sequence[Attachment], found: Sequence[Attached] | None = None
) -> int:
    """Let an image's index name these, instead of ours of the same kind; return the bytes sent.

    Their blobs, and the empty configuration, are there; `found` is what `attached` has just
    said. A registry replaces an index without a look at what it replaces, so this looks again
    afterwards. Of two who attach at the very same time one can still be lost: both have then
    said the same of the same image.
    """
    if not attachments:
        return 0
    sent = sum(images.put(each.manifest(subject), MANIFEST, anew=True) for each in attachments)
    mine = {each.kind: each.entry(subject) for each in attachments}
    for _ in range(_TRIES):
        there = attached(images, subject.digest) if found is None else found
        if all(entry in [each.entry for each in there] for entry in mine.values()):
            return sent
        others = [each.entry for each in there if each.kind not in mine]
        index = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*others, *mine.values()]})
        images.tag(name_for(subject.digest), index, INDEX)
        sent += len(index)
        if images.tagged(name_for(subject.digest)) == Digest.of(index):
            return sent
        found = None
    message = f"{images.repository}: {name_for(subject.digest)}, what is attached to the image, changes all the time"
    raise PushError(message)


def content(images: Images, each: Attached) -> bytes:
    """Return an attached document; raises `ImageMissing`, `ImageCorrupt`."""
    try:
        (layer,) = documents.decoded(images.read(each.descriptor.digest))["layers"]
        blob = read_blob(layer)
    except (ValueError, KeyError, TypeError) as error:
        raise ImageCorrupt(f"{images.repository}@{each.descriptor.digest} holds no single document") from error
    return document(images, blob)


def _parsed(entry: Mapping[str, Any]) -> Attached:
    return Attached(
        descriptor=read_blob(entry),
        artifact_type=str(entry.get("artifactType", "")),
        annotations={name: str(text) for name, text in (entry.get("annotations") or {}).items()},
        entry=entry,
    )
