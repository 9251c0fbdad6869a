"""What measures a service that is there already: the runbooks behind `loadcheck` and `loadtest`.

Owns whom the load is aimed at, which builds may answer, and from where the load comes: one
process, several of this machine, or generators in the cluster. Changes nothing that serves.
The gate is the same whoever measured.
"""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from shipway import exchanges
from shipway.artifacts import ImageRef, LoadReport
from shipway.errors import ConfigError
from shipway.oci import compose, evidence, generator
from shipway.oci.evidence import Maker
from shipway.site import Site
from shipway.stages import image as image_stage
from shipway.stages import loadcheck as stage
from shipway.stages import model as model_stage
from shipway.stages import push as push_stage
from shipway.targets.generators import Wanted, fresh_name

_WORKERS = 4  # generators in the cluster, where nothing is said


class Aim(Struct, frozen=True, kw_only=True):
    """Where the load goes; `model` is the folder with the golden exchanges that are asked there."""

    url: str
    model: Path
    builds: AbstractSet[str] | None


def loadcheck(site: Site, *, url: str | None) -> LoadReport:
    """Put a release's load on the environment's service, or on the one at `url`.

    Raises `LoadCheckFailed` and `LoadCheckInconclusive`.
    """
    return _from_here(site, _aim(site, url), workers=0)


def loadtest(site: Site, *, url: str | None, workers: int | None, in_cluster: bool) -> LoadReport:
    """Put more load on it: from several processes of this machine, or from generators in the environment's cluster.

    Raises as `loadcheck` does, and `GeneratorsNotStarted`.
    """
    if in_cluster:
        return _from_inside(site, url, workers=workers or _WORKERS)
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


def _from_inside(site: Site, url: str | None, *, workers: int) -> LoadReport:
    generators, settings = site.generators, site.settings.loadcheck
    site.require_runnable()
    aim = _aim(site, url)
    if url is None:
        aim = replace(aim, url=generators.address() or aim.url)
    stage.check_url(aim.url)
    stage.require_users(site.root / settings.locustfile)
    wanted = _wanted(site, aim, generators.service, workers=workers)
    with site.loadtest_lock.acquire(owner=site.who, what="load test", wait=False, tell=site.tell):
        generators.sweep()
        report = stage.measure(
            partial(generators.run, wanted),
            settings,
            url=aim.url,
            seconds=settings.seconds,
            allowed_builds=aim.builds,
            baseline_p95_ms=None,
            reports=site.state / "reports",
            tell=site.tell,
            workers=workers,
        )
    stage.require_pass(report)
    return report


def _wanted(site: Site, aim: Aim, service: str, *, workers: int) -> Wanted:
    """Return what is started in the cluster; its image is pushed."""
    settings, owed = site.settings.loadcheck, site.settings.service
    asks = bool(exchanges.load(aim.model))
    image = _pushed(site, aim.model)
    load = stage.options(
        settings, owed, url=aim.url, seconds=settings.seconds, builds=aim.builds is not None, workers=workers
    )
    return Wanted(
        service=service,
        name=fresh_name(service),
        image=f"{site.settings.rollout.pull_from or image.repository}@{image.digest}",
        python=("python",),
        load=("--locustfile", f"/srv/{settings.locustfile},{generator.METER}", *load),
        variables=stage.user_variables(
            exchanges=f"{generator.MODEL}/{exchanges.FOLDER}" if asks else "",
            ready_path=owed.ready_path,
            check_answers=True,
        ),
        workers=workers,
        lasts_s=stage.longest_s(settings, settings.seconds),
        who=site.who,
    )


def _pushed(site: Site, model: Path) -> ImageRef:
    """Compose and push the load generator's image, as far as it is not there."""
    composed = image_stage.generator(
        site.settings,
        checkout=site.checkout,
        snapshot=site.snapshot,
        meter=stage.METER,
        model=model,
        images=site.images,
        open_images=site.open_images,
        cache=site.cache,
        environ=site.environ,
        proc=site.proc,
        tell=site.tell,
        allow_dirty=not site.in_ci,
    )
    said = evidence.of_generator(
        lock=composed.lock,
        settings=site.settings.loadcheck,
        snapshot=site.snapshot,
        maker=Maker(who=site.who, in_ci=site.in_ci, began_s=site.began_s),
    )
    tags = [generator.name(composed.image)]
    ref, _ = push_stage.push(composed, images=site.images, tags=tags, tell=site.tell, evidence=said)
    return ref
