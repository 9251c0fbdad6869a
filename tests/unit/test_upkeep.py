"""What becomes of stored images: shown without their layers, and kept while an environment needs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from shipway import upkeep
from shipway.artifacts import Digest
from shipway.errors import ConfigError, ImageCorrupt, ImageMissing, NotConfigured
from shipway.oci import compose
from shipway.oci.compose import MANIFEST
from shipway.oci.layout import Layout
from shipway.oci.referrers import attached
from shipway.site import Site
from tests.attested import BASE, WHO, composed, push, pushed, said_of, site_here, site_shared
from tests.fake_registry import FakeRegistry
from tests.images_contract import store_image

LOCAL = "urn:shipway:builder:local"


@pytest.fixture
def fake() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def here(tmp_path: Path) -> Site:
    return site_here(tmp_path)


@pytest.fixture
def shared(here: Site, fake: FakeRegistry) -> Iterator[Site]:
    with site_shared(here, fake) as site:
        yield site


# -- looking -----------------------------------------------------------------------------


def test_image_is_shown_with_all_that_is_known_when_it_was_pushed(shared: Site, fake: FakeRegistry) -> None:
    made = composed(base=BASE)
    push(shared.images, made, said_of(made), "tested")
    before = len(fake.calls)

    text = upkeep.show(shared, "tested").text()

    assert text.splitlines() == [
        f"localhost:5000/team/service@{made.image.digest}",
        f"build      {made.image.build}, commit 356a192b7913b04c54574d18c28d46e6395428ab",
        "created    2023-11-14T22:13:20Z (the commit's time)",
        f"model      net 1 ({Digest.of(b'set of weights 1')})",
        "size       41.0 kB",
        "  base           10.2 kB",
        "  dependencies   10.2 kB",
        "  model          10.2 kB",
        "  app            10.2 kB",
        "made for   linux/amd64",
        f"base       {compose.base(made.image)}",
        "runs       python -m app as 65532:65532",
        "contents   3 packages in the SBOM",
        f"provenance unsigned: pushed 2027-01-15T08:00:00Z by {WHO} ({LOCAL}); 7 tests passed in 2.5 s",
    ]
    layers = {layer.descriptor.digest.short for layer in made.image.layers}
    assert not [call for call in fake.calls[before:] if any(layer in call for layer in layers)]


def test_image_is_shown_to_machines_with_both_documents(here: Site) -> None:
    made = composed()
    push(here.layout, made, said_of(made))

    facts = json.loads(json.dumps(upkeep.show(here, made.image.digest).facts()))

    assert (facts["image"], facts["digest"], facts["build"]) == (
        f"layout:{here.state / 'images'}@{made.image.digest}",
        made.image.digest,
        made.image.build,
    )
    assert (facts["signed"], facts["pushed"]["who"], facts["pushed"]["tests_passed"]) == (False, WHO, 7)
    assert facts["sbom"]["bomFormat"] == "CycloneDX"
    assert facts["provenance"]["predicateType"] == "https://slsa.dev/provenance/v1"
    assert [layer["part"] for layer in facts["layers"]] == ["dependencies", "model", "app"]


def test_terminal_obeys_nothing_that_a_stranger_wrote(here: Site) -> None:
    made = composed()
    push(here.layout, made, said_of(made, who="\x1b[2J\nmallory"))

    text = upkeep.show(here, made.image.digest).text()

    assert "by ?[2J?mallory (" in text


def test_image_is_shown_as_it_is_when_nothing_is_attached(here: Site) -> None:
    made = composed()
    push(here.layout, made, None)

    lines = upkeep.show(here, made.image.build).text().splitlines()

    assert lines[-2:] == [
        "contents   no SBOM is attached",
        "provenance none is attached: nobody says who pushed it, or whether it was tested",
    ]


def test_image_is_found_by_any_of_its_names(here: Site) -> None:
    image = pushed(here.layout, "1", "v1")

    names = [image.digest, image.build, "v1", f"{here.layout.repository}@{image.digest}"]

    assert [upkeep.show(here, name).image for name in names] == [image] * 4


@pytest.mark.parametrize("name", ["sha256:123", "registry.example/shop@v1", "@", "registry.example/shop@sha256:1"])
def test_name_is_refused_when_its_digest_is_none(here: Site, name: str) -> None:
    with pytest.raises(ConfigError, match="not a sha256 digest"):
        upkeep.show(here, name)


@pytest.mark.parametrize("name", ["v2", "../v2", "v2?x=y", "localhost:5000/shop:v2"])
def test_image_is_missing_when_nobody_gave_it_that_name(shared: Site, name: str) -> None:
    with pytest.raises(ImageMissing) as caught:
        upkeep.show(shared, name)
    assert caught.value.message == f"{shared.images.repository} has no image that is called {name}"


def test_image_of_somebody_else_is_not_shown(here: Site) -> None:
    theirs = store_image(here.layout, b"hello")

    with pytest.raises(ImageCorrupt, match="not an image that shipway composed"):
        upkeep.show(here, Digest.of(theirs))


def test_statement_of_somebody_else_under_our_name_is_refused(here: Site) -> None:
    made = composed()
    push(here.layout, made, said_of(made))
    (found,) = (each for each in attached(here.layout, made.image.digest) if each.kind == "provenance")
    blob = json.loads(here.layout.read(found.descriptor.digest))["layers"][0]
    here.layout.path(Digest(blob["digest"])).write_bytes(b"x" * blob["size"])

    with pytest.raises(ImageCorrupt, match="is damaged"):
        upkeep.show(here, made.image.digest)


# -- throwing away -------------------------------------------------------------------------


def test_layout_keeps_a_base_and_what_somebody_tagged_when_it_is_cleared(here: Site) -> None:
    pushed(here.layout, "1", "mine")
    pushed(here.layout, "2")
    pushed(here.layout, "3")
    wheels = json.loads(here.layout.read(pushed(here.layout, "4").digest))["layers"][:1]
    bases = []
    for number, layers in enumerate((wheels, [{**wheels[0], "digest": Digest.of(b"other")}])):
        base = json.dumps({"config": wheels[0], "layers": layers}).encode()
        here.layout.put(base, MANIFEST)
        here.layout.tag(f"base-{number:064}", base, MANIFEST)
        bases.append(Digest.of(base))

    upkeep.clear(here, apply=True)

    assert {"mine", f"base-{0:064}"} < here.layout.tags().keys()
    assert [here.layout.path(base).exists() for base in bases] == [True, False]


def test_layout_keeps_what_was_tagged_right_before_it_is_cleared(here: Site) -> None:
    old, *_ = (pushed(here.layout, app) for app in "123")  # two are kept

    class Late(Layout):
        def prune(self, choose: Callable[[], Collection[Digest]]) -> int:
            self.tag("mine", old.manifest, MANIFEST)
            return super().prune(choose)

    class Racing(Site):
        @property
        def layout(self) -> Layout:
            return Late(self.state / "images")

    cleared = upkeep.clear(Racing.open(here.root, environment=None, environ={}), apply=True)

    assert (here.layout.tagged("mine"), here.layout.read(old.digest)) == (old.digest, old.manifest)
    assert old.digest in {each.digest for each in cleared.verdict.staying}


def test_nothing_is_cleared_and_that_is_said_when_somebody_pushes(here: Site) -> None:
    old, *_ = (pushed(here.layout, app) for app in "123")

    with here.layout.pushing():
        cleared = upkeep.clear(here, apply=True)

    assert (cleared.applied, here.layout.read(old.digest)) == (False, old.manifest)
    assert "nothing was deleted" in cleared.text()


def test_registry_is_not_cleared_when_this_checkout_ran_nothing(shared: Site) -> None:
    pushed(shared.images)

    with pytest.raises(NotConfigured, match="nobody can tell here") as caught:
        upkeep.clear(shared, apply=True)
    assert "the checkout that releases" in caught.value.next
