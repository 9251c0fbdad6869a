"""What is kept of images where environments of this checkout ran some, and what goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shipway import documents, upkeep
from shipway.artifacts import Image
from shipway.errors import ImageCorrupt
from shipway.oci import compose
from shipway.oci.referrers import name_for
from shipway.site import Site
from tests.attested import WHO, pushed, site_here, site_shared
from tests.fake_registry import FakeRegistry

LONG_AGO_S = 1_700_000_000.0


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


def _serve(site: Site, image: Image) -> None:
    """Record that an image served."""
    version = compose.version(image)
    site.ledger.begin("release", who=WHO, version=documents.plain(version), digest=version.digest).close("released")


def test_layout_keeps_what_served_and_what_was_pushed_last_when_it_is_cleared(here: Site) -> None:
    served, old, *last = (pushed(here.layout, app) for app in "1234")
    _serve(here, served)

    would = upkeep.clear(here, apply=False)
    there = [here.layout.path(image.digest).exists() for image in (served, old, *last)]
    done = upkeep.clear(here, apply=True)

    assert there == [True] * 4
    assert [each.digest for each in would.verdict.going] == [each.digest for each in done.verdict.going] == [old.digest]
    assert would.freed_bytes == done.freed_bytes > old.size_bytes("app")
    assert {each.digest: each.why for each in done.verdict.staying} == {
        served.digest: "local runs it or may go back to it",
        **{image.digest: "one of the 2 that were pushed last" for image in last},
    }
    assert not here.layout.path(old.digest).exists()
    assert here.layout.tags().keys() == {
        name for image in (served, *last) for name in (image.build, name_for(image.digest))
    }
    assert "nothing was deleted: invoke prune --apply" in would.text()
    assert f"deleted  {compose.version(old)}, {old.digest}: nothing runs it" in done.text()
    assert upkeep.clear(here, apply=True).text().endswith(f"nothing to delete in {here.layout.repository}")


def test_nothing_is_deleted_when_an_image_in_use_is_damaged(here: Site) -> None:
    served, *_ = (pushed(here.layout, app) for app in "1234")
    _serve(here, served)
    here.layout.path(served.digest).write_bytes(b"{}")

    with pytest.raises(ImageCorrupt, match=served.digest.hex):
        upkeep.clear(here, apply=True)
    assert len([name for name in here.layout.names() if name_for(served.digest) != name]) == 7


def test_registry_loses_only_what_no_environment_needs_when_it_is_cleared(shared: Site, here: Site) -> None:
    served, other, old, *last = (
        pushed(shared.images, app, now_s=LONG_AGO_S + number) for number, app in enumerate("12345")
    )
    _serve(shared, served)
    _serve(here, other)

    would = upkeep.clear(shared, apply=False)
    done = upkeep.clear(shared, apply=True)

    assert [each.digest for each in would.verdict.going] == [each.digest for each in done.verdict.going] == [old.digest]
    assert {each.digest: each.why for each in done.verdict.staying if each.image} == {
        served.digest: "shared runs it or may go back to it",
        other.digest: "local runs it or may go back to it",
        **{image.digest: "one of the 2 that were pushed last" for image in last},
    }
    assert shared.images.tagged(old.build) is None
    assert done.text().splitlines()[-1].endswith("once the registry has collected its garbage (docs/registries.md)")
    assert [each["digest"] for each in done.facts()["going"]] == [old.digest]
