"""What data scientists do with models: the runbooks behind the `model.…` tasks.

Owns what a checkout adds to the catalogue: whose key signs, which aliases its environments
follow, and what they still need. Changes nothing that serves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from shipway.artifacts import Version
from shipway.config import ModelSettings, environments, load
from shipway.errors import ConfigError, MachineRefused, ModelUnfit
from shipway.site import Site
from shipway.stages import model as model_stage
from shipway.stores import is_elsewhere, review, signing
from shipway.stores.catalogue import LATEST, Copied, Published
from shipway.stores.manifest import ModelVersion, Move
from shipway.stores.review import Compared, Verified
from shipway.stores.sweep import Rule, Swept
from shipway.turn import served


def keygen(path: Path) -> str:
    """Make a key to sign with, and return its public half as release.toml holds it."""
    try:
        return str(signing.keygen(path))
    except OSError as error:
        raise MachineRefused(f"{path}: {error.strerror}") from error


def publish(site: Site, folder: Path, *, metrics: Mapping[str, float], aliases: Sequence[str]) -> Published:
    """Publish a folder as the model's next version, signed where there is a key to sign with.

    Raises `ModelUnfit` before anything is written, when an environment follows one of the
    aliases and its service would not understand the model.
    """
    published = site.open_catalogue(signs=True).publish(
        folder,
        name=site.settings.model.name,
        publisher=site.who,
        commit=site.commit,
        metrics=metrics,
        aliases=aliases,
        accept=partial(_require_fit, site, site.settings.model.store, {LATEST, *aliases}),
        tell=site.tell,
    )
    if metrics and metrics != published.version.metrics:
        site.tell.warn("these metrics were not recorded: a published version never changes")
    return published


def promote(site: Site, version: int, alias: str, *, why: str, expected: int | None) -> Move | None:
    """Move an alias to a version that every environment which follows it understands; `None`: it is there already."""
    catalogue, model = site.catalogue, site.settings.model
    _require_fit(site, model.store, {alias}, catalogue.show(model.name, version))
    return catalogue.promote(model.name, version, alias, who=site.who, why=why, expected=expected)


def copy(site: Site, into: str, *, versions: Sequence[int | str], aliases: Sequence[str]) -> Copied:
    """Copy versions into another store, or into that of another environment, `env:NAME`."""
    name, source, there = site.settings.model.name, site.catalogue, _reached(site, into)
    for alias in aliases:
        _require_fit(site, there.settings.model.store, {alias}, source.show(name, alias))
    return there.catalogue.copy_from(source, name, versions=versions, aliases=aliases, who=site.who, tell=site.tell)


def _reached(site: Site, into: str) -> Site:
    """Return a site whose store is the one to copy into, reached as its own settings, or ours, say."""
    scheme, _, environment = into.partition(":")
    if scheme == "env":
        return replace(site, loaded=load(site.root, environment=environment, environ=site.environ))
    return replace(site, loaded=site.loaded.with_store(into))


def _require_fit(site: Site, store: str, aliases: Collection[str], version: ModelVersion) -> None:
    """Raise `ModelUnfit` when an environment of the checkout follows one of the aliases without understanding it."""
    for environment, settings in _followers(site, store):
        if settings.name == version.name and settings.alias in aliases and settings.contract:
            contract = model_stage.read_contract(site.root / settings.contract)
            if told := model_stage.differences(version, contract):
                listed = "\n".join(f"  {difference}" for difference in told)
                raise ModelUnfit(
                    f"the environment {environment} follows {settings.alias} of {settings.name}, "
                    f"and its service does not understand this model:\n{listed}",
                    advice="change the service first, or let the environment follow another alias: [model] alias",
                )


def _followers(site: Site, store: str) -> Iterator[tuple[str, ModelSettings]]:
    """Yield the environments of the checkout that take their models from a store."""
    for environment in environments(site.root):
        try:
            settings = load(site.root, environment=environment, environ=site.environ).settings.model
        except ConfigError as error:
            site.tell.warn(f"whether {environment} understands the model is not known: {error.message}")
            continue
        if _same_place(site.root, settings.store, store):
            yield environment, settings


def _same_place(root: Path, one: str, other: str) -> bool:
    if is_elsewhere(one) or is_elsewhere(other):
        return one.rstrip("/") == other.rstrip("/")
    return (root / one).resolve() == (root / other).resolve()


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
