"""The contract of places for images, kept at every real registry, and other people's opinion of what is there."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shipway.artifacts import Digest
from shipway.oci.images import Images
from shipway.oci.registry import Repository
from shipway.stages import push as stage
from tests.docker import client, tools
from tests.docker.parts import composed
from tests.docker.registries import KINDS, Registry
from tests.images_contract import RegistryContract


@pytest.fixture(params=KINDS)
def registry(running: Callable[[str], Registry], request: pytest.FixtureRequest) -> Registry:
    return running(request.param)


@pytest.fixture
def images(registry: Registry, request: pytest.FixtureRequest) -> Iterator[Repository]:
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    with client.opened(registry, f"contract/{name}") as repository:
        yield repository


class TestRealRegistry(RegistryContract):
    """All that the contract asserts, at each registry."""


def test_examination_names_the_credential_when_one_was_used(registry: Registry, images: Images) -> None:
    said = images.examined()

    wanted = "no credential"
    if "DOCKER_CONFIG" in registry.environ:
        wanted = f"alice, from Docker's configuration, {registry.environ['DOCKER_CONFIG']}/config.json"
    assert said == f"{images.repository} takes images, with {wanted}"


def test_other_peoples_programs_take_the_image_when_it_was_pushed(
    registry: Registry, images: Repository, tmp_path: Path
) -> None:
    made = composed()

    ref, _ = stage.push(made, images=images, tags=["tested"], tell=client.QUIET)

    assert str(ref) == f"{images.repository}@{made.image.digest}"
    client.run(registry, tools.crane(), "validate", "--remote", str(ref))
    client.run(registry, tools.crane(), "export", str(ref), tmp_path / "whole.tar")
    with tarfile.open(tmp_path / "whole.tar") as whole:
        assert "srv/app/__init__.py" in whole.getnames()
    found = client.run(registry, tools.crane(), "digest", f"{images.repository}:tested").decode().strip()
    assert found == made.image.digest
    plain = [] if registry.authority else ["--src-tls-verify=false"]
    client.run(
        registry, tools.skopeo(), "copy", "--preserve-digests", *plain, f"docker://{ref}", f"oci:{tmp_path}/copy:tested"
    )
    index = json.loads((tmp_path / "copy" / "index.json").read_bytes())
    assert [entry["digest"] for entry in index["manifests"]] == [made.image.digest]
    blobs = {path.name for path in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
    assert blobs == {
        digest.hex
        for digest in (
            made.image.digest,
            Digest.of(made.image.config),
            *(each.descriptor.digest for each in made.image.layers),
        )
    }
    client.run(registry, tools.umoci(), "unpack", "--rootless", "--image", f"{tmp_path}/copy:tested", tmp_path / "out")
    assert (tmp_path / "out" / "rootfs" / "srv" / "app" / "__init__.py").read_text("utf-8") == "VERSION = '1'\n"
