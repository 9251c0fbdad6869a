"""Parts to image: the manifest and configuration that hold them together, and back again.

Owns the image's format: its labels, environment and build id. Pure: reads no file, starts
nothing, and the same parts give the same bytes. The build id is the hash of exactly what
runs (platform, layers as unpacked, command, environment, ports, user), not of the commit:
a commit that changes only the documentation makes no new build.
https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from operator import index
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from shipway import documents
from shipway.artifacts import Descriptor, Digest, Image, Layer, Model, ModelRef, Snapshot, Version
from shipway.config import ServiceSettings, Settings
from shipway.errors import BaseRefused
from shipway.gzipped import stored_bytes

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
MAX_LAYERS = 127  # overlay2 mounts no more

_OCI = "org.opencontainers.image."
_OURS = "dev.shipway."
_SERVICE = f"{_OURS}service"  # for the target alone, which reads the labels
_PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_PYTHON = {"PYTHONPATH": "/srv/site-packages:/srv", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


Source = Callable[[], Iterable[bytes]]
Ready = Callable[[Layer, Source], None]  # takes a layer as soon as it is known


def ignore(_layer: Layer, _source: Source) -> None:
    """Do nothing with a layer before its image is whole: a `Ready`."""


class Base(Struct, frozen=True, kw_only=True):
    """What an image stands on: layers, and what their configuration passes on."""

    architecture: str
    os: str
    layers: tuple[Layer, ...] = ()
    digest: Digest | None = None
    environment: Mapping[str, str] = {}
    history: tuple[Mapping[str, Any], ...] = ()


class Composed(Struct, frozen=True, kw_only=True):
    """An image, and how to come by each layer that somebody may lack.

    `sources` make a layer's bytes. `origins` name the repository of the base's registry
    that holds a layer. `known` are layers by the key of their inputs, to be remembered where
    the image is pushed to, so that another machine need not make them to know them.
    `lock` are the bytes that pinned the dependencies.
    """

    image: Image
    lock: bytes = b""
    sources: Mapping[Digest, Source] = {}
    origins: Mapping[Digest, str] = {}
    known: Mapping[str, tuple[Layer, ...]] = {}


def compose(
    base: Base,
    *,
    dependencies: Sequence[Layer],
    model: Model,
    app: Layer,
    settings: Settings,
    snapshot: Snapshot,
    weights: Layer,
    python: str = "",
) -> Image:
    """Return the image of these parts. Raises `BaseRefused` when they are too many layers.

    `weights` is the model's layer, `python` the Python that the dependencies are for, such as `3.13`.
    """
    layers = (*base.layers, *dependencies, weights, app)
    config, environment = _begun(base, settings, snapshot, python)
    return _finish(config, {**_PATH, **base.environment, **_PYTHON, **environment}, layers, model_ref(model))


def adopt(built: Base, *, model: Model, settings: Settings, snapshot: Snapshot, python: str = "") -> Image:
    """Return the image that a whole Dockerfile made, started and labelled as one of ours.

    The Dockerfile says what is in it, and its ENV stands; how it is started the settings say.
    """
    layers = tuple(
        replace(layer, part="dockerfile", title=f"layer {number}") for number, layer in enumerate(built.layers, start=1)
    )
    config, environment = _begun(replace(built, digest=None), settings, snapshot, python)
    return _finish(config, {**_PATH, **_PYTHON, **built.environment, **environment}, layers, model_ref(model))


def generator(base: Base, *, layers: Sequence[Layer], settings: Settings, snapshot: Snapshot) -> Image:
    """Return a load generator's image: no version of the service; whoever starts it says how."""
    config, _ = _begun(base, settings, snapshot)
    run = config["config"]
    run |= {"Cmd": [], "ExposedPorts": {}}
    run["Labels"][f"{_OCI}title"] += "-loadtest"
    del run["Labels"][f"{_OURS}service"]
    return _sealed(config, {**_PATH, **base.environment, **_PYTHON}, (*base.layers, *layers))


