"""What every place for images must do: a layout on disk, a registry in memory, and real registries.

Bound to the first two in `tests/contract`, to the real ones in `tests/docker`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from msgspec.structs import replace

from shipway.artifacts import Descriptor, Digest
from shipway.errors import BlobsLost, ImageCorrupt, ImageMissing, PushError
from shipway.oci.compose import CONFIG, INDEX, MANIFEST, TAR, canonical
from shipway.oci.images import Images, described, document
from shipway.oci.upload import PIECE_BYTES

NOWHERE = Digest("sha256:" + "0" * 64)
SMALL = b"hello"
BIG = bytes(range(256)) * (5 * PIECE_BYTES // 512) + b"and a bit"  # more than goes in a single request


def blob(data: bytes) -> Descriptor:
    return described(data, TAR)


def store_image(images: Images, *layers: bytes) -> bytes:
    """Store the blobs of an image of these layers, and then its manifest; return that."""
    config = canonical({"layers": [Digest.of(layer) for layer in layers]})
    for data in (config, *layers):
        images.add(blob(data), partial(list, [data]))
    manifest = manifest_of(config, *layers)
    images.put(manifest, MANIFEST)
    return manifest


def manifest_of(config: bytes, *layers: bytes) -> bytes:
    """Return the manifest of an image."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": entry(described(config, CONFIG)),
            "layers": [entry(blob(layer)) for layer in layers],
        }
    )


def entry(blob: Descriptor) -> dict[str, object]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size_bytes}


