"""What Docker builds, brought to where images live.

Owns the conversation with Docker's daemon: it builds, and hands the image over; our own
client stores it, with our own login, so that the daemon needs neither a credential nor the
registry's certificate. What was built before is found by its recipe's key, so that a second
machine needs no Docker. What fails is a `DockerMissing` or a `DockerFailed` with the last lines.
https://docs.docker.com/reference/api/engine/
"""

from __future__ import annotations

import contextlib
import json
import tarfile
import textwrap
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from shipway.artifacts import Descriptor, Digest, ImageRef
from shipway.console import Tell
from shipway.errors import DockerFailed, DockerMissing, ImageError, NotBuilt
from shipway.oci.archive import CHUNK, pieces
from shipway.oci.compose import CONFIG, MANIFEST, Source, blob_entry, canonical
from shipway.oci.dockerfile import NAME, Recipe
from shipway.oci.images import Images, described
from shipway.oci.layers import FAST, pack
from shipway.oci.staging import staging, writing

_STAGE = "image"
_NAME = "base-{}"
_TAIL_LINES, _LINE = 40, 100
_ANSWER_S = 300.0
Connect = Callable[[], contextlib.AbstractContextManager[Any]]
_GZIP_MAGIC = b"\x1f\x8b"


def built(
    recipe: Recipe, *, connect: Connect, images: Images, cache: Path, tell: Tell, may_build: bool = True
) -> ImageRef:
    """Return the image that a recipe makes, built by Docker and stored in `images` unless it is there.

    Raises `DockerMissing`, `DockerFailed`, `NotBuilt` where it may not be built, and what `images` raises.
    """
    name = _NAME.format(recipe.key)
    if digest := images.tagged(name):
        return ImageRef(repository=images.repository, digest=digest)
    what = NAME + (f", stage {recipe.stage}" if recipe.stage else "")
    if not may_build:
        raise NotBuilt(f"{what}: would be built by Docker, since {images.repository} has not got it")
    tell.say(_STAGE, f"docker builds {what}")
    with staging(cache) as folder:
        archive = folder / "image.tar"
        with connect() as api:
            _export(api, _build(api, recipe, tell), archive)
        return ImageRef(repository=images.repository, digest=_store(archive, images, name, tell))


@contextlib.contextmanager
def daemon(environ: Mapping[str, str]) -> Iterator[Any]:
    """Give the API of the daemon that `DOCKER_HOST` in `environ` names, or else of this machine's."""
    import docker  # noqa: PLC0415 - needed only where Docker builds
    from docker.errors import DockerException  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        client = docker.from_env(environment=dict(environ), timeout=_ANSWER_S)
    except DockerException as error:
        raise DockerMissing(f"no Docker daemon answers: {error}") from error
    try:
        yield client.api
    except (DockerException, HTTPError, OSError) as error:  # requests' errors are OSErrors
        raise DockerFailed(f"Docker failed: {error}") from error
    finally:
        client.close()


def _build(api: Any, recipe: Recipe, tell: Tell) -> str:
    """Build, and return the image's id. Its context is sent as it is made."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    identity = ""
    answers = api.build(
        fileobj=recipe.context(),
        custom_context=True,
        target=recipe.stage,
        buildargs=dict(recipe.build_args),
        platform=recipe.platform,
        rm=True,
        forcerm=True,
        decode=True,
    )
    for answer in answers:
        if "error" in answer:
            message = f"docker could not build {NAME}: {str(answer['error']).splitlines()[0]}"
            raise DockerFailed(message, tail="\n".join(tail))
        for line in str(answer.get("stream", "")).splitlines():
            tail.extend([line] if line.strip() else [])
            if line.startswith("Step "):
                tell.say(_STAGE, f"docker: {textwrap.shorten(line, _LINE, placeholder=' …')}")
        identity = answer.get("aux", {}).get("ID", identity)
    if not identity:
        raise DockerFailed(f"docker built {NAME}, but did not say what came out", tail="\n".join(tail))
    return identity


def _export(api: Any, identity: str, archive: Path) -> None:
    with writing(archive, int(api.inspect_image(identity)["Size"]), ImageError), archive.open("wb") as file:
        for piece in api.get_image(identity, chunk_size=CHUNK):
            file.write(piece)


def _store(archive: Path, images: Images, name: str, tell: Tell) -> Digest:
    """Store the image of a `docker save` archive, and let `name` mean it."""
    config, blobs = _unpacked(archive)
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob_entry(described(config, CONFIG)),
            "layers": [blob_entry(blob) for blob, _ in blobs],
        }
    )
    with images.pushing():
        for number, (blob, source) in enumerate(blobs, start=1):
            label = f"layer {number} of {NAME}"
            with tell.progress(_STAGE, label, blob.size_bytes) as advance:
                images.add(blob, source, advance=advance)
        images.add(described(config, CONFIG), lambda: [config])
        images.tag(name, manifest, MANIFEST)
    return Digest.of(manifest)


def _unpacked(archive: Path) -> tuple[bytes, list[tuple[Descriptor, Source]]]:
    """Return the configuration and the layers of an archive, which has one image."""
    try:
        with tarfile.open(archive) as tar:
            (about,) = json.loads(_member(tar, "manifest.json").read())
            config = _member(tar, about["Config"]).read()
            return config, [_layer(archive, tar, path, number) for number, path in enumerate(about["Layers"])]
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise DockerFailed(f"what Docker handed over is no image: {error}") from error


def _member(tar: tarfile.TarFile, path: str) -> IO[bytes]:
    file = tar.extractfile(path)  # follows links: Docker stores equal layers once
    if file is None:
        message = f"{path} is no file"
        raise ValueError(message)
    return file


def _layer(archive: Path, tar: tarfile.TarFile, path: str, number: int) -> tuple[Descriptor, Source]:
    """Return a layer as gzip, which all programs take: as newer daemons keep it, or else made here."""
    with _member(tar, path) as file:
        is_gzip = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    packed = archive.with_name(f"{number}.tar.gz")
    with writing(packed, archive.stat().st_size, ImageError), packed.open("wb") as file:
        layer = pack("base", path, _pieces(archive, path), iter if is_gzip else FAST, file.write)
    return layer.descriptor, partial(pieces, packed)


def _pieces(archive: Path, path: str) -> Iterator[bytes]:
    with tarfile.open(archive) as tar, _member(tar, path) as file:
        while piece := file.read(CHUNK):
            yield piece
