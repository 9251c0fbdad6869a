"""What becomes of images once they are stored: looked at, kept, thrown away.

Owns which images an environment still needs. Changes nothing that serves. What cannot be
looked at is kept.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence

from shipway.artifacts import Commit, Digest, short_commit
from shipway.errors import CheckoutError, ConfigError, ImageMissing, NotConfigured, ShipwayError, ToolMissing
from shipway.oci import evidence, prune, tested, unpack
from shipway.oci.images import Images, read_image
from shipway.oci.layout import Layout
from shipway.oci.prune import Verdict
from shipway.oci.tested import Newest
from shipway.results import Cleared, Shown
from shipway.site import Site
from shipway.turn import served

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HISTORY = 2000  # commits that are looked at; a tested image that is further behind is found by its time


def newest_tested(site: Site) -> Digest:
    """Return the image of the branch's newest commit that has one from a passing suite, and say how old that is.

    Raises `ImageMissing`.
    """
    try:
        commits, whole = site.checkout.history(_HISTORY)
    except (CheckoutError, ToolMissing) as error:
        site.tell.warn(f"no history to go by ({error.message}), so the commits' own times decide which is the newest")
        commits, whole = (), False
    found = tested.newest(site.images, commits, whole=whole)
    if commits and found.behind is None:
        why = "the image does not say its commit" if found.commit is None else "this clone has not got all commits"
        site.tell.warn(f"{why}, so that the order of commits cannot be told: taking the newest by its time")
    site.tell.say("deploy", _how_old(found, commits))
    return found.digest


def _how_old(found: Newest, commits: Sequence[Commit]) -> str:
    """Say which image was chosen, and how far it is behind what is checked out."""
    what = f"the newest tested image is {found.digest.short}"
    if found.commit is None:
        return what
    what += f", of commit {short_commit(found.commit.id)}"
    if not commits or found.behind == 0:
        return what
    count = f"{_count(found.behind, 'commit')}, " if found.behind else ""
    return f"{what}: {count}{_age(commits[0].time_s - found.commit.time_s)} behind {short_commit(commits[0].id)}"


def _age(seconds: int) -> str:
    for unit, length_s in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if abs(seconds) >= length_s:
            return _count(seconds // length_s, unit)
    return _count(seconds, "second")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# -- looking -----------------------------------------------------------------------------


def show(site: Site, name: str) -> Shown:
    """Say all that is known of an image, without one byte of its layers.

    `name` is a digest, a tag, a build id or `HOST/NAME@sha256:…`; without one it is the newest
    tested image. Raises `ImageMissing`, `ImageCorrupt`.
    """
    images, digest = _found(site, name) if name else (site.images, newest_tested(site))
    image = read_image(images, digest)
    statement = evidence.read_statement(images, digest)
    return Shown(
        repository=images.repository,
        image=image,
        bill=evidence.read_bill(images, digest),
        statement=statement,
        pushed=evidence.parse(statement) if statement else None,
    )


def _found(site: Site, name: str) -> tuple[Images, Digest]:
    repository, _, text = name.rpartition("@")
    if "@" in name or name.startswith("sha256:"):
        try:
            digest = Digest(text)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}", advice="name a digest, a tag or a build id") from error
        known = {each.repository: each for each in (site.images, site.layout)}
        return known.get(repository or site.images.repository) or site.open_images(repository), digest
    if not _TAG.fullmatch(name) or (tagged := site.images.tagged(name)) is None:
        raise ImageMissing(f"{site.images.repository} has no image that is called {name}")
    return site.images, tagged


# -- throwing away -------------------------------------------------------------------------


def clear(site: Site, *, apply: bool) -> Cleared:
    """Say what of the environment's images nobody needs, and with `apply` delete it."""
    if not site.images.shared:
        return _clear_layout(site, apply=apply)
    in_use = _in_use_anywhere(site)
    if not in_use:
        raise NotConfigured(
            f"no environment of this checkout ran anything, so nobody can tell here what of "
            f"{site.images.repository} is in use",
            advice="run it in the checkout that releases",
        )
    verdict = prune.examine(site.images, in_use=in_use, newest=site.settings.push.keep, now_s=time.time())
    if apply:
        verdict = prune.carry_out(site.images, verdict, in_use=lambda: _in_use_anywhere(site), tell=site.tell)
    return Cleared(
        repository=site.images.repository,
        verdict=verdict,
        freed_bytes=verdict.freed_bytes,
        applied=apply,
        collected=False,
    )


def _in_use_anywhere(site: Site) -> dict[Digest, str]:
    """Return the images of the environment's own place that any environment needs, each with who needs it."""
    ours = site.settings.push.repository
    return _needed(each for each in site.neighbours if each.is_here or each.settings.push.repository == ours)


def _needed(sites: Iterable[Site]) -> dict[Digest, str]:
    return {digest: f"{each.environment} runs it or may go back to it" for each in sites for digest in _in_use(each)}


def _in_use(site: Site) -> Iterator[Digest]:
    """Yield what one environment runs, is rolling out, or may go back to."""
    yield from site.target.digests()
    records = site.ledger.attempts()
    yield from (Digest(record.facts["digest"]) for record in records if record.outcome is None)
    yield from list(dict.fromkeys(version.digest for version in served(records)))[: site.settings.push.keep]


def clean_up(site: Site) -> None:
    """Throw away what this machine needs no more; a failure is no reason to go back."""
    try:
        _clear_layout(site, apply=True)
    except (ShipwayError, OSError, ValueError, KeyError) as error:
        site.tell.warn(f"old images could not be cleaned up: {error}")


def _clear_layout(site: Site, *, apply: bool) -> Cleared:
    """Keep what runs, may be gone back to or is about to be deployed."""
    judged: list[Verdict] = []

    def keep() -> list[Digest]:
        judged.append(_judged_here(site))
        return [each.digest for each in judged[-1].staying]

    freed_bytes = site.layout.prune(keep) if apply else 0
    applied = bool(judged)
    if applied:
        unpack.prune([each.image for each in judged[0].staying if each.image], site.state)
    else:  # this is but a look, or somebody pushes
        freed_bytes = site.layout.spare_bytes(keep())
    return Cleared(
        repository=site.layout.repository,
        verdict=judged[0],
        freed_bytes=freed_bytes,
        applied=applied,
        collected=True,
    )


def _judged_here(site: Site) -> Verdict:
    here = _needed(each for each in site.neighbours if each.is_here)  # a cluster's images are in a registry
    wanted = _newest_pushed(site.layout, site.settings.push.keep) | here
    return prune.examine(site.layout, in_use=wanted, newest=0, now_s=None)


def _newest_pushed(layout: Layout, count: int) -> dict[Digest, str]:
    """Return the images that somebody who waits for a lock may be about to deploy."""
    pushed = [digest for name, digest in layout.tags().items() if prune.is_image_name(name)]
    return dict.fromkeys(list(dict.fromkeys(reversed(pushed)))[:count], f"one of the {count} that were pushed last")
