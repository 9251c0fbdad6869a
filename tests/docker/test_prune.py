"""What real registries do when images are deleted, seen by other people's programs."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator

import pytest

from shipway.artifacts import Digest, Image
from shipway.console import Console
from shipway.oci import evidence, prune
from shipway.oci.compose import MANIFEST
from shipway.oci.images import read_image
from shipway.oci.prune import GRACE_S, Verdict
from shipway.oci.referrers import attached, name_for
from tests.attested import NOW_S, pushed
from tests.docker.attested import KINDS, Place, opened
from tests.docker.registries import PROGRAMS, Registry
from tests.images_contract import store_image

LATER_S = NOW_S + GRACE_S + 1


@pytest.fixture(params=KINDS)
def place(running: Callable[[str], Registry], request: pytest.FixtureRequest) -> Iterator[Place]:
    with opened(running, request) as place:
        yield place


def _prune(place: Place, *in_use: Digest) -> Verdict:
    used = dict.fromkeys(in_use, "shop runs it")
    verdict = prune.examine(place.images, in_use=used, newest=0, now_s=LATER_S)
    return prune.carry_out(
        place.images, verdict, in_use=lambda: used, tell=Console(err=io.StringIO()), clock=lambda: LATER_S
    )


def test_crane_sees_only_what_stays_when_the_rest_was_deleted(place: Place) -> None:
    old, tagged = pushed(place.images, "1", wheel="old"), pushed(place.images, "2", "v1.2")
    used, theirs = pushed(place.images, "3"), store_image(place.images, b"of somebody else")
    place.images.tag("0123456789abcdef", theirs, MANIFEST)
    memory = {name for name in place.images.names() if name.startswith("layers-")}

    done = _prune(place, used.digest)

    assert [each.kind for each in done.going] == ["image", "layers"]
    assert done.going[0].digest == old.digest
    names = set(place.crane("ls", place.name).decode().split())
    assert names - memory == {
        *(tagged.build, "v1.2", used.build, "0123456789abcdef"),
        *(name_for(tagged.digest), name_for(used.digest)),
    }
    assert len(names & memory) == 1
    for image in (tagged, used):
        assert read_image(place.images, image.digest) == image
        assert len(attached(place.images, image.digest)) == 2
        place.crane("validate", "--fast", "--remote", f"{place.name}@{image.digest}")
    assert _prune(place, used.digest).going == ()


def test_deleted_image_can_be_pushed_again(place: Place) -> None:
    old = pushed(place.images)
    _prune(place)

    pushed(place.images)

    assert read_image(place.images, old.digest) == old
    assert len(attached(place.images, old.digest)) == 2


@pytest.mark.parametrize("place", ["debian-open", "v3-open"], indirect=True)
def test_registry_frees_the_bytes_and_keeps_the_rest_when_it_collects_its_garbage(place: Place) -> None:
    old = pushed(place.images, f"of {place.name}")  # a layer that no other repository of this registry has
    used = pushed(place.images, "2")
    assert _is_stored(place, old)

    _prune(place, used.digest)
    program = PROGRAMS[place.kind.partition("-")[0]]()
    configuration = place.registry.storage.parent / "registry.yml"
    subprocess.run([program, "garbage-collect", configuration], check=True, capture_output=True, timeout=60)

    assert not _is_stored(place, old)
    assert read_image(place.images, used.digest) == used
    assert evidence.read_bill(place.images, used.digest)
    assert evidence.read_statement(place.images, used.digest)
    place.crane("validate", "--fast", "--remote", f"{place.name}@{used.digest}")


def _is_stored(place: Place, image: Image) -> bool:
    """Tell whether the registry has the bytes of an image's app."""
    name = next(layer.descriptor.digest for layer in image.layers if layer.part == "app").hex
    return (place.registry.storage / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data").exists()
