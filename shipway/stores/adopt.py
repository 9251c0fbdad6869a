"""Versions that somebody registered with plain mlflow: given the manifest that they lack.

Owns which of the folder's files are the model, and what must be found out of them: hashes,
the layer, inputs and outputs. Each file is read twice, since the registry has no hash to
check it with: a byte that was turned on its way makes the readings differ. What came out is
kept in the checkout's cache, and holds as long as the registry lists the same files. Raises
`ModelRefused` for what no publisher would get past either; golden cases alone may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from shipway import documents, exchanges
from shipway.artifacts import Digest, ModelFile
from shipway.console import Tell, size
from shipway.documents import Document, Malformed
from shipway.errors import ModelCorrupt, ModelRefused
from shipway.proc import Run
from shipway.stores import durable, golden, safety, transfer
from shipway.stores.cache import Cache
from shipway.stores.drafting import draft
from shipway.stores.manifest import ModelVersion, check_path, measured
from shipway.stores.transfer import Source

_MLFLOWS_OWN = frozenset(
    {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "serving_input_example.json"}
)
MOST_FILES = 1000


class Registered(Struct, frozen=True, kw_only=True):
    """A version as a registry has it: who registered it when, and its files with their sizes."""

    where: str
    source: str
    name: str
    number: int
    publisher: str
    created: datetime
    metrics: Callable[[], Mapping[str, float]]
    listing: Callable[[], Mapping[str, int | None]]
    file: Callable[[str], Source]


class _Kept(Document, frozen=True, kw_only=True):
    listing: dict[str, int]
    source: str
    manifest: ModelVersion


class Adopter:
    """Makes manifests, and keeps them in a cache's folder."""

    def __init__(self, *, cache: Path, run: Run, tell: Tell) -> None:
        """Name the cache; `run` starts the process that opens the models."""
        self._cache = cache
        self._run = run
        self._tell = tell

    def knows(self, where: str, created: datetime) -> bool:
        """Tell whether a version was read here before."""
        return self._place(where, created).exists()

    def manifest(self, version: Registered) -> ModelVersion:
        """Return a version's manifest: the kept one, if the registry still lists the same files."""
        listing = {
            path: size_bytes if size_bytes is not None else self._size(version, path)
            for path, size_bytes in version.listing().items()
            if path not in _MLFLOWS_OWN
        }
        place = self._place(version.where, version.created)
        try:
            kept = documents.parse(_Kept, place.read_bytes())
            if (kept.listing, kept.source) == (listing, version.source):
                return kept.manifest
        except (FileNotFoundError, Malformed):
            pass
        made = self._made(version, listing)
        kept = _Kept(listing=listing, source=version.source, manifest=made)
        durable.write(place, [documents.encoded(kept)], replace=True)
        return made

    def _made(self, version: Registered, listing: Mapping[str, int]) -> ModelVersion:
        _require_model(version, listing)
        told = f"{version.where}, registered by mlflow: {len(listing)} files, {size(sum(listing.values()))}"
        self._tell.say("model", f"{told}; reading it for the first time")
        files = [self._measured(version, path, size_bytes) for path, size_bytes in sorted(listing.items())]
        cache = Cache(self._cache)
        blobs = {file: cache.fetch(file, version.file(file.path), lambda _count: None) for file in files}
        folder = cache.folder(blobs)
        try:
            inspected = safety.inspect(folder)
            exchanges.load(folder)
            signature = golden.ask(folder, run=self._run, required=False)
        except ModelRefused as error:
            raise ModelRefused(
                f"{version.where}: {error.message}", tail=error.tail, advice="mend it, and register it again"
            ) from error
        drafted = draft(
            folder,
            inspected,
            signature,
            name=version.name,
            publisher=version.publisher,
            commit=None,
            metrics=version.metrics(),
            created=version.created,
        )
        made = replace(drafted, version=version.number)
        if not made.golden.tensors:
            self._tell.warn(f"{version.where} has no golden cases: nobody knows whether its answers are right")
        return made

    def _measured(self, version: Registered, path: str, size_bytes: int) -> ModelFile:
        digest, came = measured(transfer.ahead(version.file(path), size_bytes))
        if came != size_bytes:
            raise ModelCorrupt(f"{version.where}: {path} has {size_bytes:,} bytes, and {came:,} came")
        return ModelFile(path=path, digest=digest, size_bytes=size_bytes)

    def _size(self, version: Registered, path: str) -> int:
        found = version.file(path).find()
        if found is None:
            raise ModelCorrupt(f"{version.where} lists {path!a}, which is not there")
        return found.size_bytes

    def _place(self, where: str, created: datetime) -> Path:
        key = Digest.of(json.dumps([where, created.isoformat()]).encode())
        return self._cache / "mlflow" / f"{key.hex}.json"


def _require_model(version: Registered, listing: Mapping[str, int]) -> None:
    """Refuse a folder by its list, before a byte of it is fetched."""
    for path in listing:
        try:
            check_path(path)
        except ValueError as error:
            raise ModelRefused(f"{version.where}: {error}", advice="register it again without that file") from error
    if safety.MODEL not in listing:
        found = ", ".join(sorted(listing)[:10]) or "nothing"
        raise ModelRefused(
            f"{version.where}: there is no {safety.MODEL}; it holds {found}",
            advice="log it with mlflow.onnx.log_model: shipway releases ONNX alone",
        )
    if len(listing) > MOST_FILES:
        raise ModelRefused(f"{version.where} has more than {MOST_FILES:,} files")
