"""Look at everything a release needs, before one is under way. Changes nothing that serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Struct

from shipway.console import size
from shipway.errors import Interrupted, NotConfigured, NotReady, ShipwayError
from shipway.oci.images import read_image
from shipway.site import Site
from shipway.turn import served

_ENOUGH_BYTES = 2_000_000_000  # two versions of the sample service, unpacked, and their layers


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at: what it is, whether it is well, and what was seen."""

    what: str
    well: bool
    seen: str

    def __str__(self) -> str:
        return f"{'ok ' if self.well else 'BAD'}  {self.what:<14}{self.seen}"


def examine(site: Site) -> tuple[Finding, ...]:
    """Look at everything; what is not well hides nothing else."""
    findings = [_finding(what, partial(look, site)) for what, look in _LOOKS.items()]
    try:
        looks = site.target.looks()
    except ShipwayError as error:
        return (*findings, Finding(what="target", well=False, seen=str(error)))
    return (*findings, *(_finding(what, look) for what, look in looks.items()))


def require_all_well(findings: Sequence[Finding]) -> None:
    """Raise `NotReady` when a finding is not well."""
    bad = [finding.what for finding in findings if not finding.well]
    if bad:
        raise NotReady(f"not ready for a release: {', '.join(bad)}")


def _finding(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, well=True, seen=look())
    except Interrupted:
        raise
    except (ShipwayError, OSError) as error:
        return Finding(what=what, well=False, seen=str(error))


def _settings(site: Site) -> str:
    return f"environment {site.environment}, target {site.settings.rollout.target}"


def _checkout(site: Site) -> str:
    snapshot = site.snapshot
    return f"commit {snapshot.label}" + (": changed files go into the image as they stand" if snapshot.dirty else "")


def _requirements(site: Site) -> str:
    names = [name for name in (site.settings.image.requirements, site.settings.test.requirements) if name]
    if missing := [name for name in names if not (site.root / name).is_file()]:
        raise NotConfigured(f"there is no {missing[0]}")
    return ", ".join(names)


def _model(site: Site) -> str:
    model = site.catalogue.resolve(site.settings.model.name, site.settings.model.alias)
    return f"{site.settings.model.alias} is {model.name} {model.version}, {size(model.size_bytes)}, all files there"


def _images(site: Site) -> str:
    return site.images.examined()


def _way_back(site: Site) -> str:
    live = site.target.current()
    before = (each for each in served(site.ledger.attempts()) if live and each.digest != live.version.digest)
    if (earlier := next(before, None)) is None:
        return "none yet: nothing else served here"
    read_image(site.images, earlier.digest)
    return f"{earlier}, and {site.images.repository} has it"


def _lock(site: Site) -> str:
    holder = site.lock.holder()
    return f"held by {holder}" if holder else "free"


def _disk(site: Site) -> str:
    free = shutil.disk_usage(site.root).free
    if free < _ENOUGH_BYTES:
        raise NotReady(f"{size(free)} free below {site.root}; a release may need {size(_ENOUGH_BYTES)}")
    return f"{size(free)} free"


_LOOKS: dict[str, Callable[[Site], str]] = {
    "settings": _settings,
    "checkout": _checkout,
    "requirements": _requirements,
    "model": _model,
    "images": _images,
    "lock": _lock,
    "way back": _way_back,
    "disk": _disk,
}
