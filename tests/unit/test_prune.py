"""What may go from a repository, and that whatever ends a deletion early, the next one finishes it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shipway.artifacts import Digest, Image
from shipway.console import Console
from shipway.errors import ImageMissing, Interrupted, RegistryRefused
from shipway.oci import prune
from shipway.oci.compose import INDEX, MANIFEST, TAR, blob_entry, canonical
from shipway.oci.images import Images, described, read_image
from shipway.oci.layers import remember
from shipway.oci.layout import Layout
from shipway.oci.prune import GRACE_S, Verdict
from shipway.oci.referrers import attached, name_for
from shipway.oci.registry import Repository
from tests.attested import NOW_S, composed, layer_of, push, pushed
from tests.fake_registry import FakeRegistry, answers, repository
from tests.images_contract import manifest_of, store_image

LATER_S = NOW_S + GRACE_S + 1
DAY_S = 86_400


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


@pytest.fixture
def shelf(fake: FakeRegistry) -> Iterator[Repository]:
    with closing(repository(fake)) as images:
        yield images


def _verdict(images: Images, *in_use: Digest, newest: int = 0, now_s: float = LATER_S) -> Verdict:
    return prune.examine(images, in_use=dict.fromkeys(in_use, "shop runs it"), newest=newest, now_s=now_s)


def _carry_out(images: Images, verdict: Verdict, *in_use: Digest, now_s: float = LATER_S) -> Verdict:
    said = Console(err=io.StringIO())
    used = dict.fromkeys(in_use, "shop runs it")
    return prune.carry_out(images, verdict, in_use=lambda: used, tell=said, clock=lambda: now_s)


def _why(verdict: Verdict) -> dict[Digest, tuple[bool, str]]:
    """Return for each digest whether it goes, and why."""
    return {each.digest: (each in verdict.going, each.why) for each in (*verdict.going, *verdict.staying)}


def _is_gone(images: Images, image: Image) -> bool:
    with pytest.raises(ImageMissing):
        images.read(image.digest)
    return images.tagged(name_for(image.digest)) is None and image.build not in set(images.names())


# -- which ------------------------------------------------------------------------------------


def test_image_goes_when_nothing_speaks_for_it(images: Images) -> None:
    old, used = pushed(images, "1"), pushed(images, "2")

    verdict = _verdict(images, used.digest)

    assert _why(verdict)[old.digest] == (True, "nothing runs it or goes back to it")
    assert _why(verdict)[used.digest] == (False, "shop runs it")
    assert images.read(old.digest) == old.manifest


@pytest.mark.parametrize("tag", ["tested", "v1.2", "0123456789abcdef", "latest", "sha256-short", "base-image"])
def test_image_stays_when_another_tag_than_its_build_id_names_it(images: Images, tag: str) -> None:
    image = pushed(images, "1", tag)

    assert _why(_verdict(images))[image.digest] == (False, f"tagged {tag}")


@pytest.mark.parametrize(("age_s", "goes"), [(0, False), (GRACE_S - 60, False), (GRACE_S, True), (-DAY_S, False)])
def test_image_stays_when_it_was_pushed_within_two_hours(images: Images, age_s: float, *, goes: bool) -> None:
    image = pushed(images)

    verdict = _verdict(images, now_s=NOW_S + age_s)

    assert _why(verdict)[image.digest][0] == goes


def test_image_stays_when_it_was_pushed_again_within_two_hours(images: Images) -> None:
    image = pushed(images)
    pushed(images, now_s=NOW_S + DAY_S)

    assert _why(_verdict(images, now_s=NOW_S + DAY_S + 60))[image.digest] == (False, "pushed 1 minutes ago")


def test_image_stays_when_nothing_says_when_it_was_pushed(images: Images) -> None:
    made = composed()
    push(images, made, None)

    verdict = _verdict(images, now_s=NOW_S + 1000 * DAY_S)

    assert _why(verdict)[made.image.digest] == (False, "nothing says when it was pushed")


def test_newest_images_stay_when_they_are_old(images: Images) -> None:
    made = [pushed(images, str(number), now_s=NOW_S + number) for number in (3, 1, 2)]

    verdict = _verdict(images, newest=2, now_s=NOW_S + DAY_S)

    assert [_why(verdict)[image.digest] for image in made] == [
        (False, "one of the 2 that were pushed last"),
        (True, "nothing runs it or goes back to it"),
        (False, "one of the 2 that were pushed last"),
    ]


def test_image_in_use_stays_when_its_build_id_names_another_one_now(images: Images) -> None:
    """Two commits that run the same have one build id, and the tag is the later one's."""
    first = pushed(images)
    images.delete(first.digest)
    images.put(first.manifest, MANIFEST)

    assert first.build not in set(images.names())
    assert _why(_verdict(images, first.digest))[first.digest] == (False, "shop runs it")
    assert _why(_verdict(images))[first.digest] == (True, "nothing runs it or goes back to it")


