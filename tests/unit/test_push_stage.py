"""The stage `push`: only what lacks moves, names come last, and every step is told."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shipway.artifacts import Descriptor, Digest, Layer, Model, ModelLayer, Snapshot
from shipway.config import ModelSettings, ProjectSettings, ServiceSettings, Settings
from shipway.console import Console
from shipway.errors import DependenciesFailed, ImageCorrupt, ImageMissing, PushError
from shipway.oci import compose
from shipway.oci.compose import TAR, Base, Composed, Source
from shipway.oci.images import read_image
from shipway.oci.layout import Layout
from shipway.stages import push as stage
from tests.fake_registry import FakeRegistry, repository

QUIET = Console(err=io.StringIO())


def _composed(app: bytes, model: bytes = b"weights", wheel: bytes = b"wheel") -> Composed:
    weights = Model(
        name="net",
        version=1,
        digest=Digest.of(b"set" + model),
        files=(),
        layer=ModelLayer(digest=Digest.of(model), size_bytes=len(model)),
    )
    layers = [
        Layer(part="dependencies", title="six", descriptor=_described(wheel), diff_id=Digest.of(wheel)),
        Layer(part="app", title="app", descriptor=_described(app), diff_id=Digest.of(app)),
        Layer(part="model", title="net version 1", descriptor=_described(model), diff_id=Digest.of(model)),
    ]
    image = compose.compose(
        Base(os="linux", architecture="amd64"),
        dependencies=layers[:1],
        model=weights,
        app=layers[1],
        weights=layers[2],
        settings=Settings(
            project=ProjectSettings(name="x"),
            model=ModelSettings(name="net", store="store"),
            service=ServiceSettings(command=("python",)),
        ),
        snapshot=Snapshot(commit="c" * 40, tree="7" * 40, dirty=False, time_s=0),
    )
    return Composed(image=image, sources={Digest.of(data): _Source(data) for data in (wheel, model, app)})


class _Source:
    """Gives its bytes, and counts how often it was asked."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, 0

    def __call__(self) -> list[bytes]:
        self.asked += 1
        return [self.data]


def _described(data: bytes) -> Descriptor:
    return Descriptor(media_type=TAR, digest=Digest.of(data), size_bytes=len(data))


def _push(composed: Composed, layout: Layout, *tags: str) -> tuple[str, stage.Sent, list[str]]:
    log = io.StringIO()
    ref, sent = stage.push(composed, images=layout, tags=tags, tell=Console(err=log))
    return str(ref), sent, log.getvalue().splitlines()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "images")


def test_push_writes_all_and_tells_each_step_when_the_layout_is_empty(layout: Layout) -> None:
    composed = _composed(b"app")
    documents = len(composed.image.config) + len(composed.image.manifest)

    ref, sent, lines = _push(composed, layout, "build", "tested")

    assert ref == f"layout:{layout.folder}@{composed.image.digest}"
    assert sent == stage.Sent(bytes_sent=15 + documents, bytes_reused=0)
    assert layout.tags() == {"build": composed.image.digest, "tested": composed.image.digest}
    assert [line.split(",")[0] for line in lines[:-1]] == [
        "push      dependencies six",
        "push      model net version 1",
        "push      app app",
        "push      config",
        "push      manifest",
        "push      tag build",
        "push      tag tested",
    ]


def test_push_moves_only_one_layer_and_the_documents_when_only_code_changed(layout: Layout) -> None:
    _push(_composed(b"app"), layout)
    changed = _composed(b"other app")
    documents = len(changed.image.config) + len(changed.image.manifest)
    planned = stage.plan(changed, images=layout)

    _, sent, _ = _push(changed, layout)

    assert planned == {"base": 0, "dependencies": 0, "model": 0, "app": 9, "documents": documents}
    assert sent == stage.Sent(bytes_sent=9 + documents, bytes_reused=12)


def test_push_asks_no_source_when_all_is_there(layout: Layout) -> None:
    _push(_composed(b"app"), layout)
    again = _composed(b"app")

    _, sent, _ = _push(again, layout)

    assert (sent.bytes_sent, [source.asked for source in again.sources.values() if isinstance(source, _Source)]) == (
        0,
        [0, 0, 0],
    )


def test_recombined_image_costs_its_documents_alone_when_its_layers_are_there(layout: Layout) -> None:
    code, weights = _composed(b"app", b"old"), _composed(b"later app", b"new")
    _push(code, layout)
    _push(weights, layout)
    mixed = compose.with_model(code.image, compose.model(weights.image), weights.image.layers[1])

    _, sent, _ = _push(Composed(image=mixed, sources={}), layout)

    assert sent.bytes_sent == len(mixed.config) + len(mixed.manifest) < 10_000
    assert read_image(layout, mixed.digest) == mixed


def test_push_fails_before_any_name_when_a_layer_cannot_be_made(layout: Layout) -> None:
    with pytest.raises(ImageMissing, match="the dependencies layer 'six'"):
        _push(Composed(image=_composed(b"app").image, sources={}), layout, "tested")

    assert layout.tags() == {}


def test_push_fails_before_any_name_when_a_source_gives_other_bytes(layout: Layout) -> None:
    composed = _composed(b"app")
    lying: dict[Digest, Source] = {**composed.sources, Digest.of(b"weights"): _Source(b"weighty")}

    with pytest.raises(PushError, match="nothing was stored"):
        _push(Composed(image=composed.image, sources=lying), layout, "tested")
    assert layout.tags() == {}


