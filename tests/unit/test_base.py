"""Bases: good ones are appended to, lies and traps are refused by name."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Descriptor, Digest
from shipway.errors import BaseRefused, ConfigError, RegistryUnreachable
from shipway.oci.base import Ground, read_base
from shipway.oci.compose import CONFIG, INDEX, MANIFEST, TAR, TAR_GZIP, Base
from shipway.oci.images import Advance, Images, ignore
from shipway.oci.layers import Known, recall, remember
from shipway.oci.layout import Layout
from shipway.oci.wheels import Target


def _tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "usr/srv"
            archive.addfile(info)
    return buffer.getvalue()


TARGET = Target(python="3.13", platform="linux/amd64")
LAYER = _tar(("./", tarfile.DIRTYPE), ("srv", tarfile.DIRTYPE), ("dev/sda", tarfile.BLKTYPE), (".wh.old", b"0"))


class Registry(Layout):
    """A repository of a registry, as far as a base can tell; `streamed` are the blobs that were read."""

    shared = True

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder / name.replace("/", "_"))
        self.name = name
        self.streamed: list[Digest] = []
        self.documents: list[Digest] = []

    def read(self, digest: Digest) -> bytes:
        self.documents.append(digest)
        return super().read(digest)

    @property
    def repository(self) -> str:
        return self.name

    def pieces(self, blob: Descriptor) -> Iterator[bytes]:
        (self.documents if blob.media_type == CONFIG else self.streamed).append(blob.digest)
        return super().pieces(blob)


@dataclass
class Shelf:
    """A place for images with one base; each document can be bent before it is written."""

    folder: Path
    layers: list[bytes] = field(default_factory=lambda: [LAYER])
    config: dict[str, Any] = field(default_factory=dict)
    bend: Callable[[dict[str, Any]], None] = lambda _: None

    place: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.place = Layout(self.folder / "base")

    def put(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = Digest.of(data)
        self.place.add(Descriptor(media_type=media_type, digest=digest, size_bytes=len(data)), lambda: [data])
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

    def read(self, digest: str | None = None) -> Ground:
        return read(f"layout:base@{digest or self.manifest()['digest']}", self.folder)


def read(
    reference: str,
    folder: Path,
    *places: Registry,
    images: Images | None = None,
    target: Target = TARGET,
    known: Known | None = None,
    advance: Advance = ignore,
) -> Ground:
    """Read a base; `places` are the repositories that answer."""
    answering: dict[str, Images] = {place.repository: place for place in places}
    return read_base(
        reference,
        target,
        root=folder,
        known=known or Known(folder / "known"),
        images=images or Layout(folder / "images"),
        open_images=answering.__getitem__,
        advance=advance,
    )


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_base_is_empty_when_it_is_scratch(tmp_path: Path) -> None:
    ground = read("scratch", tmp_path, target=Target(python="3.13", platform="linux/arm64"))

    assert ground == Ground(base=Base(os="linux", architecture="arm64"))


@pytest.mark.parametrize("reference", ["", "debian:12", "layout:x", "layout:x@sha256:00", f"x@sha256:{'0' * 64}"])
def test_reference_is_refused_when_it_is_none(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ConfigError, match="neither `scratch`"):
        read(reference, tmp_path)


def test_base_gives_layers_bytes_and_environment_when_it_is_good(shelf: Shelf) -> None:
    ground = shelf.read()

    (layer,) = ground.base.layers
    assert (layer.part, layer.diff_id, layer.descriptor.media_type) == ("base", Digest.of(LAYER), TAR_GZIP)
    assert ground.base.environment == {"PATH": "/opt/bin", "EMPTY": ""}
    assert ground.base.history == ({"created_by": "base layer 1"},)
    assert b"".join(ground.sources[layer.descriptor.digest]()) == gzip.compress(LAYER, mtime=0)
    assert (ground.origins, list(ground.known.values())) == ({}, [(layer,)])


def test_base_keeps_its_history_when_it_fits_the_layers(shelf: Shelf) -> None:
    shelf.config = {"history": [{"created_by": "debootstrap"}, {"created_by": "ENV", "empty_layer": True}]}

    assert [entry["created_by"] for entry in shelf.read().base.history] == ["debootstrap", "ENV"]


def test_base_is_accepted_when_its_tar_lacks_its_last_blocks(shelf: Shelf) -> None:
    """As `umoci insert` writes them."""
    shelf.layers = [_tar(("etc/", tarfile.DIRTYPE), ("etc/x", b"0"))[:1024]]

    assert [layer.diff_id for layer in shelf.read().base.layers] == [Digest.of(shelf.layers[0])]


def test_base_is_that_of_the_platform_when_it_is_an_index(shelf: Shelf) -> None:
    other = shelf.put(b"{}", MANIFEST) | {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}
    ours = shelf.manifest() | {"platform": {"os": "linux", "architecture": "amd64"}}
    index = shelf.put(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, ours]}).encode(), INDEX)

    assert shelf.read(index["digest"]).base.layers == shelf.read(ours["digest"]).base.layers


def test_base_is_oci_when_docker_wrote_it(shelf: Shelf) -> None:
    def docker(manifest: dict[str, Any]) -> None:
        manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
        manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"

    shelf.bend = docker

    assert [layer.descriptor.media_type for layer in shelf.read().base.layers] == [TAR_GZIP]


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
        (_set("layers", 0, "size", value=7), "bytes have another digest"),
        (_set("layers", 0, "size", value=-1), "layers.0.size: expected `int` >= 0"),
        (_set("layers", 0, "size", value="7"), "expected `int`, got `str`"),
        (_set("layers", 0, "digest", value="sha256:" + "0" * 64), "there is no sha256:0000"),
        (_set("layers", 0, "digest", value="../../etc/passwd"), "not a sha256 digest"),
        (_set("layers", 0, "mediaType", value=ZSTD), "tar.zstd"),
        (_set("layers", 0, "mediaType", value=FOREIGN), "foreign"),
        (_set("layers", 0, "mediaType", value=TAR), "not a readable tar"),
        (_set("layers", value=[]), "0 layers, but 1 diff_ids"),
        (_set("manifests", value=[]), "both layers and manifests"),
        (_set("mediaType", value=INDEX), "image.index"),
        (_set("mediaType", value="text/plain"), "text/plain"),
        (_set("config", "mediaType", value="application/json"), "application/json"),
        (_set("config", "size", value=1), "bytes have another digest"),
        (_set("schemaVersion", value=1), "schemaVersion"),
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
    path = shelf.place.path(digest)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    with pytest.raises(BaseRefused):
        shelf.read(manifest["digest"])


def test_base_is_listed_once_when_it_was_found_good(shelf: Shelf) -> None:
    digest = shelf.manifest()["digest"]
    first = shelf.read(digest)
    path = shelf.place.path(first.base.layers[0].descriptor.digest)
    path.write_bytes(bytes(path.stat().st_size))  # same size; only a reader of bytes would notice

    assert shelf.read(digest).base == first.base


def test_base_is_refused_when_the_size_of_a_known_layer_lies(shelf: Shelf) -> None:
    shelf.read()
    shelf.bend = _set("layers", 0, "size", value=7)

    with pytest.raises(BaseRefused, match="another digest"):
        shelf.read()


@pytest.mark.parametrize("version", ["3.13.5", "3.13"])
def test_base_is_accepted_when_its_python_is_the_images(shelf: Shelf, version: str) -> None:
    shelf.config = {"config": {"Env": [f"PYTHON_VERSION={version}"]}}

    assert shelf.read().base.environment == {"PYTHON_VERSION": version}


@pytest.mark.parametrize("version", ["3.11.2", "3.1", "3", "", "3.130.1"])
def test_base_is_refused_when_its_python_is_another(shelf: Shelf, version: str) -> None:
    shelf.config = {"config": {"Env": [f"PYTHON_VERSION={version}"]}}

    with pytest.raises(BaseRefused, match=f"it has Python {version}, but .* is 3.13"):
        shelf.read()


# -- in a registry -----------------------------------------------------------------------


@pytest.fixture
def python(shelf: Shelf) -> Registry:
    """A repository that holds the shelf's base."""
    shelf.place = registry = Registry(shelf.folder, "registry.example/python")
    return registry


