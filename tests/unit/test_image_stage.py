"""The stage `image`, as far as it goes without git and uv; `tests/system/test_image_made.py` goes all the way."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from shipway.artifacts import Descriptor, Digest, Layer, Model, ModelFile, ModelLayer, Snapshot
from shipway.checkout import Checkout
from shipway.config import ImageSettings, ModelSettings, ProjectSettings, ServiceSettings, Settings
from shipway.console import Console
from shipway.errors import BaseRefused, DependenciesFailed, DirtyTree, ImageError, ImageMissing
from shipway.gzipped import stored
from shipway.oci import compose
from shipway.oci.compose import MANIFEST, TAR_GZIP, Composed, Source
from shipway.oci.images import Images
from shipway.oci.layers import recall, remember
from shipway.oci.layout import Layout
from shipway.proc import Completed
from shipway.stages import image as stage
from shipway.stages import push

SNAPSHOT = Snapshot(commit="c" * 40, tree="7" * 40, dirty=False, time_s=1_700_000_000)
GOOD = {"app/a.py": b"print()", "app/requirements.txt": b""}


class Tools:
    """Git with some committed files, and uv with no wheel: it installs an empty lock alone."""

    def __init__(self, files: Mapping[str, bytes], untracked: bytes = b"") -> None:
        self.files, self.untracked = files, untracked
        self.asked: list[str] = []

    def run(self, argv: Sequence[str | Path], *, stdin: bytes | None = None, **_: Any) -> Completed:
        words = [str(word) for word in argv]
        command = words[words.index("git") + 1] if "git" in words else "uv"
        self.asked.append(command)
        if command == "uv":
            lock = Path(words[words.index("--requirements") + 1]).read_bytes()
            return Completed(argv=(), code=1 if lock else 0, stdout=b"", tail="no wheel")
        answers = {"ls-files": self.untracked, "ls-tree": self._listed(words[-1]), "cat-file": self._read(stdin or b"")}
        return Completed(argv=(), code=0, stdout=answers[command], tail="")

    def _listed(self, folder: str) -> bytes:
        return b"".join(
            f"100644 blob {Digest.of(data).hex} {len(data)}\t{path}\0".encode()
            for path, data in self.files.items()
            if f"{path}/".startswith(f"{folder}/")
        )

    def _read(self, wanted: bytes) -> bytes:
        by_id = {Digest.of(data).hex: data for data in self.files.values()}
        names = (name.partition(":./")[2] or name for name in wanted.decode().split())
        return b"".join(_object(name, {**by_id, **self.files}.get(name)) for name in names)


def _object(name: str, data: bytes | None) -> bytes:
    if data is None:
        return f"{name} missing\n".encode()
    return f"{Digest.of(data).hex} blob {len(data)}\n".encode() + data + b"\n"


def _model(version: int) -> Model:
    data = str(version).encode()
    return Model(
        name="net",
        version=version,
        digest=Digest.of(b"set" + data),
        files=(ModelFile(path="model.onnx", digest=Digest.of(data), size_bytes=1),),
        layer=ModelLayer(
            digest=Digest.of(_tar(version)), size_bytes=len(_tar(version)), gzip=Digest.of(_gzip(version))
        ),
    )


def _tar(version: int) -> bytes:
    return b"layer %d" % version


def _gzip(version: int) -> bytes:
    return b"".join(stored([_tar(version)]))


def _old(version: int) -> Model:
    """Return a model whose manifest is from before its layer was gzip."""
    model = _model(version)
    return replace(model, layer=replace(model.layer, gzip=None))


def _compose(
    folder: Path,
    tools: Tools,
    *,
    snapshot: Snapshot = SNAPSHOT,
    tell: Console | None = None,
    allow_dirty: bool = False,
    model: Model | None = None,
    base: Layout | None = None,
    images: Images | None = None,
    model_bytes: Callable[[Model], Iterable[bytes]] = lambda model: [_tar(model.version)],
    ready: compose.Ready = compose.ignore,
) -> Composed:
    named = f"registry.example/base@{Digest.of(b'base')}" if base else "scratch"
    settings = Settings(
        project=ProjectSettings(name="x"),
        model=ModelSettings(name="net", store="store"),
        image=ImageSettings(include=("app",), base=named),
        service=ServiceSettings(command=("python",)),
    )
    return stage.compose(
        settings,
        checkout=Checkout(folder, tools, {}),
        snapshot=snapshot,
        model=model or _model(1),
        model_bytes=model_bytes,
        model_objects=lambda _: [],
        images=images or Layout(folder / "images"),
        open_images=lambda name: base or Layout(folder / name),
        cache=folder / "cache",
        environ={},
        proc=tools,
        tell=tell or Console(err=io.StringIO()),
        allow_dirty=allow_dirty,
        ready=ready,
    )


def test_sources_give_each_layer_when_the_image_is_composed(tmp_path: Path) -> None:
    composed = _compose(tmp_path, Tools(GOOD))

    model, app = composed.image.layers
    assert (model.part, app.part) == ("model", "app")
    assert b"".join(composed.sources[model.descriptor.digest]()) == _gzip(1)
    assert Digest.of(b"".join(composed.sources[app.descriptor.digest]())) == app.descriptor.digest


def test_neither_app_nor_uv_is_touched_when_the_tree_is_known(tmp_path: Path) -> None:
    first, tools = _compose(tmp_path, Tools(GOOD)), Tools(GOOD)

    again = _compose(tmp_path, tools)

    assert again.image == first.image
    assert tools.asked == ["ls-files", "cat-file"]  # the last for the lock
    app = first.image.layers[-1].descriptor.digest
    assert list(again.sources[app]()) == list(first.sources[app]())


def test_model_s_layer_is_known_without_the_model(tmp_path: Path) -> None:
    made = _compose(tmp_path, Tools(GOOD), model_bytes=lambda _: pytest.fail("nobody needs it"))

    weights = made.image.layers[0]
    size_bytes = len(_gzip(1))
    assert weights.descriptor == Descriptor(media_type=TAR_GZIP, digest=Digest.of(_gzip(1)), size_bytes=size_bytes)
    assert weights.diff_id == Digest.of(_tar(1))


def test_image_is_the_same_when_the_manifest_is_older_than_its_gzip(tmp_path: Path) -> None:
    first = _compose(tmp_path / "first", Tools(GOOD))

    made = _compose(tmp_path / "here", Tools(GOOD), model=_old(1))

    assert made.image == first.image
    assert made.image.layers[:1] in made.known.values()


def test_older_model_is_not_read_when_another_machine_pushed_it(tmp_path: Path) -> None:
    images = _Shared(tmp_path / "registry")
    first = _compose(tmp_path / "here", Tools(GOOD), model=_old(1), images=images)
    push.push(first, images=images, tags=[], tell=Console(err=io.StringIO()))

    again = _compose(
        tmp_path / "there",
        Tools(GOOD),
        model=_old(1),
        images=images,
        model_bytes=lambda _: pytest.fail("nobody needs it"),
    )

    assert again.image == first.image


def test_older_model_has_its_name_when_it_was_remembered_under_another(tmp_path: Path) -> None:
    images, renamed = _Shared(tmp_path / "registry"), replace(_old(1), version=2)
    _remember(images, _compose(tmp_path / "here", Tools(GOOD), model=_old(1), images=images))

    there, alone = (
        _compose(tmp_path / name, Tools(GOOD), model=renamed, model_bytes=lambda _: [_tar(1)], images=place)
        for name, place in (("there", images), ("alone", Layout(tmp_path / "empty")))
    )

    assert there.image == alone.image
    assert there.image.layers[0].title == "net version 2"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_older_model_is_read_anew_when_what_is_remembered_is_no_such_layer(tmp_path: Path, count: int) -> None:
    images = _Shared(tmp_path / "registry")
    wanted = _compose(tmp_path / "alone", Tools(GOOD), model=_old(1))
    other = replace(wanted.image.layers[0], diff_id=Digest.of(b"other"))
    key = next(key for key, layers in wanted.known.items() if layers == wanted.image.layers[:1])
    remember(images, key, [other] * count)

    made = _compose(tmp_path / "here", Tools(GOOD), model=_old(1), images=images)

    assert made.image == wanted.image


def test_nothing_is_recalled_when_what_is_remembered_is_nested_without_end(tmp_path: Path) -> None:
    images = Layout(tmp_path)
    images.tag("layers-0123", b"[" * 9999, MANIFEST)

    assert recall(images, "0123") is None


def _remember(images: Images, composed: Composed) -> None:
    for key, layers in composed.known.items():
        remember(images, key, layers)


def test_model_is_ready_before_uv_begins_and_every_layer_before_the_image(tmp_path: Path) -> None:
    parts: list[str] = []

    class Installing(Tools):
        def run(self, argv: Sequence[str | Path], **more: Any) -> Completed:
            if "uv" in str(argv[0]):
                parts.append("uv")
            return super().run(argv, **more)

    def ready(layer: Layer, source: Source) -> None:
        assert Digest.of(b"".join(source())) == layer.descriptor.digest
        parts.append(layer.part)

    image = _compose(tmp_path, Installing(GOOD), ready=ready).image

    assert parts == ["model", "uv", "app"]
    assert {layer.part for layer in image.layers} == {"model", "app"}


class _Shared(Layout):
    shared = True


class _Slow(Layout):
    """A base's repository that does not answer before uv was asked; what is abandoned ends with an error."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.answers, self.was_abandoned = threading.Event(), False

    def read(self, digest: Digest) -> bytes:
        assert self.answers.wait(30)
        raise ImageMissing(f"{digest} is gone")

    def abandon(self) -> None:
        self.was_abandoned = True
        self.answers.set()


