"""The image's documents: pure, canonical, and the build id is the hash of what runs."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from shipway.artifacts import Descriptor, Digest, Image, Layer, Model, ModelFile, ModelLayer, Part, Snapshot, Version
from shipway.config import ImageSettings, ModelSettings, ProjectSettings, ServiceSettings, Settings
from shipway.errors import BaseRefused
from shipway.oci import compose
from shipway.oci.compose import TAR, Base

SCRATCH = Base(os="linux", architecture="amd64")
SNAPSHOT = Snapshot(commit="c" * 40, tree="7" * 40, dirty=False, time_s=1_700_000_000)
SETTINGS = Settings(
    project=ProjectSettings(name="classifier"),
    model=ModelSettings(name="net", store="model/store"),
    image=ImageSettings(environment={"ORT_DISABLE_TELEMETRY": "1", "PORT": "1"}),
    service=ServiceSettings(command=("python", "-m", "gunicorn"), ports={"METRICS_PORT": 9090}),
)


def _layer(part: Part, title: str) -> Layer:
    digest = Digest.of(title.encode())
    return Layer(
        part=part, title=title, descriptor=Descriptor(media_type=TAR, digest=digest, size_bytes=10), diff_id=digest
    )


def _model(version: int) -> Model:
    name = f"weights {version}".encode()
    file = ModelFile(path="model.onnx", digest=Digest.of(name), size_bytes=len(name))
    layer = ModelLayer(digest=Digest.of(b"layer " + name), size_bytes=20)
    return Model(name="net", version=version, digest=Digest.of(b"set " + name), files=(file,), layer=layer)


def _weights(version: int) -> Layer:
    return compose.model_layer(_model(version), Digest.of(f"gzip {version}".encode()))


def _image(
    base: Base = SCRATCH,
    *,
    model: int = 1,
    app: str = "app",
    settings: Settings = SETTINGS,
    snapshot: Snapshot = SNAPSHOT,
) -> Image:
    return compose.compose(
        base,
        dependencies=[_layer("dependencies", "numpy 2.0")],
        model=_model(model),
        weights=_weights(model),
        app=_layer("app", app),
        settings=settings,
        snapshot=snapshot,
    )


def test_image_has_these_very_documents_when_its_parts_are_these() -> None:
    image = _image()

    run = json.loads(image.config)["config"]
    model = _model(1).digest.hex
    assert run["Env"] == [
        "METRICS_PORT=9090",
        f"MODEL_DIGEST=sha256:{model}",
        f"MODEL_DIR=/srv/models/{model}",
        "MODEL_NAME=net",
        "MODEL_VERSION=1",
        "ORT_DISABLE_TELEMETRY=1",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PORT=8080",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTHONPATH=/srv/site-packages:/srv",
        "PYTHONUNBUFFERED=1",
        f"SHIPWAY_BUILD={image.build}",
    ]
    assert (run["Cmd"], run["User"], run["WorkingDir"]) == (["python", "-m", "gunicorn"], "65532:65532", "/srv")
    assert run["ExposedPorts"] == {"8080/tcp": {}, "9090/tcp": {}}
    assert "Entrypoint" not in run
    assert json.loads(image.config)["created"] == "2023-11-14T22:13:20Z"


def test_image_is_read_back_whole_when_parsed_from_its_documents() -> None:
    image = _image()

    assert compose.parse(image.manifest, image.config) == image
    assert compose.service(image) == SETTINGS.service
    assert compose.version(image) == Version(
        digest=image.digest, build=image.build, commit="c" * 40, model=compose.model_ref(_model(1))
    )


def test_build_is_the_same_when_only_the_commit_differs() -> None:
    later = replace(SNAPSHOT, commit="d" * 40, time_s=1_800_000_000)

    first, second = _image(), _image(snapshot=later)

    assert first.build == second.build
    assert first.digest != second.digest


@pytest.mark.parametrize(
    "other",
    [
        _image(app="other"),
        _image(model=2),
        _image(Base(os="linux", architecture="arm64")),
        _image(Base(os="linux", architecture="amd64", layers=(_layer("base", "b"),))),
        _image(settings=replace(SETTINGS, image=ImageSettings(environment={"A": "1"}))),
        _image(settings=replace(SETTINGS, service=ServiceSettings(command=("python", "x.py")))),
    ],
    ids=["app", "model", "platform", "base", "environment", "command"],
)
def test_build_is_another_when_what_runs_differs(other: Image) -> None:
    assert other.build != _image().build


def test_base_passes_on_its_environment_and_history_when_it_has_some() -> None:
    base = Base(
        os="linux",
        architecture="amd64",
        layers=(_layer("base", "debian"),),
        environment={"PATH": "/opt/python/bin", "LANG": "C.UTF-8", "PORT": "80"},
        history=({"created_by": "debootstrap"},),
    )

    image = _image(base)

    environment = compose.environment(image)
    assert {key: environment[key] for key in ("PATH", "LANG", "PORT")} == {
        "PATH": "/opt/python/bin",
        "LANG": "C.UTF-8",
        "PORT": "8080",
    }
    assert [entry["created_by"] for entry in json.loads(image.config)["history"]] == [
        "debootstrap",
        "shipway: dependencies, numpy 2.0",
        "shipway: model, net version 1",
        "shipway: app, app",
    ]


def test_with_model_is_what_compose_gives_when_the_model_is_that_one() -> None:
    base = Base(os="linux", architecture="amd64", layers=(_layer("base", "b"),), history=({"created_by": "b"},))

    swapped = compose.with_model(_image(base), compose.model_ref(_model(2)), _weights(2))

    assert swapped == _image(base, model=2)


def test_dirty_tree_is_said_when_the_snapshot_is_dirty() -> None:
    image = _image(snapshot=replace(SNAPSHOT, dirty=True))

    assert compose.version(image).commit == "c" * 40 + "-dirty"


def test_layers_are_refused_when_no_runtime_could_mount_them() -> None:
    most = Base(os="linux", architecture="amd64", layers=tuple(_layer("base", str(n)) for n in range(124)))
    assert len(_image(most).layers) == 127
    base = replace(most, layers=(*most.layers, _layer("base", "one more")))

    with pytest.raises(BaseRefused, match="128 layers"):
        _image(base)


@pytest.mark.parametrize("config", [b"{}", b"[]", b'{"config": {"Labels": null}, "rootfs": {"diff_ids": []}}', b"\xff"])
def test_parse_refuses_when_shipway_did_not_compose_the_image(config: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        compose.parse(_image().manifest, config)
