"""The layout's promises to everybody who shares it: whole or not at all, and names last."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from shipway.artifacts import Descriptor, Digest, Image, Layer
from shipway.errors import ImageCorrupt, ImageMissing, PushError
from shipway.oci import compose
from shipway.oci.images import read_image
from shipway.oci.layout import Layout
from shipway.oci.staging import locked


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "images")


def _described(data: bytes) -> Descriptor:
    return Descriptor(media_type=compose.TAR, digest=Digest.of(data), size_bytes=len(data))


def _blobs(layout: Layout) -> set[str]:
    return {path.name for path in (layout.folder / "blobs" / "sha256").iterdir()}


def _put_image(layout: Layout, app: bytes) -> Image:
    """Store an image of one layer, as its documents alone describe it."""
    layer = Layer(part="app", title="app", descriptor=_described(app), diff_id=Digest.of(app))
    config = json.dumps({"config": {"Labels": {"dev.shipway.build": "b"}}, "rootfs": {"diff_ids": [layer.diff_id]}})
    entry = {
        "mediaType": compose.TAR,
        "digest": layer.diff_id,
        "size": len(app),
        "annotations": {"dev.shipway.part": "app", "org.opencontainers.image.title": "app"},
    }
    described = {"mediaType": compose.CONFIG, "digest": Digest.of(config.encode()), "size": len(config)}
    manifest = json.dumps({"config": described, "layers": [entry]})
    for data in (app, config.encode(), manifest.encode()):
        layout.add(_described(data), partial(list, [data]))
    return Image(build="b", manifest=manifest.encode(), config=config.encode(), layers=(layer,))


def test_blob_is_there_when_it_was_added(layout: Layout) -> None:
    descriptor = _described(b"hello")
    assert not layout.has(descriptor)

    written = layout.add(descriptor, lambda: [b"he", b"", b"llo"])

    assert (written, layout.has(descriptor), layout.has(replace(descriptor, size_bytes=4))) == (5, True, False)
    assert layout.read(descriptor.digest) == b"hello"
    with layout.open(descriptor.digest) as file:
        assert file.read() == b"hello"
    assert json.loads((layout.folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


def test_source_is_not_touched_when_the_blob_is_there(layout: Layout) -> None:
    layout.add(_described(b"hello"), lambda: [b"hello"])

    assert layout.add(_described(b"hello"), lambda: pytest.fail("nobody needs it")) == 0


@pytest.mark.parametrize("data", [b"hell", b"hello!", b"jello", b""])
def test_blob_is_refused_and_nothing_stays_when_it_is_not_what_was_promised(layout: Layout, data: bytes) -> None:
    with pytest.raises(PushError, match="nothing was stored"):
        layout.add(_described(b"hello"), lambda: [data])

    assert _blobs(layout) == set()
    assert list((layout.folder / ".staging").glob("tmp*")) == []


def test_source_is_not_drained_when_it_gives_more_than_was_promised(layout: Layout) -> None:
    asked = 0

    def endless() -> Iterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"xx"

    with pytest.raises(PushError):
        layout.add(_described(b"hello"), endless)
    assert asked == 3


def test_error_of_the_source_passes_and_nothing_stays_when_it_fails(layout: Layout) -> None:
    def failing() -> Iterator[bytes]:
        yield b"he"
        raise ImageMissing("the source is gone")

    with pytest.raises(ImageMissing, match="the source is gone"):
        layout.add(_described(b"hello"), failing)
    assert _blobs(layout) == set()


def test_blob_is_repaired_when_one_of_another_size_lies_there(layout: Layout) -> None:
    descriptor = _described(b"hello")
    layout.add(descriptor, lambda: [b"hello"])
    layout.path(descriptor.digest).write_bytes(b"hel")

    assert layout.add(descriptor, lambda: [b"hello"]) == 5
    assert layout.read(descriptor.digest) == b"hello"


def test_blob_is_missing_when_nobody_added_it(layout: Layout) -> None:
    for ask in (layout.read, layout.open, partial(read_image, layout)):
        with pytest.raises(ImageMissing, match="0" * 64):
            ask(Digest("sha256:" + "0" * 64))


@pytest.mark.parametrize("data", [b"jello", b"", b"x" * (5 << 20)])
def test_document_is_corrupt_when_it_changed_on_disk(layout: Layout, data: bytes) -> None:
    descriptor = _described(b"hello")
    layout.add(descriptor, lambda: [b"hello"])
    layout.path(descriptor.digest).write_bytes(data)

    with pytest.raises(ImageCorrupt) as caught:
        layout.read(descriptor.digest)
    assert str(layout.path(descriptor.digest)) in caught.value.message


def test_image_is_read_whole_when_it_is_ours(layout: Layout) -> None:
    image = _put_image(layout, b"app")

    assert read_image(layout, image.digest) == image


@pytest.mark.parametrize("manifest", [b"{}", b"[]", b"\xff", b"[" * 9999, b'{"config": {"digest": "../x"}}'])
def test_image_is_corrupt_when_it_is_not_ours(layout: Layout, manifest: bytes) -> None:
    layout.add(_described(manifest), lambda: [manifest])

    with pytest.raises(ImageCorrupt, match="not an image that shipway composed"):
        read_image(layout, Digest.of(manifest))


def test_tag_means_the_last_one_when_it_was_moved(layout: Layout) -> None:
    first, second = _put_image(layout, b"1"), _put_image(layout, b"2")
    assert layout.tags() == {}

    layout.tag("tested", first.manifest, compose.MANIFEST)
    layout.tag("old", first.manifest, compose.MANIFEST)
    layout.tag("tested", second.manifest, compose.MANIFEST)

    assert layout.tags() == {"tested": second.digest, "old": first.digest}


def test_no_tag_is_lost_when_many_are_set_at_once(layout: Layout) -> None:
    image = _put_image(layout, b"1")
    names = {f"tag{number}" for number in range(16)}
    threads = [threading.Thread(target=layout.tag, args=(name, image.manifest, compose.MANIFEST)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert layout.tags().keys() == names


@pytest.mark.parametrize("index", [b"", b"{}", b"[]", b"[" * 9999, b'{"manifests": 1}'])
def test_tags_are_corrupt_when_the_index_is_no_index(layout: Layout, index: bytes) -> None:
    layout.folder.mkdir()
    (layout.folder / "index.json").write_bytes(index)

    with pytest.raises(ImageCorrupt, match=r"index\.json"):
        layout.tags()


def test_prune_deletes_only_what_nobody_needs_when_one_image_is_kept(layout: Layout) -> None:
    old, kept = _put_image(layout, b"old app"), _put_image(layout, b"new app")
    layout.tag("old", old.manifest, compose.MANIFEST)
    layout.tag("kept", kept.manifest, compose.MANIFEST)

    freed = layout.prune(lambda: {kept.digest})

    assert freed == len(b"old app") + len(old.config) + len(old.manifest)
    assert layout.tags() == {"kept": kept.digest}
    assert read_image(layout, kept.digest) == kept
    assert len(_blobs(layout)) == 3


def test_prune_deletes_nothing_when_somebody_pushes(layout: Layout) -> None:
    image = _put_image(layout, b"app")

    with layout.pushing():
        assert layout.prune(set) == 0

    assert read_image(layout, image.digest) == image


def test_prune_asks_what_to_keep_when_nobody_can_push_any_more(layout: Layout) -> None:
    image = _put_image(layout, b"app")

    def choose() -> set[Digest]:
        with pytest.raises(BlockingIOError), locked(layout.folder / ".staging" / "blobs.lock", shared=True, wait=False):
            pass
        return set()

    assert layout.prune(choose) > 0
    assert not layout.path(image.digest).exists()


def test_prune_fails_when_what_to_keep_cannot_be_told(layout: Layout) -> None:
    image = _put_image(layout, b"app")

    def choose() -> set[Digest]:
        raise BlockingIOError

    with pytest.raises(BlockingIOError):
        layout.prune(choose)
    assert read_image(layout, image.digest) == image


def test_prune_fails_and_deletes_nothing_when_a_manifest_to_keep_is_nested_without_end(layout: Layout) -> None:
    image, deep = _put_image(layout, b"app"), b"[" * 9999
    layout.put(deep, compose.MANIFEST)

    with pytest.raises(ImageCorrupt, match="no manifest"):
        layout.prune(lambda: {Digest.of(deep)})
    assert read_image(layout, image.digest) == image


def test_prune_deletes_nothing_when_an_image_to_keep_is_missing(layout: Layout) -> None:
    image = _put_image(layout, b"app")

    with pytest.raises(ImageMissing):
        layout.prune(lambda: {Digest("sha256:" + "0" * 64)})
    assert read_image(layout, image.digest) == image
