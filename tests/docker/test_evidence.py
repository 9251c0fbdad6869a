"""What we attach to an image, in real registries, read by other people's programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from shipway.oci import evidence
from shipway.oci.referrers import attached, name_for
from tests.attested import NOW_S, WHO, composed, push, pushed, said_of
from tests.docker.attested import KINDS, Place, opened
from tests.docker.registries import Registry


@pytest.fixture(params=KINDS)
def place(running: Callable[[str], Registry], request: pytest.FixtureRequest) -> Iterator[Place]:
    with opened(running, request) as place:
        yield place


def test_oras_finds_both_documents_when_it_follows_the_tag_schema(place: Place) -> None:
    image = pushed(place.images)

    found = place.oras(
        "discover", "--distribution-spec", "v1.1-referrers-tag", "--format", "json", f"{place.name}@{image.digest}"
    )

    listed = [(each["artifactType"], each["digest"], each["annotations"]) for each in found["referrers"]]
    assert sorted(listed, key=lambda each: str(each[0])) == [
        (each.artifact_type, each.descriptor.digest, each.annotations)
        for each in sorted(attached(place.images, image.digest), key=lambda each: each.artifact_type)
    ]
    assert len(listed) == 2


def test_crane_reads_both_documents_and_they_are_valid(place: Place) -> None:
    made = composed()
    push(place.images, made, said_of(made))

    index = json.loads(place.crane("manifest", f"{place.name}:{name_for(made.image.digest)}"))
    manifests = [json.loads(place.crane("manifest", f"{place.name}@{each['digest']}")) for each in index["manifests"]]
    bill, statement = (place.crane("blob", f"{place.name}@{each['layers'][0]['digest']}") for each in manifests)

    assert [each["subject"]["digest"] for each in manifests] == [made.image.digest] * 2
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.decode()) is None
    assert json.loads(bill) == evidence.read_bill(place.images, made.image.digest)
    assert json.loads(statement)["subject"][0]["digest"] == {"sha256": made.image.digest.hex}
    assert evidence.parse(json.loads(statement)).who == WHO


def test_nothing_changes_when_the_same_is_attached_again(place: Place) -> None:
    image = pushed(place.images)
    before = attached(place.images, image.digest)

    sent = push(place.images, composed(), said_of(composed()), now_s=NOW_S + 60)

    assert (sent, attached(place.images, image.digest)) == (0, before)


def test_tag_of_the_image_means_the_image_when_evidence_is_attached(place: Place) -> None:
    image = pushed(place.images)

    assert place.crane("digest", f"{place.name}:{image.build}").decode().strip() == image.digest
    assert set(place.crane("ls", place.name).decode().split()) >= {image.build, name_for(image.digest)}