class ImagesContract:
    """Bind it by a child whose fixture `images` is empty, and whose tests may run in any order."""

    @pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
    def test_blob_comes_back_when_it_was_added(self, images: Images, data: bytes) -> None:
        assert not images.has(blob(data))

        sent = images.add(blob(data), lambda: [data[:2], b"", data[2:]])

        assert (sent, images.has(blob(data))) == (len(data), True)
        assert b"".join(images.pieces(blob(data))) == data
        assert not images.has(replace(blob(data), size_bytes=len(data) - 1))

    def test_source_is_not_asked_when_the_blob_is_there(self, images: Images) -> None:
        images.add(blob(SMALL), lambda: [SMALL])

        assert images.add(blob(SMALL), lambda: pytest.fail("nobody needs it")) == 0

    def test_blob_is_sent_again_when_it_only_seems_to_be_there(self, images: Images) -> None:
        images.add(blob(SMALL), lambda: [SMALL])

        assert images.add(blob(SMALL), lambda: [SMALL], anew=True) == len(SMALL)
        assert b"".join(images.pieces(blob(SMALL))) == SMALL

    @pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
    def test_advance_adds_up_to_the_size_when_a_blob_arrives(self, images: Images, data: bytes) -> None:
        moved: list[int] = []

        images.add(blob(data), lambda: [data], advance=moved.append)

        assert sum(moved) == len(data)

    @pytest.mark.parametrize("size", [len(SMALL), len(BIG)], ids=["small", "big"])
    @pytest.mark.parametrize("came", ["shorter", "longer", "other", "nothing"])
    def test_nothing_is_stored_when_other_bytes_come_than_were_promised(
        self, images: Images, size: int, came: str
    ) -> None:
        promised = os.urandom(size)
        other = {
            "shorter": promised[:-1],
            "longer": promised + b"!",
            "other": promised[:-1] + bytes([promised[-1] ^ 1]),
            "nothing": b"",
        }[came]

        with pytest.raises(PushError, match=r"was promised, .* came; nothing was stored"):
            images.add(blob(promised), lambda: [other])

        assert not images.has(blob(promised))
        assert not images.has(blob(other))

    def test_source_is_not_drained_when_it_gives_more_than_was_promised(self, images: Images) -> None:
        asked = 0

        def endless() -> Iterator[bytes]:
            nonlocal asked
            while True:
                asked += 1
                yield b"xx"

        with pytest.raises(PushError):
            images.add(blob(SMALL), endless)
        assert asked <= 4

    @pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
    def test_error_of_the_source_passes_and_nothing_is_stored_when_it_fails(self, images: Images, data: bytes) -> None:
        def failing() -> Iterator[bytes]:
            yield data[: len(data) // 2]
            raise ImageMissing("the source is gone")

        with pytest.raises(ImageMissing, match="the source is gone"):
            images.add(blob(data), failing)
        assert not images.has(blob(data))

    def test_transfer_ends_and_nothing_is_stored_when_advance_says_so(self, images: Images) -> None:
        def stop(_count: int) -> None:
            raise KeyError("stop")

        with pytest.raises(KeyError):
            images.add(blob(BIG), lambda: [BIG[:1000], BIG[1000:]], advance=stop)
        assert not images.has(blob(BIG))

    def test_blobs_are_all_there_when_several_move_at_once(self, images: Images) -> None:
        blobs = [bytes([number]) * (300_000 * number) for number in range(1, 9)]

        with ThreadPoolExecutor(4) as threads:
            sent = list(threads.map(lambda data: images.add(blob(data), lambda: [data]), blobs))

        assert sent == [len(data) for data in blobs]
        assert [b"".join(images.pieces(blob(data))) for data in blobs] == blobs

    def test_same_blob_arrives_when_several_send_it_at_once(self, images: Images) -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: images.add(blob(BIG), lambda: [BIG]), range(4)))

        assert b"".join(images.pieces(blob(BIG))) == BIG

    def test_blob_is_missing_when_nobody_added_it(self, images: Images) -> None:
        with pytest.raises(ImageMissing, match=NOWHERE):
            list(images.pieces(Descriptor(media_type=TAR, digest=NOWHERE, size_bytes=5)))

    @pytest.mark.parametrize("size", [len(SMALL) - 1, len(SMALL) + 1])
    def test_blob_is_corrupt_when_it_has_another_size_than_was_said(self, images: Images, size: int) -> None:
        images.add(blob(SMALL), lambda: [SMALL])

        with pytest.raises(ImageCorrupt, match=Digest.of(SMALL).hex):
            list(images.pieces(replace(blob(SMALL), size_bytes=size)))

    def test_document_comes_back_when_it_was_added(self, images: Images) -> None:
        images.add(described(b"{}", CONFIG), lambda: [b"{}"])

        assert document(images, described(b"{}", CONFIG)) == b"{}"

    # -- manifests -----------------------------------------------------------------------

    def test_manifest_comes_back_to_the_byte_when_it_was_put(self, images: Images) -> None:
        manifest = store_image(images, SMALL, BIG)

        assert images.read(Digest.of(manifest)) == manifest
        assert images.has(described(manifest, MANIFEST))

    def test_manifest_is_not_sent_when_it_is_there(self, images: Images) -> None:
        config = b"{}"
        images.add(described(config, CONFIG), lambda: [config])
        manifest = manifest_of(config)

        assert [images.put(manifest, MANIFEST) for _ in range(2)] == [len(manifest), 0]

    def test_index_comes_back_to_the_byte_when_it_was_put(self, images: Images) -> None:
        manifest = store_image(images, SMALL)
        index = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(described(manifest, MANIFEST))]})

        images.put(index, INDEX)
        images.tag("index", index, INDEX)

        assert images.tagged("index") == Digest.of(index)
        assert images.read(Digest.of(index)) == index

    def test_manifest_is_missing_when_nobody_put_it(self, images: Images) -> None:
        with pytest.raises(ImageMissing, match=NOWHERE):
            images.read(NOWHERE)

    # -- names ---------------------------------------------------------------------------

    def test_name_means_nothing_when_nobody_gave_it(self, images: Images) -> None:
        assert images.tagged("tested") is None
        assert list(images.names()) == []

    def test_name_means_the_last_one_when_it_was_moved(self, images: Images) -> None:
        first, second = store_image(images, SMALL), store_image(images, BIG)

        images.tag("tested", first, MANIFEST)
        images.tag("old", first, MANIFEST)
        images.tag("tested", second, MANIFEST)

        assert {name: images.tagged(name) for name in images.names()} == {
            "tested": Digest.of(second),
            "old": Digest.of(first),
        }

    def test_manifest_is_stored_when_it_is_given_a_name(self, images: Images) -> None:
        config = b"{}"
        images.add(described(config, CONFIG), lambda: [config])
        manifest = manifest_of(config)

        images.tag("new", manifest, MANIFEST)

        assert images.tagged("new") == Digest.of(manifest)
        assert images.read(Digest.of(manifest)) == manifest

    def test_every_name_is_listed_when_there_are_many(self, images: Images) -> None:
        manifest = store_image(images, SMALL)
        names = sorted(f"tag-{number}" for number in range(25))
        for name in names:
            images.tag(name, manifest, MANIFEST)

        assert sorted(images.names()) == names

    def test_manifest_and_its_names_are_gone_when_it_is_deleted(self, images: Images) -> None:
        gone, kept = store_image(images, SMALL), store_image(images, BIG)
        images.tag("gone", gone, MANIFEST)
        images.tag("kept", kept, MANIFEST)

        images.delete(Digest.of(gone))
        images.delete(Digest.of(gone))

        with pytest.raises(ImageMissing):
            images.read(Digest.of(gone))
        assert list(images.names()) == ["kept"]
        assert images.read(Digest.of(kept)) == kept

    def test_examination_says_where_and_leaves_nothing(self, images: Images) -> None:
        assert images.repository.removeprefix("layout:") in images.examined()

        assert list(images.names()) == []


class RegistryContract(ImagesContract):
    """What a registry promises besides."""

    def test_manifest_is_refused_when_its_blobs_are_not_there(self, images: Images) -> None:
        images.add(blob(SMALL), lambda: [SMALL])
        manifest = manifest_of(b"{}", SMALL, BIG)

        with pytest.raises(BlobsLost) as caught:
            images.put(manifest, MANIFEST)

        concerned = [caught.value.concerns(Digest.of(data)) for data in (b"{}", SMALL, BIG)]
        assert concerned == [True, False, True]
        with pytest.raises(ImageMissing):
            images.read(Digest.of(manifest))
