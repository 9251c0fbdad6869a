"""A published version's manifest: what is written last, and never changes.

Owns its form, and every check that needs no bytes: paths, digests, the set digest, numbers.
Knows nothing of where it is kept. What passed `parse` is safe to put into paths.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from shipway import tarball
from shipway.artifacts import Descriptor, Digest, Model, ModelFile
from shipway.config import Name
from shipway.errors import ModelCorrupt, ModelRefused

LAYER_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"
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


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)


Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Bytes = Annotated[int, Field(ge=0)]
Number = Annotated[int, Field(ge=1)]


class File(_Part):
    """One file of a version."""

    path: Annotated[str, AfterValidator(check_path)]
    digest: Sha256
    size_bytes: Bytes


class Tensor(_Part):
    """An input or output of a model; `None` is a free dimension."""

    name: str
    type: str
    shape: Annotated[tuple[int | None, ...], Field(strict=False)]


class Signature(_Part):
    """What goes into a model, and what comes out."""

    inputs: Annotated[tuple[Tensor, ...], Field(strict=False)]
    outputs: Annotated[tuple[Tensor, ...], Field(strict=False)]


class Golden(_Part):
    """The names of the golden cases."""

    tensors: Annotated[tuple[str, ...], Field(strict=False)]
    exchanges: Annotated[tuple[str, ...], Field(strict=False)]


class LayerSize(_Part):
    """The image layer that the files make, known without having them."""

    digest: Sha256
    size_bytes: Bytes


class ModelVersion(_Part):
    """One published version: everything but the bytes."""

    schema_version: Literal[1] = 1
    name: Name
    version: Number
    digest: Sha256
    files: Annotated[tuple[File, ...], Field(strict=False, min_length=1)]
    inputs: Annotated[tuple[Tensor, ...], Field(strict=False)]
    outputs: Annotated[tuple[Tensor, ...], Field(strict=False)]
    preprocessing: Mapping[str, Any] | None
    golden: Golden
    metrics: Mapping[str, FiniteFloat]
    card: str | None
    publisher: str
    commit: str | None
    created: Annotated[datetime, Field(strict=False)]
    layer: LayerSize

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        paths = {file.path for file in self.files}
        folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
        if len(paths) != len(self.files) or paths & folders:
            message = "a path stands twice, or is a file and a folder"
            raise ValueError(message)
        if set_digest(self.model.files) != self.digest:
            message = "the set digest is not that of the files"
            raise ValueError(message)
        return self

    @property
    def model(self) -> Model:
        """The value that flows through a release."""
        return Model(
            name=self.name,
            version=self.version,
            digest=Digest(self.digest),
            files=tuple(
                ModelFile(path=file.path, digest=Digest(file.digest), size_bytes=file.size_bytes) for file in self.files
            ),
            layer=Descriptor(
                media_type=LAYER_MEDIA_TYPE, digest=Digest(self.layer.digest), size_bytes=self.layer.size_bytes
            ),
            metrics=self.metrics,
        )


class Move(_Part):
    """One move of an alias: from what to what, by whom, when, why.

    `turn` counts the moves of one alias from 1; those of older releases have none.
    """

    alias: Name
    turn: Number | None = None
    previous: Number | None
    version: Number
    who: str
    when: Annotated[datetime, Field(strict=False)]
    why: str


def encoded(value: BaseModel) -> bytes:
    """Return a value as the bytes that are stored: JSON for people too."""
    return value.model_dump_json(indent=1).encode() + b"\n"


def parse(data: bytes, *, name: str, version: int, where: str) -> ModelVersion:
    """Read a manifest; raises `ModelRefused` for a hostile one, `ModelCorrupt` for a damaged one."""
    try:
        manifest = ModelVersion.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        broken = first["type"] == "json_invalid"
        raise (ModelCorrupt if broken else ModelRefused)(f"{where}: {place or 'manifest'}: {first['msg']}") from error
    if (manifest.name, manifest.version) != (name, version):
        raise ModelRefused(f"{where} says that it is version {manifest.version} of {manifest.name}")
    return manifest


def parse_move(data: bytes, *, where: str) -> Move:
    """Read an alias or an entry of the log; raises `ModelCorrupt`."""
    try:
        return Move.model_validate_json(data)
    except ValidationError as error:
        raise ModelCorrupt(f"{where} is damaged: {error.errors(include_url=False)[0]['msg']}") from error


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


def measured(pieces: Iterable[bytes]) -> tuple[Digest, int]:
    """Return the digest and the size of what streams by."""
    hashed, size_bytes = hashlib.sha256(), 0
    for piece in pieces:
        hashed.update(piece)
        size_bytes += len(piece)
    return Digest(f"sha256:{hashed.hexdigest()}"), size_bytes