def test_base_is_mounted_when_it_is_in_the_same_registry(shelf: Shelf, python: Registry) -> None:
    images = Registry(shelf.folder, "registry.example/team/service")

    ground = read(f"registry.example/python@{shelf.manifest()['digest']}", shelf.folder, python, images=images)

    assert ground.origins == {layer.descriptor.digest: "python" for layer in ground.base.layers}


@pytest.mark.parametrize("images", ["elsewhere.example/python", "registry.example/python"])
def test_base_is_not_mounted_when_it_is_in_another_registry_or_there_already(
    shelf: Shelf, python: Registry, images: str
) -> None:
    reference = f"registry.example/python@{shelf.manifest()['digest']}"

    ground = read(
        reference, shelf.folder, python, images=python if images == python.name else Registry(shelf.folder, images)
    )

    (layer,) = ground.base.layers
    assert ground.origins == {}
    assert b"".join(ground.sources[layer.descriptor.digest]()) == gzip.compress(LAYER, mtime=0)


def test_base_is_not_read_when_another_machine_found_it_good(shelf: Shelf, python: Registry) -> None:
    reference = f"registry.example/python:3.13@{shelf.manifest()['digest']}"
    first = read(reference, shelf.folder, python, known=Known(shelf.folder / "there"))
    for key, layers in first.known.items():
        remember(python, key, layers)
    python.streamed.clear()

    again = read(reference, shelf.folder, python, known=Known(shelf.folder / "here", lambda key: recall(python, key)))

    assert (again.base, again.known, python.streamed) == (first.base, first.known, [])


