"""A published version's manifest: what is written last, and never changes.

Owns its form, and every check that needs no bytes: paths, digests, the set digest, numbers.
Knows nothing of where it is kept. What passed `parse` is safe to put into paths.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from shipway import documents, gzipped, tarball
from shipway.artifacts import Digest, Model, ModelFile, ModelLayer
from shipway.config import Name
from shipway.documents import Document, Malformed, Meta
from shipway.errors import ModelCorrupt, ModelRefused

MAX_PATH = 200
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def check_path(path: str) -> str:
    """Return a path inside a model folder as it is, or raise `ValueError`.

    Letters, digits and `_.+-` only, in parts that begin with a letter, a digit or `_`: no
    part can be hidden, `..` or an option, and every file system can hold it.
    """
    if len(path) > MAX_PATH:
        message = f"the path {path[:40]!a}… has {len(path)} characters, more than {MAX_PATH}"
        raise ValueError(message)
    if not all(_PART.fullmatch(part) for part in path.split("/")):
        message = f"the path {path!a} may hold letters, digits and _.+- only, and no part may begin with a dot or minus"
        raise ValueError(message)
    return path


Bytes = Annotated[int, Meta(ge=0)]
Number = Annotated[int, Meta(ge=1)]
Moment = Annotated[datetime, Meta(tz=True)]  # one without a zone cannot be compared


class File(Document, frozen=True, kw_only=True):
    """One file of a version."""

    path: str
    digest: Digest
    size_bytes: Bytes

    def __post_init__(self) -> None:
        """Refuse a path that could lead anywhere else."""
        check_path(self.path)


class Tensor(Document, frozen=True, kw_only=True):
    """An input or output of a model; `None` is a free dimension."""

    name: str
    type: str
    shape: tuple[int | None, ...]


class Signature(Document, frozen=True, kw_only=True):
    """What goes into a model, and what comes out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Golden(Document, frozen=True, kw_only=True):
    """The names of the golden cases."""

    tensors: tuple[str, ...]
    exchanges: tuple[str, ...]


class ModelVersion(Document, frozen=True, kw_only=True):
    """One published version: everything but the bytes."""

    schema_version: Literal[1] = 1
    name: Name
    version: Number
    digest: Digest
    files: Annotated[tuple[File, ...], Meta(min_length=1)]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    preprocessing: Mapping[str, Any] | None
    golden: Golden
    metrics: Mapping[str, float]
    card: str | None
    publisher: str
    commit: str | None
    created: Moment
    layer: ModelLayer

    def __post_init__(self) -> None:
        """Refuse what does not agree with itself."""
        paths = {file.path for file in self.files}
        folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
        if len(paths) != len(self.files) or paths & folders:
            message = "a path stands twice, or is a file and a folder"
            raise ValueError(message)
        if not all(map(math.isfinite, self.metrics.values())):
            message = "a metric is no finite number"
            raise ValueError(message)
        if set_digest(self.model.files) != self.digest:
            message = "the set digest is not that of the files"
            raise ValueError(message)

    @property
    def model(self) -> Model:
        """The value that flows through a release."""
        return Model(
            name=self.name,
            version=self.version,
            digest=self.digest,
            files=tuple(
                ModelFile(path=file.path, digest=file.digest, size_bytes=file.size_bytes) for file in self.files
            ),
            layer=self.layer,
            metrics=self.metrics,
        )


class Move(Document, frozen=True, kw_only=True):
    """One move of an alias: from what to what, by whom, when, why.

    `turn` counts the moves of one alias from 1; those of older releases have none.
    """

    alias: Name
    turn: Number | None = None
    previous: Number | None
    version: Number
    who: str
    when: Moment
    why: str


def parse(data: bytes, *, name: str, version: int, where: str) -> ModelVersion:
    """Read a manifest; raises `ModelRefused` for a hostile one, `ModelCorrupt` for a damaged one."""
    try:
        manifest = documents.parse(ModelVersion, data)
    except Malformed as error:
        raise (ModelRefused if error.mistakes else ModelCorrupt)(f"{where}: manifest: {error}") from error
    if (manifest.name, manifest.version) != (name, version):
        raise ModelRefused(f"{where} says that it is version {manifest.version} of {manifest.name}")
    return manifest


def parse_move(data: bytes, *, where: str) -> Move:
    """Read an alias or an entry of the log; raises `ModelCorrupt`."""
    try:
        return documents.parse(Move, data)
    except Malformed as error:
        raise ModelCorrupt(f"{where} is damaged: {error}") from error


def set_digest(files: Iterable[ModelFile]) -> Digest:
    """Return SHA-256 over the `<sha256>  <path>` lines, sorted by path, as `sha256sum` prints them."""
    lines = (f"{file.digest.hex}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return Digest.of("".join(lines).encode())


def layer(files: Iterable[ModelFile], digest: Digest, read: Callable[[ModelFile], Iterable[bytes]]) -> Iterator[bytes]:
    """Yield the image layer of a version: a tar of its files under `srv/models/<set digest>/`."""

    def entry(file: ModelFile) -> tarball.Entry:
        return tarball.Entry(
            path=f"srv/models/{digest.hex}/{file.path}", size_bytes=file.size_bytes, read=lambda: read(file)
        )

    return tarball.stream(entry(file) for file in files)


def described(tar: Iterable[bytes]) -> ModelLayer:
    """Return what there is to know of the layer that streams by."""
    hashed, size_bytes = hashlib.sha256(), 0

    def passing() -> Iterator[bytes]:
        nonlocal size_bytes
        for piece in tar:
            hashed.update(piece)
            size_bytes += len(piece)
            yield piece

    gzip, _ = measured(gzipped.stored(passing()))
    return ModelLayer(digest=Digest(f"sha256:{hashed.hexdigest()}"), size_bytes=size_bytes, gzip=gzip)


def measured(pieces: Iterable[bytes]) -> tuple[Digest, int]:
    """Return the digest and the size of what streams by."""
    hashed, size_bytes = hashlib.sha256(), 0
    for piece in pieces:
        hashed.update(piece)
        size_bytes += len(piece)
    return Digest(f"sha256:{hashed.hexdigest()}"), size_bytes
