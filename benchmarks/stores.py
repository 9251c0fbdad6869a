"""What it costs to pull and to publish a large model: `python -m benchmarks.stores`.

Azurite and Versity's S3 server on this machine, behind a wire that lets each connection carry
20 MiB/s, as clouds do; beside Azure's own client, adlfs and boto3, in turns, each move in a
process of its own. Then the memory, on the wire as it is, and how many requests it takes to
find out what `latest` is. Needs npm, Go, and the packages that nox installs for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import Row, middle, report
from benchmarks.slow import slow
from shipway import documents
from shipway.artifacts import Digest, ModelFile, ModelLayer
from shipway.proc import Proc
from shipway.stores import Catalogue, manifest
from shipway.stores.azure import open_azure
from shipway.stores.objects import Store
from shipway.stores.s3 import open_s3
from tests.docker import tools
from tests.stores import parts

ROOT = Path(__file__).parents[1]
_BYTES, _LARGE_BYTES = 241_000_000, 2_000_000_000
_PER_CONNECTION = 20 << 20
_ROUNDS = 3
_VERSIONS = (10, 1_000, 10_000)
_PREFIX, _KEY = "bench", "weights"
_MIB = 1 << 20
_BESIDE = {
    "azure": ("azure-storage-blob", "adlfs"),
    "s3": ("boto3", "obstore"),
}


def main() -> None:
    """Measure, print the table, write `.shipway/benchmarks-stores.json`."""
    with tempfile.TemporaryDirectory(prefix="shipway-bench-") as folder:
        report(measure(Path(folder)), ROOT / ".shipway" / "benchmarks-stores.json", commit=_commit())


def measure(folder: Path) -> Iterator[Row]:
    """Move the same object in each way."""
    weights = _weights(folder / "weights", _BYTES)
    gateway = parts.s3_gateway(tools.versitygw(), _new(folder / "s3"))
    with parts.azurite(_new(folder / "azurite")) as azurite, gateway as s3:
        os.environ |= {**azurite.identity.environ, **s3.environ}
        for place in (_azure(azurite, folder), _s3(s3, folder)):
            place.move("shipway publish", weights, to=_KEY)
            with slow(place.port, _PER_CONNECTION) as port:
                yield from _rates(place.at(port), weights)
            yield from _memory(place, weights, folder)
        yield from _requests("azure", open_azure(_azure(azurite, folder).address, azurite.access()))
        yield from _requests("s3", open_s3(_s3(s3, folder).address, s3.access()))


# -- where, and what ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A file of noise."""

    path: Path
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What one move took."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A store, directly or behind a wire."""

    kind: str
    address: str
    endpoint: str
    port: int
    authority: Path | None
    folder: Path

    def at(self, port: int) -> Place:
        """Return the same behind a wire."""
        endpoint = self.endpoint.replace(f":{self.port}", f":{port}")
        return Place(
            kind=self.kind,
            address=self.address,
            endpoint=endpoint,
            port=port,
            authority=self.authority,
            folder=self.folder,
        )

    def move(self, name: str, weights: Weights, *, to: str = "published") -> Moved:
        """Run one of `movers`, with nothing in its folder."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            given = {
                "address": self.address,
                "endpoint": self.endpoint,
                "authority": str(self.authority) if self.authority else "",
                "connection": parts.connection(self.endpoint),
                "container": parts.CONTAINER,
                "prefix": _PREFIX,
                "key": _KEY,
                "to": to,
                "source": str(weights.path),
                "digest": weights.digest,
                "size_bytes": weights.size_bytes,
                "folder": scratch,
            }
            os.sync()  # what was written before this is nobody's cost
            return _run(name, given, self.authority)


def _run(name: str, given: dict[str, Any], authority: Path | None) -> Moved:
    """Run it to its good end."""
    environ = os.environ | ({"SSL_CERT_FILE": str(authority)} if authority else {})
    argv = [sys.executable, "-W", "ignore", "-m", "benchmarks.movers", name]
    done = subprocess.run(
        argv, input=json.dumps(given).encode(), stdout=subprocess.PIPE, env=environ, cwd=ROOT, check=True
    )
    return Moved(**json.loads(done.stdout))


def _azure(azurite: parts.Azurite, folder: Path) -> Place:
    return Place(
        kind="azure",
        address=f"az://{parts.ACCOUNT}/{parts.CONTAINER}/{_PREFIX}",
        endpoint=azurite.endpoint,
        port=azurite.port,
        authority=azurite.authority,
        folder=folder,
    )


def _s3(s3: parts.S3Server, folder: Path) -> Place:
    address = f"s3://{parts.CONTAINER}/{_PREFIX}"
    return Place(kind="s3", address=address, endpoint=s3.endpoint, port=s3.port, authority=None, folder=folder)


def _weights(path: Path, size_bytes: int) -> Weights:
    """Write noise, a piece at a time."""
    noise, hashed, left = random.Random(size_bytes), hashlib.sha256(), size_bytes  # noqa: S311 - the same each time
    with path.open("wb") as file:
        while left:
            piece = noise.randbytes(min(_MIB, left))
            file.write(piece)
            hashed.update(piece)
            left -= len(piece)
    return Weights(path=path, size_bytes=size_bytes, digest=f"sha256:{hashed.hexdigest()}")


# -- what is measured --------------------------------------------------------------------


def _rates(place: Place, weights: Weights) -> Iterator[Row]:
    for way in ("pull", "publish"):
        rivals = [name for name in _BESIDE[place.kind] if (name, way) != ("obstore", "publish")]
        names = [f"{name} {way}" for name in ("shipway", *rivals)]
        rounds = [{name: place.move(name, weights) for name in names} for _ in range(_ROUNDS)]
        for rival in names[1:]:
            ours, theirs = middle((each[names[0]].seconds, each[rival].seconds) for each in rounds)
            yield Row(
                what=f"{way}, {place.kind}, 20 MiB/s a connection",
                value=weights.size_bytes / _MIB / ours,
                unit="MiB/s",
                reference=weights.size_bytes / _MIB / theirs,
                against=f"{rival.removesuffix(f' {way}')} ({weights.size_bytes / _MIB / theirs:.0f} MiB/s)",
            )


def _memory(place: Place, weights: Weights, folder: Path) -> Iterator[Row]:
    yield from _peaks(place, weights, "241 MB")
    large = _weights(folder / "large", _LARGE_BYTES)
    place.move("shipway publish", large, to=_KEY)
    yield from _peaks(place, large, "2 GB")
    large.path.unlink()
    place.move("shipway publish", weights, to=_KEY)


def _peaks(place: Place, weights: Weights, size: str) -> Iterator[Row]:
    for way in ("pull", "publish"):
        peak_bytes = place.move(f"shipway {way}", weights).peak_bytes
        yield Row(
            what=f"peak memory, {way}, {place.kind}, {size}",
            value=peak_bytes / 1e6,
            unit="MB",
            reference=weights.size_bytes / 1e6,
            against="the object's size",
        )


def _requests(kind: str, store: Store) -> Iterator[Row]:
    """Count the requests that answer what `latest` is, with ever more versions beside it."""
    catalogue = Catalogue(store, run=Proc())
    made = 0
    for many in _VERSIONS:
        with ThreadPoolExecutor(8) as threads:
            list(
                threads.map(
                    lambda number: store.create(f"m/versions/{number}.json", _manifest(number)),
                    range(made + 1, many + 1),
                )
            )
        made = many
        move = manifest.Move(
            alias="latest", turn=1, previous=None, version=many, who="bench", when=datetime.now(UTC), why="published"
        )
        store.delete("m/aliases/latest.json")
        store.create("m/aliases/latest.json", documents.encoded(move))
        with _counted() as requests:
            found = catalogue.show("m", "latest")
        if found.version != many or not requests:
            message = f"latest is {found.version}, not {many}, after {len(requests)} requests"
            raise AssertionError(message)
        yield Row(
            what=f"requests for `latest`, {kind}, {many:,} versions",
            value=len(requests),
            unit="",
            reference=many,
            against="the versions",
        )


def _manifest(number: int) -> bytes:
    file = ModelFile(path="model.onnx", digest=Digest.of(b"%d" % number), size_bytes=1)
    return documents.encoded(
        manifest.ModelVersion(
            name="m",
            version=number,
            digest=manifest.set_digest([file]),
            files=(manifest.File(path=file.path, digest=file.digest, size_bytes=1),),
            inputs=(),
            outputs=(),
            preprocessing=None,
            golden=manifest.Golden(tensors=(), exchanges=()),
            metrics={},
            card=None,
            publisher="bench",
            commit=None,
            created=datetime(2026, 11, 25, tzinfo=UTC),
            layer=ModelLayer(digest=file.digest, size_bytes=1),
        )
    )


@contextlib.contextmanager
def _counted() -> Iterator[list[str]]:
    """Give a list that gets a line for each request: urllib3, which carries those of both clients, logs each."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().count('"') >= 2:  # noqa: PLR2004 - "GET /…"; a new connection has none
                lines.append(record.getMessage())

    logger, handler = logging.getLogger("urllib3.connectionpool"), Lines()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)  # by its method: the attribute alone leaves what was remembered
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _commit() -> str:
    git = shutil.which("git") or "git"
    return subprocess.run(
        [git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
