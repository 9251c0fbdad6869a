"""The load generator's image: Locust, the repository's users, and the exchanges that they ask.

Made of the same parts as a service's image (the base that the environment's images stand on,
hash-locked wheels, committed files), so that only what changed is sent. It is no version of
the service: it holds no model, nothing deploys it, and its one tag is `loadtest-<key>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from shipway.artifacts import Image, Layer
from shipway.oci.archive import pieces
from shipway.oci.compose import Source
from shipway.oci.layers import packed
from shipway.tarball import Entry, collect

METER = "/srv/shipway/loadmeter.py"
MODEL = "/srv/model"
_GOLDEN, _TENSORS = "golden", "golden/tensors"


def name(image: Image) -> str:
    """Return the tag under which it lies, as `prune` knows it."""
    return f"loadtest-{image.digest.hex[:16]}"


def tools(meter: Path, model: Path) -> tuple[Layer, Source]:
    """Return the layer of our meter, and of a model folder's golden exchanges with what they send."""
    return packed("app", "loadmeter, exchanges", collect(_tools(meter, model)))


def _tools(meter: Path, model: Path) -> Iterator[Entry]:
    yield _entry(meter, METER)
    for file in sorted((model / _GOLDEN).rglob("*")):
        if file.is_file() and not file.is_relative_to(model / _TENSORS):
            yield _entry(file, f"{MODEL}/{file.relative_to(model).as_posix()}")


def _entry(file: Path, path: str) -> Entry:
    return Entry(path=path.lstrip("/"), size_bytes=file.stat().st_size, read=partial(pieces, file))
