"""What goes along with an image: attached once, found by its digest, the same wherever images live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shipway import __version__, documents
from shipway.artifacts import Digest
from shipway.errors import ImageCorrupt
from shipway.oci import evidence
from shipway.oci.compose import INDEX, MANIFEST, blob_entry
from shipway.oci.evidence import Maker, Pushed
from shipway.oci.images import Images, described
from shipway.oci.layout import Layout
from shipway.oci.referrers import CREATED, KIND, Attached, Attachment, attach, attached, name_for
from tests.attested import BASE, NOW_S, SETTINGS, WHO, composed, push, pushed, recombined, said_of, snapshot
from tests.fake_registry import FakeRegistry, repository

HOUR_S = 3600


@pytest.fixture
def fake() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture(params=["layout", "registry"])
def images(request: pytest.FixtureRequest, fake: FakeRegistry, tmp_path: Path) -> Iterator[Images]:
    if request.param == "layout":
        yield Layout(tmp_path / "images")
    else:
        with closing(repository(fake)) as images:
            yield images


def _kinds(images: Images, digest: Digest) -> list[str | None]:
    return [each.kind for each in attached(images, digest)]


def test_both_documents_are_found_by_the_digest_when_an_image_was_pushed(images: Images) -> None:
    made = composed(base=BASE)

    push(images, made, said_of(made))

    found = attached(images, made.image.digest)
    assert [(each.kind, each.artifact_type) for each in found] == [
        ("sbom", "application/vnd.cyclonedx+json"),
        ("provenance", "application/vnd.in-toto+json"),
    ]
    for each in found:
        manifest = json.loads(images.read(each.descriptor.digest))
        assert manifest["subject"] == {
            "mediaType": MANIFEST,
            "digest": made.image.digest,
            "size": len(made.image.manifest),
        }
        assert manifest["annotations"] == each.annotations
    assert evidence.pushed_s(images, made.image.digest) == NOW_S


def test_statement_says_who_when_from_what_and_which_suite_passed(images: Images) -> None:
    made, at = composed(base=BASE), snapshot()
    push(images, made, said_of(made))

    statement = evidence.read_statement(images, made.image.digest)

    assert statement == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "shop", "digest": {"sha256": made.image.digest.hex}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:shipway:image:v1",
                "externalParameters": {
                    "commit": at.commit,
                    "dirty": False,
                    "model": {"name": "net", "version": 1},
                    "image": {
                        **json.loads(documents.text(SETTINGS.image)),
                        "environment": ["COLOUR"],
                        "build_args": ["MIRROR"],
                    },
                },
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": at.commit, "gitTree": at.tree}},
                    {"name": "app/requirements.txt", "digest": {"sha256": Digest.of(made.lock).hex}},
                    {"name": "model net 1", "digest": {"sha256": Digest.of(b"set of weights 1").hex}},
                    {"name": "base", "digest": {"sha256": Digest.of(b"the base's manifest").hex}},
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:shipway:builder:local", "version": {"shipway": __version__}},
                "metadata": {
                    "startedOn": "2027-01-15T07:59:00Z",
                    "finishedOn": "2027-01-15T08:00:00Z",
                    "shipway_who": WHO,
                },
                "byproducts": [
                    {"name": "tests", "digest": {"gitTree": at.tree}, "annotations": {"passed": 7, "seconds": 2.5}}
                ],
            },
        },
    }
    assert evidence.parse(statement) == Pushed(
        who=WHO,
        builder="urn:shipway:builder:local",
        began="2027-01-15T07:59:00Z",
        finished="2027-01-15T08:00:00Z",
        tests_passed=7,
        tests_seconds=2.5,
    )


def test_statement_knows_of_no_suite_when_none_passed(images: Images) -> None:
    made = composed()
    push(images, made, said_of(made, passed=None, in_ci=True))

    statement = evidence.read_statement(images, made.image.digest)

    assert statement
    said = evidence.parse(statement)
    assert (said.builder, said.tests_passed, said.tests_seconds) == ("urn:shipway:builder:ci", None, None)


def test_nothing_is_sent_when_the_same_was_pushed_within_the_hour(images: Images) -> None:
    made = composed()
    push(images, made, said_of(made))
    before = images.tagged(name_for(made.image.digest))

    sent = push(images, made, said_of(made, who="bob@ci"), now_s=NOW_S + HOUR_S)

    assert (sent, images.tagged(name_for(made.image.digest))) == (0, before)


def test_statement_is_replaced_and_the_bill_stays_when_the_last_push_was_an_hour_ago(images: Images) -> None:
    made = composed()
    push(images, made, said_of(made))
    bill = attached(images, made.image.digest)[0]

    push(images, made, said_of(made, who="bob@ci"), now_s=NOW_S + HOUR_S + 1)

    statement = evidence.read_statement(images, made.image.digest)
    assert statement
    assert evidence.parse(statement).who == "bob@ci"
    assert evidence.pushed_s(images, made.image.digest) == NOW_S + HOUR_S + 1
    assert attached(images, made.image.digest)[0] == bill
    assert _kinds(images, made.image.digest) == ["sbom", "provenance"]


def test_statement_is_replaced_at_once_when_only_the_new_one_knows_of_a_suite(images: Images) -> None:
    made = composed()
    push(images, made, said_of(made, passed=None))

    push(images, made, said_of(made), now_s=NOW_S + 1)

    assert evidence.pushed_s(images, made.image.digest) == NOW_S + 1
    push(images, made, said_of(made, passed=None), now_s=NOW_S + 2)
    assert evidence.pushed_s(images, made.image.digest) == NOW_S + 1


def test_documents_are_attached_again_when_the_registry_collected_them_as_garbage(images: Images) -> None:
    made = composed()
    push(images, made, said_of(made))
    before = attached(images, made.image.digest)
    for each in before:
        images.delete(each.descriptor.digest)
    assert evidence.read_bill(images, made.image.digest) is None

    push(images, made, said_of(made), now_s=NOW_S + 1)

    assert evidence.read_bill(images, made.image.digest)
    assert evidence.pushed_s(images, made.image.digest) == NOW_S + 1
    assert _kinds(images, made.image.digest) == ["sbom", "provenance"]


def test_images_have_their_own_statements_when_their_layers_are_the_same(images: Images) -> None:
    first, second = pushed(images, "1"), pushed(images, "2")

    assert _kinds(images, first.digest) == _kinds(images, second.digest) == ["sbom", "provenance"]
    assert attached(images, first.digest) != attached(images, second.digest)


def test_recombined_image_names_both_images_and_has_a_bill_when_they_have_one(images: Images) -> None:
    code, weights = pushed(images, "2"), pushed(images, "1", weights="22")
    made = recombined(code, weights)
    said = evidence.of_recombined(
        made.image,
        images=images,
        code=code.digest,
        model=weights.digest,
        maker=Maker(who=WHO, in_ci=False, began_s=NOW_S),
    )

    push(images, made, said)

    bill, statement = (
        evidence.read_bill(images, made.image.digest),
        evidence.read_statement(images, made.image.digest),
    )
    assert bill
    assert statement
    assert [each["name"] for each in bill["components"]] == ["flask", "numpy", "torch", "net"]
    assert bill["components"][-1]["version"] == "2"
    assert statement["predicate"]["buildDefinition"]["resolvedDependencies"] == [
        {"name": "code", "digest": {"sha256": code.digest.hex}},
        {"name": "model", "digest": {"sha256": weights.digest.hex}},
    ]


def test_recombined_image_has_no_bill_when_one_of_the_two_has_none(images: Images) -> None:
    code, weights = pushed(images, "2"), composed(weights="22")
    push(images, weights, None)
    made = recombined(code, weights.image)
    maker = Maker(who=WHO, in_ci=False, began_s=NOW_S)
    said = evidence.of_recombined(made.image, images=images, code=code.digest, model=weights.image.digest, maker=maker)

    push(images, made, said)

    assert _kinds(images, made.image.digest) == ["provenance"]


def test_recombined_image_has_no_bill_when_one_of_the_two_is_wrong(images: Images) -> None:
    code, weights = pushed(images, "2"), pushed(images, "1", weights="22")
    theirs = Attachment(kind="sbom", media_type="application/json", data=b"[]", created="2027-01-15T08:00:00Z")
    images.add(theirs.blob, lambda: [theirs.data])
    attach(images, described(code.manifest, MANIFEST), [theirs])

    said = evidence.of_recombined(
        recombined(code, weights).image,
        images=images,
        code=code.digest,
        model=weights.digest,
        maker=Maker(who=WHO, in_ci=False, began_s=NOW_S),
    )

    assert said.bill is None


def test_nothing_is_known_when_nothing_is_attached(images: Images) -> None:
    made = composed()
    push(images, made, None)

    digest = made.image.digest
    found = (evidence.read_bill(images, digest), evidence.read_statement(images, digest))
    assert (*found, evidence.pushed_s(images, digest)) == (None, None, None)


def test_nothing_planted_is_in_what_is_attached(images: Images) -> None:
    made = composed(base=BASE)
    push(images, made, said_of(made))

    told = [evidence.read_bill(images, made.image.digest), evidence.read_statement(images, made.image.digest)]

    assert "hunter" not in json.dumps(told)
    assert "example" not in json.dumps(told)


_NOT_OURS = [
    b"",
    b"[1]",
    b"{}",
    b"[" * 9999,
    b'{"components": [1]}',
    b'{"predicate": {"runDetails": []}}',
    b'{"components": [1], "predicate": {"runDetails": {"byproducts": [{"name": "tests", "annotations": [1]}]}}}',
]


@pytest.mark.parametrize("kind", ["sbom", "provenance"])
@pytest.mark.parametrize("data", _NOT_OURS)
def test_document_is_refused_when_it_says_it_is_ours_and_is_not(images: Images, kind: str, data: bytes) -> None:
    made = composed()
    push(images, made, said_of(made))
    theirs = Attachment(kind=kind, media_type="application/json", data=data, created="2027-01-15T08:00:00Z")
    images.add(theirs.blob, lambda: [data])
    attach(images, described(made.image.manifest, MANIFEST), [theirs])
    read = {"sbom": evidence.read_bill, "provenance": evidence.read_statement}[kind]

    with pytest.raises(ImageCorrupt, match=f"the {kind} of .* is none of shipway's"):
        read(images, made.image.digest)


# -- the index -------------------------------------------------------------------------------


def test_signature_of_somebody_else_stays_when_ours_is_replaced(images: Images) -> None:
    image = pushed(images)
    theirs = _sign(images, image.digest)

    pushed(images, now_s=NOW_S + HOUR_S + 1)

    assert [(each.kind, each.artifact_type) for each in attached(images, image.digest)] == [
        ("sbom", "application/vnd.cyclonedx+json"),
        (None, "application/vnd.example.signature"),
        ("provenance", "application/vnd.in-toto+json"),
    ]
    assert theirs in attached(images, image.digest)


def test_ours_is_attached_again_when_another_replaced_the_index_meanwhile(
    fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = composed()
    with closing(repository(fake)) as images:
        tag = images.tag
        meddled: list[bool] = []

        def tag_and_be_overtaken(name: str, manifest: bytes, media_type: str) -> None:
            tag(name, manifest, media_type)
            if name == name_for(made.image.digest) and not meddled:
                meddled.append(True)
                _replace_index(images, made.image.digest, [])

        monkeypatch.setattr(images, "tag", tag_and_be_overtaken)
        push(images, made, said_of(made))

        assert meddled
        assert _kinds(images, made.image.digest) == ["sbom", "provenance"]


@pytest.mark.parametrize("annotations", [{CREATED: 5, KIND: "provenance"}, {CREATED: "", KIND: ["provenance"]}])
def test_index_is_mended_when_another_s_annotations_are_no_texts(tmp_path: Path, annotations: dict[str, Any]) -> None:
    layout, made = Layout(tmp_path), composed()
    theirs = {**blob_entry(described(b"theirs", MANIFEST)), "annotations": annotations}
    _replace_index(layout, made.image.digest, [theirs])

    assert evidence.pushed_s(layout, made.image.digest) is None
    push(layout, made, said_of(made))

    assert {"sbom", "provenance"} <= set(_kinds(layout, made.image.digest))


def test_index_is_corrupt_when_it_names_a_blob_of_endless_size(tmp_path: Path) -> None:
    layout, subject = Layout(tmp_path), Digest.of(b"image")
    index = b'{"manifests": [{"mediaType": "x", "digest": "%s", "size": 1e999}]}' % subject.encode()
    layout.tag(name_for(subject), index, INDEX)

    with pytest.raises(ImageCorrupt, match="is no OCI image index"):
        attached(layout, subject)


HALF_A_LETTER = (
    b'{"manifests": [{"mediaType": "x", "digest": "sha256:%064d", "size": 1, "annotations": {"a": "\\ud800"}}]}'
)


@pytest.mark.parametrize(
    "index",
    [b"[]", b"{}", b'{"manifests": [1]}', b'{"manifests": [{"digest": "../x"}]}', b"[" * 9999, HALF_A_LETTER % 1],
)
def test_index_is_corrupt_when_it_is_none(tmp_path: Path, index: bytes) -> None:
    layout = Layout(tmp_path)
    image = pushed(layout)
    layout.put(index, INDEX)
    layout.tag(name_for(image.digest), index, INDEX)

    with pytest.raises(ImageCorrupt, match="is no OCI image index") as caught:
        attached(layout, image.digest)
    assert f"delete the tag {name_for(image.digest)}" in str(caught.value)


# -- what it costs ----------------------------------------------------------------------------


def test_evidence_costs_few_requests_when_an_image_is_new(fake: FakeRegistry) -> None:
    first, second = composed("1"), composed("2")
    with closing(repository(fake)) as images:
        push(images, first, said_of(first, "1"))
        without = _calls(fake, lambda: push(images, composed("3"), None))
        attested = _calls(fake, lambda: push(images, second, said_of(second, "2")))
        again = _calls(fake, lambda: push(images, second, said_of(second, "2")))
        bare = _calls(fake, lambda: push(images, composed("3"), None))

    assert attested - without == 10  # the bill is that of the first image, and so is the empty configuration
    assert again - bare == 4


def _calls(fake: FakeRegistry, act: Any) -> int:
    before = len(fake.calls)
    act()
    return len(fake.calls) - before


# -- clean-up of a layout ----------------------------------------------------------------------


def test_layout_keeps_the_attachments_of_what_it_keeps_alone_when_it_is_pruned(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    old, kept = pushed(layout, "1"), pushed(layout, "2")
    lost = {each.descriptor.digest for each in attached(layout, old.digest)}

    spare = layout.spare_bytes([kept.digest])
    freed = layout.prune(lambda: [kept.digest])

    assert freed == spare > len(old.manifest) + len(old.config)
    assert _kinds(layout, kept.digest) == ["sbom", "provenance"]
    assert evidence.read_bill(layout, kept.digest)
    assert evidence.read_statement(layout, kept.digest)
    assert [layout.path(digest).exists() for digest in lost] == [False, False]
    assert layout.tags().keys() == {kept.build, name_for(kept.digest)}
    assert layout.prune(lambda: [kept.digest]) == 0


def test_layout_can_be_pruned_when_an_attachment_is_damaged(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    old, kept = pushed(layout, "1"), pushed(layout, "2")
    layout.path(attached(layout, kept.digest)[0].descriptor.digest).unlink()

    layout.prune(lambda: [kept.digest])

    assert layout.tags().keys() == {kept.build, name_for(kept.digest)}
    assert not layout.path(old.digest).exists()


def _sign(images: Images, subject: Digest) -> Attached:
    """Attach what somebody else's tool would."""
    manifest = b'{"schemaVersion":2,"config":{"digest":"%s"},"layers":[]}' % Digest.of(b"{}").encode()
    images.put(manifest, MANIFEST)
    entry = {
        "mediaType": MANIFEST,
        "digest": Digest.of(manifest),
        "size": len(manifest),
        "artifactType": "application/vnd.example.signature",
    }
    _replace_index(images, subject, [entry])
    return attached(images, subject)[-1]


def _replace_index(images: Images, subject: Digest, more: list[dict[str, Any]]) -> None:
    """Write an index as somebody would who read it before ours was in it, and adds something."""
    old = images.tagged(name_for(subject)) if more else None
    entries = json.loads(images.read(old))["manifests"] if old else []
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries, *more]}).encode()
    images.put(index, INDEX)
    images.tag(name_for(subject), index, INDEX)
    assert images.tagged(name_for(subject)) == described(index, INDEX).digest
