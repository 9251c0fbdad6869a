"""What Docker builds and hands over, with a daemon that is a script."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Digest
from shipway.console import Console
from shipway.errors import DockerFailed, NotBuilt
from shipway.oci import compose, docker
from shipway.oci.dockerfile import Recipe
from shipway.oci.images import document
from shipway.oci.layers import FAST
from shipway.oci.layout import Layout

LAYER, OTHER = b"a layer" * 1000, b"another"
PRESSED = compose.TAR_GZIP, b"".join(FAST([LAYER]))
CONFIG = b'{"architecture":"amd64"}'
GOOD: list[dict[str, Any]] = [
    {"stream": "Step 1/1 : FROM x\n"},
    {"stream": " ---> 1\n"},
    {"aux": {"ID": "sha256:1"}},
    {"stream": "\n"},
]


def _archive(members: Mapping[str, bytes | str]) -> bytes:
    """Return a tar; a text is what a symbolic link points at."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _saved(*layers: str) -> bytes:
    return json.dumps([{"Config": "1.json", "RepoTags": None, "Layers": layers}]).encode()


SAVED = _archive({"1.json": CONFIG, "1/layer.tar": LAYER, "manifest.json": _saved("1/layer.tar")})


class Api:
    """A daemon that gives these answers and then this archive."""

    def __init__(self, answers: Sequence[Mapping[str, Any]] = GOOD, saved: bytes = SAVED) -> None:
        self.answers, self.saved = answers, saved
        self.asked: list[dict[str, Any]] = []

    def build(self, *, fileobj: Iterator[bytes], **how: Any) -> Iterator[Mapping[str, Any]]:
        self.asked.append({"context": b"".join(fileobj), **how})
        yield from self.answers

    def inspect_image(self, _identity: str) -> dict[str, int]:
        return {"Size": len(self.saved)}

    def get_image(self, identity: str, chunk_size: int) -> Iterator[bytes]:
        assert (identity, chunk_size > 0) == ("sha256:1", True)
        yield from (self.saved[:100], self.saved[100:])


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "images")


def _recipe() -> Recipe:
    return Recipe(
        key="0" * 64,
        stage="base",
        build_args={"PYTHON": "3.13"},
        platform="linux/amd64",
        context=lambda: iter([b"con", b"text"]),
    )


def _built(api: Api, layout: Layout, log: io.StringIO | None = None) -> Digest:
    ref = docker.built(
        _recipe(),
        connect=lambda: contextlib.nullcontext(api),
        images=layout,
        cache=layout.folder.parent / "cache",
        tell=Console(err=log or io.StringIO()),
    )
    assert ref.repository == layout.repository
    return ref.digest


def _layers(layout: Layout, digest: Digest) -> list[tuple[str, bytes]]:
    manifest = json.loads(layout.read(digest))
    return [(each["mediaType"], layout.path(Digest(each["digest"])).read_bytes()) for each in manifest["layers"]]


def test_image_is_stored_under_its_key_when_docker_built_it(layout: Layout) -> None:
    api, log = Api(), io.StringIO()

    digest = _built(api, layout, log)

    assert layout.tags() == {f"base-{'0' * 64}": digest}
    assert document(layout, compose.config_descriptor(layout.read(digest))) == CONFIG
    assert _layers(layout, digest) == [PRESSED]
    assert "image     docker: Step 1/1 : FROM x\n" in log.getvalue()
    (asked,) = api.asked
    assert (asked["context"], asked["target"], asked["platform"]) == (b"context", "base", "linux/amd64")
    assert asked["buildargs"] == {"PYTHON": "3.13"}


def test_docker_is_not_asked_when_the_image_is_there(layout: Layout) -> None:
    first = _built(Api(), layout)

    def refuse() -> contextlib.AbstractContextManager[Any]:
        raise AssertionError

    again = docker.built(_recipe(), connect=refuse, images=layout, cache=layout.folder, tell=Console(err=io.StringIO()))

    assert again.digest == first


def test_docker_is_not_asked_when_nothing_may_be_built(layout: Layout) -> None:
    def build(*, may_build: bool) -> Any:
        return docker.built(
            _recipe(),
            connect=lambda: pytest.fail("nobody may be asked"),
            images=layout,
            cache=layout.folder.parent / "cache",
            tell=Console(err=io.StringIO()),
            may_build=may_build,
        )

    with pytest.raises(NotBuilt, match="Dockerfile, stage base: would be built by Docker"):
        build(may_build=False)
    assert list(layout.names()) == []


def test_equal_layers_are_both_there_when_docker_links_them(layout: Layout) -> None:
    members: dict[str, bytes | str] = {"1.json": CONFIG, "1/layer.tar": LAYER, "2/layer.tar": "../1/layer.tar"}
    saved = _archive({**members, "manifest.json": _saved("1/layer.tar", "2/layer.tar")})

    assert _layers(layout, _built(Api(saved=saved), layout)) == [PRESSED] * 2


def test_layer_stays_as_docker_keeps_it_when_that_is_gzip(layout: Layout) -> None:
    packed = gzip.compress(OTHER, mtime=0)
    saved = _archive(
        {"1.json": CONFIG, "blobs/x": packed, "blobs/y": LAYER, "manifest.json": _saved("blobs/x", "blobs/y")}
    )

    assert _layers(layout, _built(Api(saved=saved), layout)) == [(compose.TAR_GZIP, packed), PRESSED]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([*GOOD[:2], {"error": "exit 3\nand more", "errorDetail": {}}], "could not build Dockerfile: exit 3"),
        (GOOD[:2], "did not say what came out"),
    ],
)
def test_build_fails_with_dockers_last_lines(layout: Layout, answers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DockerFailed, match=message) as caught:
        _built(Api(answers), layout)

    assert caught.value.tail == "Step 1/1 : FROM x\n ---> 1"
    assert layout.tags() == {}


@pytest.mark.parametrize(
    "saved",
    [
        b"",
        SAVED[:1000],
        _archive({"1.json": CONFIG}),
        _archive({"manifest.json": b"[]"}),
        _archive({"manifest.json": b"{}"}),
        _archive({"1.json": CONFIG, "manifest.json": _saved("1/layer.tar")}),
        _archive({"1.json": CONFIG, "1/layer.tar": "../nowhere", "manifest.json": _saved("1/layer.tar")}),
    ],
    ids=["empty", "cut", "no manifest", "no image", "no list", "no layer", "dangling"],
)
def test_nothing_is_stored_when_docker_hands_over_no_image(layout: Layout, saved: bytes) -> None:
    with pytest.raises(DockerFailed, match="no image"):
        _built(Api(saved=saved), layout)

    assert layout.tags() == {}