def test_tag_is_refused_with_the_digest_it_means_now(shelf: Shelf, python: Registry) -> None:
    digest = shelf.manifest()["digest"]
    python.tag("3.13", python.read(digest), MANIFEST)

    with pytest.raises(ConfigError) as caught:
        read("registry.example/python:3.13", shelf.folder, python)
    assert caught.value.next == f"write registry.example/python:3.13@{digest}, which it means now"


def test_tag_is_refused_when_nobody_knows_what_it_means(shelf: Shelf, python: Registry) -> None:
    with pytest.raises(ConfigError, match="may mean another") as caught:
        read("registry.example/python", shelf.folder, python)
    assert caught.value.next.startswith("write HOST/NAME@sha256:…")


def test_documents_are_asked_for_once_when_the_base_is_in_a_registry(shelf: Shelf) -> None:
    python = Registry(shelf.folder, "registry.example/python")
    shelf.place = python
    reference = f"registry.example/python@{shelf.manifest()['digest']}"
    first = read(reference, shelf.folder, python)
    python.documents.clear()

    again = read(reference, shelf.folder, python)

    assert (again.base, python.documents) == (first.base, [])


def test_document_is_asked_for_again_when_what_was_kept_is_damaged(shelf: Shelf) -> None:
    python = Registry(shelf.folder, "registry.example/python")
    shelf.place = python
    digest = Digest(shelf.manifest()["digest"])
    first = read(f"registry.example/python@{digest}", shelf.folder, python)
    (shelf.folder / "known" / digest.hex).write_bytes(b"{}")
    python.documents.clear()

    again = read(f"registry.example/python@{digest}", shelf.folder, python)

    assert (again.base, python.documents) == (first.base, [digest])


def test_reading_ends_when_advance_says_so(shelf: Shelf) -> None:
    def stop(_count: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        read(f"layout:base@{shelf.manifest()['digest']}", shelf.folder, advance=stop)


def test_registry_that_does_not_answer_is_no_refusal_of_the_base(shelf: Shelf) -> None:
    def unreachable(_name: str) -> Images:
        raise RegistryUnreachable("registry.example does not answer")

    with pytest.raises(RegistryUnreachable):
        read_base(
            f"registry.example/python@{shelf.manifest()['digest']}",
            TARGET,
            root=shelf.folder,
            known=Known(shelf.folder / "known"),
            images=Layout(shelf.folder / "images"),
            open_images=unreachable,
        )
