"""What data scientists do with models: the runbooks behind the `model.…` tasks.

Owns what a checkout adds to the catalogue: whose key signs, which aliases its environments
follow, and what they still need. Changes nothing that serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shipway.site import Site
from shipway.stores import review, signing
from shipway.stores.catalogue import Published
from shipway.stores.review import Compared, Verified


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