def test_uv_does_not_wait_for_the_base_when_both_are_needed(tmp_path: Path) -> None:
    base = _Slow(tmp_path / "base")

    class Installing(Tools):
        def run(self, argv: Sequence[str | Path], **more: Any) -> Completed:
            if "uv" in str(argv[0]):
                base.answers.set()
            return super().run(argv, **more)

    with pytest.raises(BaseRefused, match="is gone"):
        _compose(tmp_path, Installing(GOOD), base=base)


def test_base_is_not_waited_for_when_uv_fails(tmp_path: Path) -> None:
    base = _Slow(tmp_path / "base")

    with pytest.raises(DependenciesFailed):
        _compose(tmp_path, Tools({**GOOD, "app/requirements.txt": b"x"}), base=base)
    assert base.was_abandoned


def test_dirty_tree_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    dirty = Snapshot(commit="c" * 40, tree="7" * 40, dirty=True, time_s=0)

    with pytest.raises(DirtyTree):
        _compose(tmp_path, Tools({}), snapshot=dirty)
    assert compose.version(_compose(tmp_path, Tools(GOOD), snapshot=dirty, allow_dirty=True).image).commit.endswith(
        "-dirty"
    )


def test_user_is_warned_when_a_file_is_not_tracked(tmp_path: Path) -> None:
    log = io.StringIO()

    _compose(tmp_path, Tools(GOOD, untracked=b"app/new.py\0app/b.py\0"), tell=Console(err=log))

    assert "warning   app/new.py and 1 more not in the image: git does not track it" in log.getvalue()


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"app/a.py": b""}, ImageError, "no file app/requirements.txt"),
        ({"app/requirements.txt": b"x"}, DependenciesFailed, "uv ended with 1"),
        ({"app/requirements.txt/x": b""}, ImageError, "no file app/requirements.txt"),
    ],
)
def test_image_is_refused_when_a_part_is_missing(
    tmp_path: Path, files: dict[str, bytes], error: type[ImageError], message: str
) -> None:
    with pytest.raises(error, match=message):
        _compose(tmp_path, Tools(files))


def test_recombined_image_is_the_composed_one_when_code_and_model_are_those(tmp_path: Path) -> None:
    code = _compose(tmp_path, Tools(GOOD)).image
    other = _compose(tmp_path, Tools({**GOOD, "app/b.py": b"b"}), model=_model(2), snapshot=_later()).image
    wanted = _compose(tmp_path, Tools(GOOD), model=_model(2)).image

    assert stage.recombine(code, other) == Composed(image=wanted, sources={})


def _later() -> Snapshot:
    return Snapshot(commit="d" * 40, tree="8" * 40, dirty=False, time_s=1_800_000_000)
