"""Images composed of made-up parts: real tars and real documents, no git and no uv."""

from __future__ import annotations

import hashlib
import random
from functools import partial

from shipway.artifacts import Digest, Layer, Model, ModelFile, Part, Snapshot
from shipway.config import ModelSettings, ProjectSettings, ServiceSettings, Settings
from shipway.gzipped import stored
from shipway.oci import compose
from shipway.oci.compose import Base, Composed
from shipway.oci.layers import FAST, Press, fingerprint, pack
from shipway.stores import manifest
from shipway.tarball import Entry, collect

BIG_BYTES = 3_000_000

_SETTINGS = Settings(
    project=ProjectSettings(name="small"),
    model=ModelSettings(name="net", store="store"),
    service=ServiceSettings(command=("python", "-m", "app")),
)


def composed(*, app: str = "1", model: str = "1", big: str = "1", small: str = "1") -> Composed:
    """Return an image whose four layers hold what these words say; the same words give the same bytes."""
    wheels = (
        _layer("dependencies", "bigwheel", "srv/site-packages/bigwheel/data", _noise(f"big {big}", BIG_BYTES)),
        _layer("dependencies", "1 small packages", "srv/site-packages/small.py", _noise(f"small {small}", 2_000)),
    )
    described, weights = _model(model)
    code = _layer("app", "app", "srv/app/__init__.py", f"VERSION = {app!r}\n".encode())
    image = compose.compose(
        Base(os="linux", architecture="amd64"),
        dependencies=[layer for layer, _ in wheels],
        model=described,
        app=code[0],
        settings=_SETTINGS,
        snapshot=Snapshot(commit=hashlib.sha1(app.encode()).hexdigest(), tree="t", dirty=False, time_s=1_700_000_000),  # noqa: S324 - git's own
        weights=weights[0],
    )
    return Composed(
        image=image,
        sources={layer.descriptor.digest: partial(_pieces, data) for layer, data in (*wheels, weights, code)},
        known={fingerprint("dependencies", big, small): tuple(layer for layer, _ in wheels)},
    )


def size_of(made: Composed, title: str) -> int:
    """Return the size of one layer, as it is stored."""
    return next(layer.descriptor.size_bytes for layer in made.image.layers if layer.title == title)


def digest_of(made: Composed, title: str) -> Digest:
    """Return the digest of one layer, as it is stored."""
    return next(layer.descriptor.digest for layer in made.image.layers if layer.title == title)


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + (1 << 18)] for start in range(0, len(data), 1 << 18)]


def _layer(part: Part, title: str, path: str, data: bytes, press: Press = FAST) -> tuple[Layer, bytes]:
    tar = collect([Entry(path=path, size_bytes=len(data), read=lambda: [data])])
    pieces: list[bytes] = []
    return pack(part, title, [tar], press, pieces.append), b"".join(pieces)


def _model(text: str) -> tuple[Model, tuple[Layer, bytes]]:
    data = _noise(f"model {text}", 700_000)
    file = ModelFile(path="model.onnx", digest=Digest.of(data), size_bytes=len(data))
    digest = manifest.set_digest([file])
    layer = manifest.described(manifest.layer([file], digest, lambda _: [data]))
    model = Model(name="net", version=1, digest=digest, files=(file,), layer=layer)
    return model, _layer("model", "net version 1", f"srv/models/{digest.hex}/model.onnx", data, stored)


def _noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - the same bytes each time are the point
