"""The load generator's image: what is in it, and that nobody takes it for a version of the service."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from shipway.artifacts import Image
from shipway.console import Console
from shipway.oci import compose, evidence, generator, prune
from shipway.oci.compose import Base, Composed
from shipway.oci.evidence import Maker
from shipway.oci.images import Images
from shipway.oci.prune import GRACE_S
from shipway.stages import push as stage
from tests.attested import BASE, LOCK, NOW_S, SETTINGS, WHO, layer_of, pushed, snapshot
from tests.fake_registry import FakeRegistry, repository

GROUND = Base(os="linux", architecture="amd64", layers=(BASE,), environment={"PATH": "/opt/bin"})
PARTS = [layer_of("dependencies", "locust"), layer_of("app", "users")]


def made(commit: str = "1") -> Image:
    layers = [layer for layer, _ in PARTS]
    return compose.generator(GROUND, layers=layers, settings=SETTINGS, snapshot=snapshot(commit))


def put(images: Images, *, now_s: float = NOW_S) -> Image:
    """Push a generator as `load` does."""
    image = made()
    sources = {
        layer.descriptor.digest: (lambda data=data: [data]) for layer, data in (*PARTS, layer_of("base", "base"))
    }
    said = evidence.of_generator(
        lock=LOCK, settings=SETTINGS.loadcheck, snapshot=snapshot(), maker=Maker(who=WHO, in_ci=False, began_s=NOW_S)
    )
    stage.push(
        Composed(image=image, sources=sources),
        images=images,
        tags=[generator.name(image)],
        tell=Console(err=io.StringIO()),
        evidence=said,
        clock=lambda: now_s,
    )
    return image


def test_generator_has_the_base_its_parts_and_no_model() -> None:
    config = json.loads(made().config)

    assert [layer.part for layer in made().layers] == ["base", "dependencies", "app"]
    assert (config["config"]["Cmd"], config["config"]["User"]) == ([], "65532:65532")
    assert "PATH=/opt/bin" in config["config"]["Env"]
    assert not [word for word in (*config["config"]["Env"], *config["config"]["Labels"]) if "model" in word.lower()]
    assert config["config"]["Labels"]["org.opencontainers.image.title"] == "shop-loadtest"


def test_generator_is_the_same_when_its_parts_are() -> None:
    assert (made().digest, made("2").digest == made().digest) == (made().digest, False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("model.onnx", "golden/exchanges/cat.json", "golden/images/cat.jpg", "golden/tensors/cat.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_tools_hold_the_meter_and_the_exchanges_but_no_weights(tmp_path: Path, model: Path) -> None:
    meter = tmp_path / "loadmeter.py"
    meter.write_text("measure()")

    layer, source = generator.tools(meter, model)

    with tarfile.open(fileobj=io.BytesIO(b"".join(source()))) as tar:
        names = [member.name for member in tar if member.isfile()]
    assert names == [
        "srv/model/golden/exchanges/cat.json",
        "srv/model/golden/images/cat.jpg",
        "srv/shipway/loadmeter.py",
    ]
    assert layer.part == "app"


def test_generator_goes_two_hours_after_its_last_push_and_takes_nothing_along() -> None:
    with closing(repository(FakeRegistry())) as images:
        image, version = pushed(images, "1"), put(images)

        early = prune.examine(images, in_use={image.digest: "runs"}, newest=1, now_s=NOW_S + 60)
        late = prune.examine(images, in_use={image.digest: "runs"}, newest=1, now_s=NOW_S + GRACE_S + 1)

        assert [(each.digest, each.why) for each in early.staying if each.kind == "generator"] == [
            (version.digest, "pushed 1 minutes ago")
        ]
        assert [(each.kind, each.digest) for each in late.going] == [("generator", version.digest)]


def test_generator_counts_for_nothing_among_the_newest_images() -> None:
    with closing(repository(FakeRegistry())) as images:
        older = pushed(images, "1", now_s=NOW_S)
        put(images, now_s=NOW_S + 60)

        verdict = prune.examine(images, in_use={}, newest=1, now_s=NOW_S + 10 * GRACE_S)

        assert [each.digest for each in verdict.staying if each.image] == [older.digest]


def test_deleted_generator_leaves_neither_name_nor_statement() -> None:
    with closing(repository(FakeRegistry())) as images:
        image = put(images)
        verdict = prune.examine(images, in_use={}, newest=0, now_s=NOW_S + GRACE_S + 1)

        prune.carry_out(
            images, verdict, in_use=dict, tell=Console(err=io.StringIO()), clock=lambda: NOW_S + GRACE_S + 1
        )

        assert generator.name(image) not in set(images.names())
        assert list(images.names()) == []


def test_generator_stays_when_it_was_pushed_again_meanwhile() -> None:
    with closing(repository(FakeRegistry())) as images:
        put(images)
        verdict = prune.examine(images, in_use={}, newest=0, now_s=NOW_S + GRACE_S + 1)
        image = put(images, now_s=NOW_S + GRACE_S + 1)

        after = prune.carry_out(
            images, verdict, in_use=dict, tell=Console(err=io.StringIO()), clock=lambda: NOW_S + GRACE_S + 2
        )

        assert [each.digest for each in after.staying] == [image.digest]
