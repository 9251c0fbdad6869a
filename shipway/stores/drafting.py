"""A version before it has a number: what a folder's manifest says of it.

Owns the making of a manifest from a folder that was inspected, and whose model was asked; the
files are read as they are then, or not at all. Raises `ModelRefused` when one changes meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from shipway import exchanges
from shipway.artifacts import ModelFile
from shipway.errors import ModelError, ModelRefused
from shipway.stores import durable, golden, manifest
from shipway.stores.manifest import File, Golden, ModelVersion

_CARD = "card.md"
_PREPROCESSING = "preprocessing.json"


def draft(
    folder: Path,
    files: tuple[ModelFile, ...],
    signature: manifest.Signature,
    *,
    name: str,
    publisher: str,
    commit: str | None,
    metrics: Mapping[str, float],
    created: datetime,
) -> ModelVersion:
    """Return the manifest but for its number, which is taken last."""
    digest = manifest.set_digest(files)
    paths = {file.path for file in files}
    tar = manifest.layer(files, digest, lambda file: read_unchanged(folder, file))
    return ModelVersion(
        name=name,
        version=1,
        digest=digest,
        files=tuple(File(path=file.path, digest=file.digest, size_bytes=file.size_bytes) for file in files),
        inputs=signature.inputs,
        outputs=signature.outputs,
        preprocessing=_json_object(folder / _PREPROCESSING) if _PREPROCESSING in paths else None,
        golden=Golden(
            tensors=_cases(paths, golden.TENSORS, ".npz"), exchanges=_cases(paths, exchanges.FOLDER, ".json")
        ),
        metrics=dict(metrics),
        card=_CARD if _CARD in paths else None,
        publisher=publisher,
        commit=commit,
        created=created,
        layer=manifest.described(tar),
    )


def read_unchanged(folder: Path, file: ModelFile) -> Iterator[bytes]:
    """Yield a file of the folder, and see that it is still the one that was inspected."""
    path = folder / file.path
    changed = ModelRefused(f"{path} changed while it was published", advice="publish again once it is finished")
    try:
        yield from promised(durable.read(path), file, changed)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def promised(pieces: Iterable[bytes], file: ModelFile, otherwise: ModelError) -> Iterator[bytes]:
    """Yield what streams by, and raise `otherwise` at the end of what is not this file."""
    hashed, held = hashlib.sha256(), 0
    for piece in pieces:
        hashed.update(piece)
        held += len(piece)
        if held > file.size_bytes:
            raise otherwise
        yield piece
    if hashed.hexdigest() != file.digest.hex:
        raise otherwise


def _cases(paths: Iterable[str], folder: str, suffix: str) -> tuple[str, ...]:
    found = (Path(path) for path in paths if path.endswith(suffix))
    return tuple(sorted(path.stem for path in found if str(path.parent) == folder))


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # how deep is too deep depends on who reads
        raise ModelRefused(f"{path} is refused: {error}") from error
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} is refused: it is no JSON object")
    return value