def test_image_of_somebody_else_is_not_touched(images: Images) -> None:
    theirs = store_image(images, b"hello")
    for name in ("0123456789abcdef", f"base-image-{'0' * 16}"):
        images.tag(name, theirs, MANIFEST)

    verdict = _verdict(images, now_s=NOW_S + 1000 * DAY_S)

    assert _why(verdict) == {Digest.of(theirs): (False, "shipway did not make it")}


def test_age_does_not_count_when_nobody_else_uses_the_images(images: Images) -> None:
    made = composed()
    push(images, made, None)

    verdict = prune.examine(images, in_use={}, newest=0, now_s=None)

    assert _why(verdict)[made.image.digest] == (True, "nothing runs it or goes back to it")


def test_image_stays_when_what_is_attached_to_it_is_damaged(images: Images) -> None:
    image = pushed(images)
    index = b'{"manifests":[{"digest":"%s"}]}' % image.digest.encode()
    images.put(index, INDEX)
    images.tag(name_for(image.digest), index, INDEX)

    assert _why(_verdict(images))[image.digest] == (False, "nothing says when it was pushed")


def test_nothing_goes_when_there_is_nothing(images: Images) -> None:
    assert _verdict(images, Digest.of(b"elsewhere")) == Verdict(going=(), staying=())


def test_memory_of_layers_goes_with_the_last_image_that_has_them_all(shelf: Repository) -> None:
    pushed(shelf, "1", wheel="old")
    used = pushed(shelf, "2", wheel="new")
    memories = {name: shelf.tagged(name) for name in shelf.names() if name.startswith("layers-")}

    verdict = _verdict(shelf, used.digest)

    told = {each.digest: (each.kind, each in verdict.going, each.why) for each in (*verdict.going, *verdict.staying)}
    assert sorted(told[digest] for digest in memories.values() if digest) == [
        ("layers", False, f"{used.digest.short} is made of it"),
        ("layers", True, "no image that stays is made of it"),
    ]


def test_memory_of_layers_goes_when_an_image_that_stays_has_only_some_of_them(images: Images) -> None:
    used = pushed(images)
    wheels, app = (next(each for each in used.layers if each.part == part) for part in ("dependencies", "app"))
    gone, _ = layer_of("dependencies", "gone")
    images.add(gone.descriptor, lambda: [layer_of("dependencies", "gone")[1]])
    for key, layers in (("1" * 64, [wheels, app]), ("2" * 64, [wheels, gone])):
        remember(images, key, layers)

    done = _carry_out(images, _verdict(images, used.digest), used.digest)

    assert [each.names for each in done.going] == [{f"layers-{'2' * 64}"}]


@pytest.mark.parametrize(
    ("created", "now_s", "goes"),
    [
        ("2027-01-15T08:00:00.123456789Z", LATER_S + 1, True),
        ("2027-01-15T08:00:00Z", NOW_S + 60, False),
        ("yesterday", NOW_S + DAY_S, False),
    ],
)
def test_base_goes_when_it_is_old_and_no_image_stands_on_it(
    images: Images, created: str, now_s: float, *, goes: bool
) -> None:
    config = b'{"created":"%s"}' % created.encode()
    for data in (config, b"system"):
        images.add(described(data, TAR), lambda data=data: [data])  # type: ignore[misc]
    base = manifest_of(config, b"system")
    images.put(base, MANIFEST)
    images.tag(f"base-{'0f' * 32}", base, MANIFEST)

    assert _why(_verdict(images, now_s=now_s))[Digest.of(base)][0] == goes


# -- how much ----------------------------------------------------------------------------------


def test_freed_bytes_are_those_that_no_image_that_stays_shares(images: Images) -> None:
    old, used = pushed(images, "1"), pushed(images, "2")

    verdict = _verdict(images, used.digest)

    assert verdict.freed_bytes == old.size_bytes("app") + len(old.config) + len(old.manifest)


# -- deleting ----------------------------------------------------------------------------------


def test_image_and_all_that_is_attached_are_gone_when_they_were_deleted(images: Images) -> None:
    old, used = pushed(images, "1"), pushed(images, "2")
    documents = [each.descriptor.digest for each in attached(images, old.digest)]

    done = _carry_out(images, _verdict(images, used.digest), used.digest)

    assert [each.digest for each in done.going] == [old.digest]
    assert _is_gone(images, old)
    for digest in documents:
        with pytest.raises(ImageMissing):
            images.read(digest)
    assert read_image(images, used.digest) == used
    assert [each.kind for each in attached(images, used.digest)] == ["sbom", "provenance"]
    assert _verdict(images, used.digest).going == ()


