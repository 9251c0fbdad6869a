"""Bases: good ones are appended to, lies and traps are refused by name."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Descriptor, Digest
from shipway.errors import BaseRefused, ConfigError
from shipway.oci.base import read_base
from shipway.oci.compose import CONFIG, INDEX, MANIFEST, TAR, TAR_GZIP, Base, Source
from shipway.oci.layers import Known
from shipway.oci.layout import Layout


def _tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "usr/srv"
            archive.addfile(info)
    return buffer.getvalue()


LAYER = _tar(("./", tarfile.DIRTYPE), ("srv", tarfile.DIRTYPE), ("dev/sda", tarfile.BLKTYPE), (".wh.old", b"0"))


@dataclass
class Shelf:
    """A layout with one base; each document can be bent before it is written."""

    folder: Path
    layers: list[bytes] = field(default_factory=lambda: [LAYER])
    config: dict[str, Any] = field(default_factory=dict)
    bend: Callable[[dict[str, Any]], None] = lambda _: None

    @property
    def layout(self) -> Layout:
        return Layout(self.folder / "base")

    def put(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = Digest.of(data)
        self.layout.add(Descriptor(media_type=media_type, digest=digest, size_bytes=len(data)), [data])
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def manifest(self) -> dict[str, Any]:
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/opt/bin", "EMPTY="], "Entrypoint": ["/bin/sh"], "Cmd": None},
            "rootfs": {"type": "layers", "diff_ids": [Digest.of(layer) for layer in self.layers]},
            **self.config,
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.put(json.dumps(config).encode(), CONFIG),
            "layers": [self.put(gzip.compress(layer, mtime=0), TAR_GZIP) for layer in self.layers],
        }
        self.bend(manifest)
        return self.put(json.dumps(manifest).encode(), MANIFEST)

    def read(self, digest: str | None = None) -> tuple[Base, Mapping[Digest, Source]]:
        reference = f"layout:base@{digest or self.manifest()['digest']}"
        return read_base(reference, root=self.folder, platform="linux/amd64", known=Known(self.folder / "known"))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_base_is_empty_when_it_is_scratch(tmp_path: Path) -> None:
    base, sources = read_base("scratch", root=tmp_path, platform="linux/arm64", known=Known(tmp_path))

    assert (base, sources) == (Base(os="linux", architecture="arm64"), {})


@pytest.mark.parametrize("reference", ["", "debian:12", "layout:x", "layout:x@sha256:00", f"x@sha256:{'0' * 64}"])
def test_reference_is_refused_when_it_is_not_by_digest(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ConfigError, match="neither `scratch` nor"):
        read_base(reference, root=tmp_path, platform="linux/amd64", known=Known(tmp_path))


def test_base_gives_layers_bytes_and_environment_when_it_is_good(shelf: Shelf) -> None:
    base, sources = shelf.read()

    assert [(layer.part, layer.diff_id, layer.descriptor.media_type) for layer in base.layers] == [
        ("base", Digest.of(LAYER), TAR_GZIP)
    ]
    assert base.environment == {"PATH": "/opt/bin", "EMPTY": ""}
    assert base.history == ({"created_by": "base layer 1"},)
    assert b"".join(sources[base.layers[0].descriptor.digest]()) == gzip.compress(LAYER, mtime=0)


def test_base_keeps_its_history_when_it_fits_the_layers(shelf: Shelf) -> None:
    shelf.config = {"history": [{"created_by": "debootstrap"}, {"created_by": "ENV", "empty_layer": True}]}

    assert [entry["created_by"] for entry in shelf.read()[0].history] == ["debootstrap", "ENV"]


def test_base_is_accepted_when_its_tar_lacks_its_last_blocks(shelf: Shelf) -> None:
    """As `umoci insert` writes them."""
    shelf.layers = [_tar(("etc/", tarfile.DIRTYPE), ("etc/x", b"0"))[:1024]]

    assert [layer.diff_id for layer in shelf.read()[0].layers] == [Digest.of(shelf.layers[0])]


def test_base_is_that_of_the_platform_when_it_is_an_index(shelf: Shelf) -> None:
    other = shelf.put(b"{}", MANIFEST) | {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}
    ours = shelf.manifest() | {"platform": {"os": "linux", "architecture": "amd64"}}
    index = shelf.put(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, ours]}).encode(), INDEX)

    assert shelf.read(index["digest"])[0].layers == shelf.read(ours["digest"])[0].layers


def test_base_is_oci_when_docker_wrote_it(shelf: Shelf) -> None:
    def docker(manifest: dict[str, Any]) -> None:
        manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
        manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"

    shelf.bend = docker

    assert [layer.descriptor.media_type for layer in shelf.read()[0].layers] == [TAR_GZIP]


def _set(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def bend(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return bend


ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


@pytest.mark.parametrize(
    ("bend", "why"),
    [
        (_set("layers", 0, "size", value=7), "not there with the 7 bytes"),
        (_set("layers", 0, "size", value=-1), "greater than or equal to 0"),
        (_set("layers", 0, "size", value="7"), "valid integer"),
        (_set("layers", 0, "digest", value="sha256:" + "0" * 64), "is not there"),
        (_set("layers", 0, "digest", value="../../etc/passwd"), "not a sha256 digest"),
        (_set("layers", 0, "mediaType", value=ZSTD), "tar.zstd"),
        (_set("layers", 0, "mediaType", value=FOREIGN), "foreign"),
        (_set("layers", 0, "mediaType", value=TAR), "not a readable tar"),
        (_set("layers", value=[]), "0 layers, but 1 diff_ids"),
        (_set("manifests", value=[]), "both layers and manifests"),
        (_set("mediaType", value=INDEX), "image.index"),
        (_set("mediaType", value="text/plain"), "text/plain"),
        (_set("config", "mediaType", value="application/json"), "application/json"),
        (_set("config", "size", value=1), "said were 1"),
        (_set("schemaVersion", value=1), "greater than or equal to 2"),
        (_set("layers", value=None), "no image for linux/amd64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_base_is_refused_when_its_manifest_lies(shelf: Shelf, bend: Callable[[dict[str, Any]], None], why: str) -> None:
    shelf.bend = bend

    with pytest.raises(BaseRefused, match=why) as caught:
        shelf.read()
    assert caught.value.message.startswith("the base layout:base@sha256:")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architecture": "arm64"}, "made for linux/arm64"),
        ({"os": "windows"}, "made for windows/amd64"),
        ({"rootfs": {"diff_ids": []}}, "1 layers, but 0 diff_ids"),
        ({"rootfs": {"diff_ids": [Digest.of(b"other")]}}, "said were"),
        ({"rootfs": {"diff_ids": ["md5:0"]}}, "not a sha256 digest"),
        ({"rootfs": None}, "rootfs"),
        ({"config": {"Env": ["NO EQUALS"]}}, "Env"),
        ({"history": "text"}, "history"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_base_is_refused_when_its_configuration_lies(shelf: Shelf, config: dict[str, Any], why: str) -> None:
    shelf.config = config

    with pytest.raises(BaseRefused, match=why):
        shelf.read()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("srv", tarfile.SYMTYPE),
        ("./srv", tarfile.SYMTYPE),
        ("/srv/", tarfile.SYMTYPE),
        ("srv", tarfile.REGTYPE),
        ("srv/app", tarfile.LNKTYPE),
        ("srv/site-packages/six.py", tarfile.REGTYPE),
        ("usr/../srv", tarfile.SYMTYPE),
        ("../outside", tarfile.REGTYPE),
    ],
)
def test_base_is_refused_when_something_lies_where_our_layers_go(shelf: Shelf, name: str, kind: bytes) -> None:
    shelf.layers = [LAYER, _tar((name, kind))]

    with pytest.raises(BaseRefused, match=r"where only shipway's own layers|an entry named"):
        shelf.read()


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"schemaVersion": 2}'])
def test_base_is_refused_when_its_manifest_is_no_manifest(shelf: Shelf, data: bytes) -> None:
    with pytest.raises(BaseRefused):
        shelf.read(shelf.put(data, MANIFEST)["digest"])


def test_base_is_refused_when_its_index_points_at_another_index(shelf: Shelf) -> None:
    platform = {"platform": {"os": "linux", "architecture": "amd64"}}
    inner = shelf.put(json.dumps({"schemaVersion": 2, "manifests": []}).encode(), INDEX)
    outer = {"schemaVersion": 2, "manifests": [inner | platform]}

    with pytest.raises(BaseRefused, match=r"image\.index"):
        shelf.read(shelf.put(json.dumps(outer).encode(), INDEX)["digest"])


@pytest.mark.parametrize("what", ["manifest", "layer"])
def test_base_is_refused_when_a_blob_changed_on_disk(shelf: Shelf, what: str) -> None:
    manifest = shelf.manifest()
    digest = manifest["digest"] if what == "manifest" else Digest.of(gzip.compress(LAYER, mtime=0))
    path = shelf.layout.path(digest)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    with pytest.raises(BaseRefused):
        shelf.read(manifest["digest"])


def test_base_is_listed_once_when_it_was_found_good(shelf: Shelf) -> None:
    digest = shelf.manifest()["digest"]
    first, _ = shelf.read(digest)
    path = shelf.layout.path(first.layers[0].descriptor.digest)
    path.write_bytes(bytes(path.stat().st_size))  # same size; only a reader of bytes would notice

    assert shelf.read(digest)[0] == first
