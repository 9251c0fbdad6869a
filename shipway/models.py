"""What data scientists do with models: the runbooks behind the `model.…` tasks.

Owns what a checkout adds to the catalogue: whose key signs, which aliases its environments
follow, and what they still need. Changes nothing that serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from shipway.artifacts import Version
from shipway.site import Site
from shipway.stores import review, signing
from shipway.stores.catalogue import Published
from shipway.stores.review import Compared, Verified
from shipway.stores.sweep import Rule, Swept
from shipway.turn import served


def keygen(path: Path) -> str:
    """Make a key to sign with, and return its public half as release.toml holds it."""
    return str(signing.keygen(path))


def publish(site: Site, folder: Path, *, metrics: Mapping[str, float], aliases: Sequence[str]) -> Published:
    """Publish a folder as the model's next version, signed where there is a key to sign with."""
    published = site.open_catalogue(signs=True).publish(
        folder,
        name=site.settings.model.name,
        publisher=site.who,
        commit=site.commit,
        metrics=metrics,
        aliases=aliases,
        tell=site.tell,
    )
    if metrics and metrics != published.version.metrics:
        site.tell.warn("these metrics were not recorded: a published version never changes")
    return published


def verify(site: Site, which: int | str, *, run: bool) -> Verified:
    """Hash a version's files as the store sends them, check who signed it, and with `run` ask its golden cases."""
    name, runs = site.settings.model.name, site.proc if run else None
    return review.verify(site.catalogue, name, which, cache=site.cache, tell=site.tell, run=runs)


def compare(site: Site, before: int | str, after: int | str) -> Compared:
    """Compare two versions: metrics, files, what the service must understand, and answers."""
    name = site.settings.model.name
    return review.compare(site.catalogue, name, before, after, cache=site.cache, tell=site.tell, run=site.proc)


def clean(site: Site, *, days: float, apply: bool) -> Swept:
    """Say what of the model nobody needs, and with `apply` delete it."""
    name = site.settings.model.name
    rule = Rule(released=_released(site, name), younger_than=timedelta(days=days))
    return site.catalogue.sweep(name, rule, who=site.who, apply=apply, tell=site.tell)


def _released(site: Site, name: str) -> dict[int, str]:
    """Return the versions that an environment of this checkout runs, is rolling out, or may go back to."""
    found = {}
    for each in site.neighbours:
        records = each.ledger.attempts()
        open_ones = [Version.of(record.facts["version"]) for record in records if record.outcome is None]
        lately = list(dict.fromkeys(served(records)))[: each.settings.push.keep]
        for version in (*open_ones, *lately):
            if version.model.name == name:
                found[version.model.version] = f"{each.environment} runs it or may go back to it"
    return found