def _begun(
    base: Base, settings: Settings, snapshot: Snapshot, python: str = ""
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what of the configuration and the environment the settings and the commit decide."""
    service = settings.service
    environment = {
        **settings.image.environment,
        "PORT": str(service.port),
        **{name: str(port) for name, port in service.ports.items()},
    }
    created = datetime.fromtimestamp(snapshot.time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = {
        "created": created,
        "architecture": base.architecture,
        "os": base.os,
        "config": {
            "User": settings.image.user,
            "WorkingDir": "/srv",
            "Cmd": list(service.command),
            "ExposedPorts": {f"{port}/tcp": {} for port in (service.port, *service.ports.values())},
            "Labels": _labels(settings, snapshot, created, base, python),
        },
        "history": [dict(entry) for entry in base.history],
    }
    return config, environment


def _labels(settings: Settings, snapshot: Snapshot, created: str, base: Base, python: str) -> dict[str, str]:
    return {
        **({f"{_OURS}python": python} if python else {}),
        f"{_OURS}platform": f"{base.os}/{base.architecture}",
        **({f"{_OCI}base.digest": base.digest} if base.digest else {}),
        f"{_OCI}created": created,
        f"{_OCI}revision": snapshot.commit + ("-dirty" if snapshot.dirty else ""),
        f"{_OCI}title": settings.project.name,
        f"{_OCI}version": snapshot.label,
        _SERVICE: canonical(documents.plain(settings.service)).decode(),
    }


def with_model(image: Image, model: ModelRef, layer: Layer) -> Image:
    """Return `image` with another model, as if it had been composed with it."""
    config = json.loads(image.config)
    ours = sum(layer.part != "base" for layer in image.layers)
    config["history"] = config["history"][: len(config["history"]) - ours]
    layers = tuple(layer if old.part == "model" else old for old in image.layers)
    return _finish(config, environment(image), layers, model)


def _finish(config: dict[str, Any], env: dict[str, str], layers: Sequence[Layer], model: ModelRef) -> Image:
    """Complete a configuration with what depends on the model and on the layers."""
    config["config"]["Labels"] |= {
        f"{_OURS}model.name": model.name,
        f"{_OURS}model.version": str(model.version),
        f"{_OURS}model.digest": model.digest,
    }
    env |= {
        "MODEL_DIR": f"/srv/models/{model.digest.hex}",
        "MODEL_NAME": model.name,
        "MODEL_VERSION": str(model.version),
        "MODEL_DIGEST": model.digest,
    }
    return _sealed(config, env, layers)


def _sealed(config: dict[str, Any], env: dict[str, str], layers: Sequence[Layer]) -> Image:
    """Complete a configuration with its layers and the build id."""
    if len(layers) > MAX_LAYERS:
        message = f"the image would have {len(layers)} layers, and no runtime mounts more than {MAX_LAYERS}"
        raise BaseRefused(message)
    run = config["config"]
    build = _build_id(config, env, layers)
    run["Env"] = [f"{name}={value}" for name, value in sorted({**env, "SHIPWAY_BUILD": build}.items())]
    run["Labels"][f"{_OURS}build"] = build
    config["rootfs"] = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    config["history"] += [
        {"created": config["created"], "created_by": f"shipway: {layer.part}, {layer.title}"}
        for layer in layers
        if layer.part not in {"base", "dockerfile"}  # theirs tells itself
    ]
    written = canonical(config)
    return Image(build=build, manifest=_manifest(written, run["Labels"], layers), config=written, layers=tuple(layers))


def _build_id(config: Mapping[str, Any], env: Mapping[str, str], layers: Sequence[Layer]) -> str:
    what = {
        "platform": [config["os"], config["architecture"]],
        "layers": [[layer.part, layer.diff_id] for layer in layers],
        "environment": {name: value for name, value in env.items() if name != "SHIPWAY_BUILD"},
        "start": [config["config"][key] for key in ("Cmd", "ExposedPorts", "User", "WorkingDir")],
    }
    return hashlib.sha256(canonical(what)).hexdigest()[:16]


def _manifest(config: bytes, labels: Mapping[str, str], layers: Sequence[Layer]) -> bytes:
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": Digest.of(config), "size": len(config)},
            "layers": [layer_entry(layer) for layer in layers],
            "annotations": {
                key: text for key, text in labels.items() if key.startswith((_OCI, _OURS)) and key != _SERVICE
            },
        }
    )


def layer_entry(layer: Layer) -> dict[str, Any]:
    """Return a layer as a manifest names it, which is all but its diff_id."""
    about = {f"{_OURS}part": layer.part, f"{_OCI}title": layer.title}
    return {**blob_entry(layer.descriptor), "annotations": about}


def blob_entry(blob: Descriptor) -> dict[str, Any]:
    """Return content as a manifest or an index names it."""
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size_bytes}


def model_ref(model: Model) -> ModelRef:
    """Return which model this is."""
    return ModelRef(name=model.name, version=model.version, digest=model.digest)


def model_layer(model: Model, gzip: Digest) -> Layer:
    """Return a model's layer, which is `gzip` as `gzipped.stored` makes it: weights do not shrink."""
    size_bytes = stored_bytes(model.layer.size_bytes)
    return Layer(
        part="model",
        title=f"{model.name} version {model.version}",
        descriptor=Descriptor(media_type=TAR_GZIP, digest=gzip, size_bytes=size_bytes),
        diff_id=model.layer.digest,
    )


def canonical(value: Any) -> bytes:
    """Return JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# -- and back again ----------------------------------------------------------------------


def config_descriptor(manifest: bytes) -> Descriptor:
    """Return which configuration a manifest names; raises `ValueError`, `KeyError`, `TypeError`."""
    return read_blob(documents.decoded(manifest)["config"])


def parse(manifest: bytes, config: bytes) -> Image:
    """Return a composed image from its stored bytes.

    Raises `ValueError`, `KeyError` or `TypeError` for an image that shipway did not compose.
    """
    document = documents.decoded(config)
    labels, diff_ids = document["config"]["Labels"], document["rootfs"]["diff_ids"]
    entries = documents.decoded(manifest)["layers"]
    layers = tuple(read_layer(entry, diff_id) for entry, diff_id in zip(entries, diff_ids, strict=True))
    return Image(build=labels[f"{_OURS}build"], manifest=manifest, config=config, layers=layers)


def read_layer(entry: Mapping[str, Any], diff_id: str) -> Layer:
    """Return what `layer_entry` wrote; raises as `parse` does."""
    about = entry["annotations"]
    return Layer(
        part=about[f"{_OURS}part"],
        title=about[f"{_OCI}title"],
        descriptor=read_blob(entry),
        diff_id=Digest(diff_id),
    )


def read_blob(entry: Mapping[str, Any]) -> Descriptor:
    """Return what `blob_entry` wrote; raises as `parse` does."""
    return Descriptor(media_type=entry["mediaType"], digest=Digest(entry["digest"]), size_bytes=index(entry["size"]))


def environment(image: Image) -> dict[str, str]:
    """Return the environment the service is started with."""
    return dict(item.split("=", 1) for item in json.loads(image.config)["config"]["Env"])


def service(image: Image) -> ServiceSettings:
    """Return what the image owes a target: its command, ports, paths and time-outs."""
    return documents.parse(ServiceSettings, _label(image, _SERVICE))


def model(image: Image) -> ModelRef:
    """Return which model the image holds."""
    return ModelRef(
        name=_label(image, f"{_OURS}model.name"),
        version=int(_label(image, f"{_OURS}model.version")),
        digest=Digest(_label(image, f"{_OURS}model.digest")),
    )


def labels(image: Image) -> dict[str, str]:
    """Return what the image says of itself."""
    return dict(json.loads(image.config)["config"]["Labels"])


def created(image: Image) -> str:
    """Return the time of the commit that the image was made from, as RFC 3339 has it."""
    return labels(image)[f"{_OCI}created"]


def target(image: Image) -> str:
    """Return what the image is made for, in words: its Python, where it says that, and its platform."""
    config = json.loads(image.config)
    python = labels(image).get(f"{_OURS}python")
    return (f"Python {python} on " if python else "") + f"{config['os']}/{config['architecture']}"


def start(image: Image) -> tuple[tuple[str, ...], str]:
    """Return the image's command, and the user and group that it runs as."""
    config = json.loads(image.config)["config"]
    return tuple(config["Cmd"]), str(config["User"])


def base(image: Image) -> Digest | None:
    """Return the image that this one stands on, if it stands on any."""
    digest = labels(image).get(f"{_OCI}base.digest")
    return Digest(digest) if digest else None


def version(image: Image) -> Version:
    """Return what a target records of the image."""
    return Version(digest=image.digest, build=image.build, commit=_label(image, f"{_OCI}revision"), model=model(image))


def _label(image: Image, name: str) -> str:
    return labels(image)[name]
