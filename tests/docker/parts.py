"""Images composed of made-up parts: real tars and real documents, no git and no uv."""

from __future__ import annotations

import gzip
import hashlib
import random
from functools import partial

from msgspec.structs import replace

from shipway.artifacts import Descriptor, Digest, Layer, Model, ModelFile, Part, Snapshot
from shipway.config import ModelSettings, ProjectSettings, ServiceSettings, Settings
from shipway.oci import compose
from shipway.oci.compose import TAR, TAR_GZIP, Base, Composed
from shipway.oci.layers import fingerprint
from shipway.oci.stored import stored
from shipway.tarball import Entry, collect

BIG_BYTES = 3_000_000

_SETTINGS = Settings(
    project=ProjectSettings(name="small"),
    model=ModelSettings(name="net", store="store"),
    service=ServiceSettings(command=("python", "-m", "app")),
)


def composed(
    *, app: str = "1", model: str = "1", big: str = "1", small: str = "1", compression: str = "none"
) -> Composed:
    """Return an image whose four layers hold what these words say; the same words give the same bytes.

    With `compression="stored"` those that are not compressed are gzip that compresses nothing.
    """
    dependencies: tuple[tuple[Layer, bytes], ...] = (
        _layer("dependencies", "bigwheel", "srv/site-packages/bigwheel/data", _noise(f"big {big}", BIG_BYTES)),
        _layer("dependencies", "1 small packages", "srv/site-packages/small.py", _noise(f"small {small}", 2_000)),
    )
    described, weights = _model(model)
    weights_layer = compose.model_layer(described)
    if compression == "stored":
        dependencies = tuple(_framed(*each) for each in dependencies)
        weights_layer, weights = _framed(weights_layer, weights)
    code, packed = _app(app)
    image = compose.compose(
        Base(os="linux", architecture="amd64"),
        dependencies=[layer for layer, _ in dependencies],
        model=described,
        app=code,
        settings=_SETTINGS,
        snapshot=Snapshot(commit=hashlib.sha1(app.encode()).hexdigest(), tree="t", dirty=False, time_s=1_700_000_000),  # noqa: S324 - git's own
        weights=weights_layer,
    )
    sources = {layer.descriptor.digest: data for layer, data in dependencies}
    sources |= {weights_layer.descriptor.digest: weights, code.descriptor.digest: packed}
    return Composed(
        image=image,
        sources={digest: partial(_pieces, data) for digest, data in sources.items()},
        known={fingerprint("dependencies", big, small): tuple(layer for layer, _ in dependencies)},
    )


def size_of(made: Composed, title: str) -> int:
    """Return the size of one layer, as it is stored."""
    return next(layer.descriptor.size_bytes for layer in made.image.layers if layer.title == title)


def digest_of(made: Composed, title: str) -> Digest:
    """Return the digest of one layer, as it is stored."""
    return next(layer.descriptor.digest for layer in made.image.layers if layer.title == title)


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + (1 << 18)] for start in range(0, len(data), 1 << 18)]


def _layer(part: Part, title: str, path: str, data: bytes) -> tuple[Layer, bytes]:
    tar = collect([Entry(path=path, size_bytes=len(data), read=lambda: [data])])
    described = Descriptor(media_type=TAR, digest=Digest.of(tar), size_bytes=len(tar))
    return Layer(part=part, title=title, descriptor=described, diff_id=described.digest), tar


def _framed(layer: Layer, data: bytes) -> tuple[Layer, bytes]:
    framed = b"".join(stored([data]))
    described = Descriptor(media_type=TAR_GZIP, digest=Digest.of(framed), size_bytes=len(framed))
    return replace(layer, descriptor=described), framed


def _model(text: str) -> tuple[Model, bytes]:
    data = _noise(f"model {text}", 700_000)
    file = ModelFile(path="model.onnx", digest=Digest.of(data), size_bytes=len(data))
    digest = Digest.of(f"{file.digest.hex}  {file.path}\n".encode())
    layer, tar = _layer("model", "net", f"srv/models/{digest.hex}/model.onnx", data)
    return Model(name="net", version=1, digest=digest, files=(file,), layer=layer.descriptor), tar


def _app(text: str) -> tuple[Layer, bytes]:
    layer, tar = _layer("app", "app", "srv/app/__init__.py", f"VERSION = {text!r}\n".encode())
    stored = gzip.compress(tar, mtime=0)
    described = Descriptor(media_type=TAR_GZIP, digest=Digest.of(stored), size_bytes=len(stored))
    return Layer(part="app", title="app", descriptor=described, diff_id=layer.diff_id), stored


def _noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - the same bytes each time are the point