def test_push_fails_before_any_name_when_the_manifest_cannot_be_read_back(layout: Layout) -> None:
    composed = _composed(b"app")
    _push(composed, layout)
    path = layout.path(composed.image.digest)
    path.write_bytes(bytes(path.stat().st_size))

    with pytest.raises(ImageCorrupt, match=composed.image.digest.hex):
        _push(composed, layout, "tested")
    assert layout.tags() == {}


# -- while the image is still made -------------------------------------------------------


def test_layer_is_sent_once_when_it_was_known_before_its_image(layout: Layout) -> None:
    composed = _composed(b"app")
    weights = composed.image.layers[1]
    documents = len(composed.image.config) + len(composed.image.manifest)

    with stage.at_work(layout, QUIET) as crew:
        crew.send(weights, composed.sources[weights.descriptor.digest])
        _, sent = stage.push(composed, images=layout, tags=[], tell=QUIET, begun=crew)

    assert sent == stage.Sent(bytes_sent=15 + documents, bytes_reused=0)
    assert [source.asked for source in composed.sources.values() if isinstance(source, _Source)] == [1, 1, 1]


def test_next_layer_is_refused_when_one_before_it_could_not_be_sent(layout: Layout) -> None:
    composed, failed = _composed(b"app"), threading.Event()
    wheel, weights, _ = composed.image.layers

    def lies() -> Iterator[bytes]:
        yield b"weighty"
        failed.set()

    def send_both() -> None:
        with stage.at_work(layout, QUIET) as crew:
            crew.send(weights, lies)
            assert failed.wait(30)
            while True:  # until the thread has said why
                crew.send(wheel, _Source(b"wheel"))

    with pytest.raises(PushError, match="nothing was stored"):
        send_both()
    assert not layout.has(weights.descriptor)


def test_what_moves_is_abandoned_when_the_image_cannot_be_made(tmp_path: Path) -> None:
    class Watched(Layout):
        abandoned = threading.Event()

        def abandon(self) -> None:
            self.abandoned.set()

    images, began = Watched(tmp_path / "images"), threading.Event()
    weights = _composed(b"app").image.layers[1]

    def slow() -> Iterator[bytes]:
        yield b"wei"
        began.set()
        assert images.abandoned.wait(30)
        yield b"ght"  # which is not all

    with pytest.raises(DependenciesFailed, match="uv ended"):
        _compose_in_vain(images, weights, slow, began)
    assert images.abandoned.is_set()
    assert not images.has(weights.descriptor)


def test_nobody_waits_for_a_source_that_gives_nothing_when_the_image_cannot_be_made(layout: Layout) -> None:
    weights = _composed(b"app").image.layers[1]
    began, may_go_on, went_on = (threading.Event() for _ in range(3))

    def stalled() -> Iterator[bytes]:
        yield b"wei"
        began.set()
        may_go_on.wait(30)
        went_on.set()

    with pytest.raises(DependenciesFailed, match="uv ended"):
        _compose_in_vain(layout, weights, stalled, began)
    assert not went_on.is_set()
    may_go_on.set()
    _wait_for_readers()


def test_error_of_a_source_passes_when_it_fails(layout: Layout) -> None:
    def failing() -> Iterator[bytes]:
        yield b"wei"
        raise DependenciesFailed("uv ended with 1")

    composed = _composed(b"app")
    failed: dict[Digest, Source] = {**composed.sources, Digest.of(b"weights"): failing}

    with pytest.raises(DependenciesFailed, match="uv ended with 1"):
        _push(Composed(image=composed.image, sources=failed), layout)
    _wait_for_readers()


def test_source_is_read_no_further_when_it_gives_more_than_was_promised(layout: Layout) -> None:
    given = itertools.count()

    def endless() -> Iterator[bytes]:
        for _ in given:
            yield b"weights"

    composed = _composed(b"app")
    lying: dict[Digest, Source] = {**composed.sources, Digest.of(b"weights"): endless}

    with pytest.raises(PushError, match="nothing was stored"):
        _push(Composed(image=composed.image, sources=lying), layout)
    _wait_for_readers()
    assert next(given) < 10


def _compose_in_vain(images: Layout, layer: Layer, source: Source, began: threading.Event) -> None:
    """Fail to compose an image once this layer is on its way."""
    with stage.at_work(images, QUIET) as crew:
        crew.send(layer, source)
        assert began.wait(30)
        raise DependenciesFailed("uv ended with 1")


def _wait_for_readers() -> None:
    for thread in threading.enumerate():
        if thread.name == "push-source":
            thread.join(30)
            assert not thread.is_alive()


# -- what it costs at a registry ---------------------------------------------------------


def _requests(composed: Composed, fake: FakeRegistry, *, seconds: float = 0.0) -> list[str]:
    """Push to the registry while so much time passes between any two looks at the clock; return the requests."""
    before, passing = len(fake.calls), itertools.count()
    with closing(repository(fake)) as images:
        stage.push(
            composed,
            images=images,
            tags=["build"],
            tell=Console(err=io.StringIO()),
            clock=lambda: next(passing) * seconds,
        )
    return fake.calls[before:]


def test_layers_that_were_there_are_looked_at_once_when_only_code_changed() -> None:
    fake, changed = FakeRegistry(), _composed(b"other app")
    _requests(_composed(b"app"), fake)

    calls = _requests(changed, fake)

    looked = [call for call in calls if call.startswith("HEAD") and "/blobs/" in call]
    assert (len(calls), len(looked)) == (14, 5)  # wheel, model, app, configuration, and the app when it was sent


def test_layers_are_looked_at_again_when_the_push_took_long() -> None:
    fake = FakeRegistry()
    _requests(_composed(b"app"), fake)

    calls = _requests(_composed(b"other app"), fake, seconds=60)

    assert len([call for call in calls if call.startswith("HEAD") and "/blobs/" in call]) == 7
