"""The frozen values that flow from stage to stage.

Owns the vocabulary: a *tag* or an *alias* is a wish, a `Digest` is a fact. Knows nothing
about where anything is kept or how it is moved. Nothing here touches the outside.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from msgspec import Meta, Struct

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Verdict = Literal["pass", "fail", "inconclusive"]
Part = Literal["base", "dependencies", "model", "app", "dockerfile"]  # the last holds all that a Dockerfile made


class Digest(str):
    """A content address, `sha256:` and 64 lower-case hexadecimal digits.

    Raises `ValueError` for anything else, so that a value of this type is always safe to
    put into a path or a URL.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        if not _DIGEST.fullmatch(text):
            message = f"not a sha256 digest: {text[:80]!r}"
            raise ValueError(message)
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the digest of `data`."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @property
    def hex(self) -> str:
        """The 64 hexadecimal digits alone."""
        return self[7:]

    @property
    def short(self) -> str:
        """The first 12 hexadecimal digits, for people."""
        return self[7:19]


def short_commit(commit: str) -> str:
    """Return a commit for people: 12 digits, and `-dirty` where changed files went in."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


class Commit(Struct, frozen=True, kw_only=True):
    """A commit, and its time in seconds since 1970."""

    id: str
    time_s: int


class Snapshot(Struct, frozen=True, kw_only=True):
    """What git holds of the checkout: the commit, and the tree that is released.

    `tree` is the commit's own tree, or, when `dirty`, that of the tracked files as they
    stand now. `time_s` is the commit's time in seconds since 1970.
    """

    commit: str
    tree: str
    dirty: bool
    time_s: int

    @property
    def label(self) -> str:
        """The commit for people: 12 digits, and `-dirty` where that is so."""
        return short_commit(self.commit + ("-dirty" if self.dirty else ""))


class SuiteRun(Struct, frozen=True, kw_only=True):
    """A test suite that passed on one tree."""

    commit: str
    tree: str
    dirty: bool
    passed: int
    seconds: float


class Descriptor(Struct, frozen=True, kw_only=True):
    """Content by digest, as an OCI manifest names it."""

    media_type: str
    digest: Digest
    size_bytes: int


class ModelFile(Struct, frozen=True, kw_only=True):
    """One file of a model version; `path` is relative and POSIX."""

    path: str
    digest: Digest
    size_bytes: int


class ModelLayer(Struct, frozen=True, kw_only=True):
    """The image layer that a version's files make: its digest and length as a tar.

    `gzip` is the digest of the same as `gzipped.stored` makes it, where the publisher wrote it down.
    """

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=0)]
    gzip: Digest | None = None


class Model(Struct, frozen=True, kw_only=True):
    """One published version, resolved once and pinned for the whole release.

    `digest` is the set digest: SHA-256 over the sorted `<sha256>  <path>` lines of `files`.
    `layer` is the image layer that these files make under
    `/srv/models/<hex of digest>/`; it is known without having the bytes.
    """

    name: str
    version: int
    digest: Digest
    files: tuple[ModelFile, ...]
    layer: ModelLayer
    metrics: Mapping[str, float] = {}

    @property
    def size_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(file.size_bytes for file in self.files)


class ModelRef(Struct, frozen=True, kw_only=True):
    """Which model an image holds, as its labels say."""

    name: str
    version: int
    digest: Digest

    @property
    def folder(self) -> str:
        """Where the model's files lie in the image."""
        return f"srv/models/{self.digest.hex}"


class Layer(Struct, frozen=True, kw_only=True):
    """One layer of an image: which part it belongs to, and what is in it."""

    part: Part
    title: str
    descriptor: Descriptor
    diff_id: Digest


class Image(Struct, frozen=True, kw_only=True):
    """A composed image: everything but the layers' bytes.

    `manifest` and `config` are the exact bytes that are stored; `build` is the build id,
    the hash of its parts and of how the service is started.
    """

    build: str
    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def digest(self) -> Digest:
        """The image's digest: that of its manifest."""
        return Digest.of(self.manifest)

    def size_bytes(self, part: Part) -> int:
        """Return the size of one part's layers as they are stored."""
        return sum(layer.descriptor.size_bytes for layer in self.layers if layer.part == part)


class ImageRef(Struct, frozen=True, kw_only=True):
    """An image that exists: where, and its digest. `str()` is `repository@sha256:…`."""

    repository: str
    digest: Digest

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"


class Version(Struct, frozen=True, kw_only=True):
    """What a target runs, or ran: an image and what its labels say about it. `str()` is for people."""

    digest: Digest
    build: str
    commit: str
    model: ModelRef

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Return the version that was written down as these facts; raises `ValueError`, `KeyError`, `TypeError`."""
        model = facts["model"]
        return cls(
            digest=Digest(facts["digest"]),
            build=facts["build"],
            commit=facts["commit"],
            model=ModelRef(name=model["name"], version=model["version"], digest=Digest(model["digest"])),
        )

    def __str__(self) -> str:
        return f"build {self.build[:12]} ({short_commit(self.commit)}, {self.model.name} {self.model.version})"


class Rollout(Struct, frozen=True, kw_only=True):
    """A version that is live in an environment, and what was live before it."""

    environment: str
    current: Version
    previous: Version | None
    url: str


class LoadReport(Struct, frozen=True, kw_only=True):
    """What a load check measured, warm-up excluded, and what the gate said of it.

    Latencies are milliseconds over all requests, `rate` is requests per second.
    `reasons` says, figure by figure, why the verdict is not `pass`.
    """

    requests: int
    failure_ratio: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rate: float
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    html: Path | None = None