def test_image_stays_when_an_index_calls_it_an_attachment_of_one_that_is_gone(images: Images) -> None:
    used, gone = pushed(images), Digest.of(b"gone")
    theirs = [blob_entry(described(data, MANIFEST)) for data in (used.manifest, b"not there")]
    index = b'{"manifests":%s}' % canonical(theirs[: 1 if images.shared else 2])  # registries look whether it is there
    images.tag(name_for(gone), index, INDEX)

    done = _carry_out(images, _verdict(images, used.digest), used.digest)

    assert [each.digest for each in done.going] == [gone]
    assert (read_image(images, used.digest), images.tagged(name_for(gone))) == (used, None)


@pytest.mark.parametrize("deletions", range(5))
def test_next_run_finishes_when_one_is_killed_after_any_deletion(
    shelf: Repository, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    old, used = pushed(shelf, "1", wheel="old"), pushed(shelf, "2")
    with monkeypatch.context() as patch:
        patch.setattr(shelf, "delete", _killed_after(deletions, shelf.delete))
        verdict = _verdict(shelf, used.digest)
        with pytest.raises(Interrupted):
            _carry_out(shelf, verdict, used.digest)

    _carry_out(shelf, _verdict(shelf, used.digest), used.digest)

    assert _is_gone(shelf, old)
    assert {name.partition("-")[0] for name in shelf.names()} == {used.build, "layers", "sha256"}
    assert len(list(shelf.names())) == 3
    assert read_image(shelf, used.digest) == used


def _killed_after(count: int, delete: Callable[[Digest], None]) -> Callable[[Digest], None]:
    left = [count]

    def dying(digest: Digest) -> None:
        if not left[0]:
            raise Interrupted("killed")
        left[0] -= 1
        delete(digest)

    return dying


@pytest.mark.parametrize("how", ["tag", "push", "use"])
def test_image_stays_when_it_came_into_use_after_the_examination(images: Images, how: str) -> None:
    old = pushed(images)
    verdict = _verdict(images)
    if how == "tag":
        images.tag("v1", old.manifest, MANIFEST)
    elif how == "push":
        pushed(images, now_s=LATER_S - 60)

    done = _carry_out(images, verdict, *([old.digest] if how == "use" else []))

    assert done.going == ()
    assert [each.why for each in done.staying if each.image] == [
        {"tag": "tagged v1", "push": "pushed 1 minutes ago", "use": "shop runs it"}[how]
    ]
    assert images.read(old.digest) == old.manifest
    assert images.tagged(old.build) == old.digest


def test_image_stays_when_it_was_gone_at_the_examination_and_was_pushed_again(images: Images) -> None:
    old = pushed(images)
    images.delete(old.digest)
    verdict = _verdict(images)
    assert (old.digest, "attachments") in {(each.digest, each.kind) for each in verdict.going}
    pushed(images)

    done = _carry_out(images, verdict)

    assert old.digest not in {each.digest for each in done.going}
    assert [each.why for each in done.staying if each.digest == old.digest] == ["its image is there again"]
    assert images.read(old.digest) == old.manifest
    assert [each.kind for each in attached(images, old.digest)] == ["sbom", "provenance"]


def test_memory_of_layers_stays_when_its_image_stays_after_all(shelf: Repository) -> None:
    old = pushed(shelf)
    verdict = _verdict(shelf)
    shelf.tag("v1", old.manifest, MANIFEST)

    done = _carry_out(shelf, verdict)

    assert (done.going, {each.kind for each in done.staying}) == ((), {"image", "layers"})


def test_registry_is_told_of_when_it_takes_no_deletions(shelf: Repository, fake: FakeRegistry) -> None:
    old = pushed(shelf)
    fake.script("DELETE", "manifests/", answers(405, "UNSUPPORTED"))

    with pytest.raises(RegistryRefused, match="UNSUPPORTED") as caught:
        _carry_out(shelf, _verdict(shelf))

    assert "REGISTRY_STORAGE_DELETE_ENABLED=true" in caught.value.next
    assert shelf.read(old.digest) == old.manifest


def test_tags_are_listed_once_when_many_images_are_deleted(fake: FakeRegistry, shelf: Repository) -> None:
    for name in ("1", "2", "3", "4", "5"):
        pushed(shelf, name)
    used = pushed(shelf, "6")
    began = len(fake.calls)
    verdict = _verdict(shelf, used.digest)
    looked = len(fake.calls)

    done = _carry_out(shelf, verdict, used.digest)

    assert len(done.going) == 5
    assert _lists(fake.calls[looked:]) == _lists(fake.calls[began:looked]) > 0


def _lists(calls: list[str]) -> int:
    return sum("/tags/list" in call for call in calls)
