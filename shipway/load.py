"""What measures a service that is there already: the runbooks behind `loadcheck` and `loadtest`.

Owns whom the load is aimed at, which builds may answer, and from where the load comes: one
process, several of this machine, or generators in the cluster. Changes nothing that serves.
The gate is the same whoever measured.
"""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from shipway.artifacts import LoadReport
from shipway.errors import ConfigError
from shipway.oci import compose
from shipway.site import Site
from shipway.stages import loadcheck as stage
from shipway.stages import model as model_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """Where the load goes; `model` is the folder with the golden exchanges that are asked there."""

    url: str
    model: Path
    builds: AbstractSet[str] | None


def loadcheck(site: Site, *, url: str | None) -> LoadReport:
    """Put a release's load on the environment's service, or on the one at `url`.

    Raises `LoadCheckFailed` and `LoadCheckInconclusive`.
    """
    return _from_here(site, _aim(site, url), workers=0)


def loadtest(site: Site, *, url: str | None, workers: int | None) -> LoadReport:
    """Put load on the service from several processes of this machine (default: one for each processor).

    Raises as `loadcheck` does.
    """
    return _from_here(site, _aim(site, url), workers=workers or os.cpu_count() or 1)


def _aim(site: Site, url: str | None) -> Aim:
    """Return the environment's service and what must answer there, or whatever is at `url`."""
    live = None if url else site.target.current()
    if live:
        return Aim(url=live.url, model=site.golden(live.version), builds={live.version.build})
    if not url:
        raise ConfigError(f"nothing serves in {site.environment}", advice="say which address: --url http://…")
    catalogue = site.catalogue
    model = model_stage.resolve(site.settings.model, catalogue=catalogue, root=site.root, version=None, tell=site.tell)
    folder = catalogue.golden_exchanges(compose.model_ref(model), cache=site.cache, tell=site.tell)
    return Aim(url=url, model=folder, builds=None)


def _from_here(site: Site, aim: Aim, *, workers: int) -> LoadReport:
    report = stage.run(
        site.settings.loadcheck,
        service=site.settings.service,
        url=aim.url,
        exchanges=aim.model,
        seconds=site.settings.loadcheck.seconds,
        allowed_builds=aim.builds,
        baseline_p95_ms=None,
        root=site.root,
        reports=site.state / "reports",
        environ=site.environ,
        proc=site.proc,
        tell=site.tell,
        workers=workers,
    )
    stage.require_pass(report)
    return report
