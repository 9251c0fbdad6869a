"""READ FIRST: the spine. `build`, `deploy`, `release` and `rollback` read like a runbook.

A stage a line, each giving one value to the next. Owns the order of things; how a stage
does its work is the stage's own business, and what happens when one fails is `turn`'s:
whatever ends a deploy early, what served before serves afterwards, and the record says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Literal

from shipway import receipts
from shipway.artifacts import Digest, Image, ImageRef, LoadReport, Model, ModelRef, Rollout, SuiteRun, Version
from shipway.config import ServiceSettings
from shipway.errors import (
    ClusterRefused,
    ClusterUnreachable,
    ConfigError,
    ModelError,
    NotBuilt,
    NotConfigured,
    NothingToGoBackTo,
    PushError,
    ToolMissing,
)
from shipway.ledger import Outcome, Record
from shipway.oci import compose, evidence, lockfile, tested
from shipway.oci.compose import Composed
from shipway.oci.evidence import Evidence, Maker
from shipway.oci.images import read_image
from shipway.oci.wheels import Target
from shipway.results import Built, Deployed, Plan, Status, Unbuilt, figures
from shipway.site import Site
from shipway.stages import image as image_stage
from shipway.stages import loadcheck as loadcheck_stage
from shipway.stages import model as model_stage
from shipway.stages import push as push_stage
from shipway.stages import rollout as rollout_stage
from shipway.stages import test as test_stage
from shipway.turn import Turn, refusal, served, take

Kind = Literal["release", "deploy", "rollout", "rollback"]
Only = Literal["model", "code"]


# -- the runbooks ------------------------------------------------------------------------


def build(site: Site, *, version: int | None = None, again: bool = False, allow_downgrade: bool = False) -> Built:
    """Test the checkout, resolve its model, compose the image and push it."""
    suite = test(site, again=again)
    names = tested.names(site.images, site.snapshot)
    model, image, ref, sent = _made(site, suite, *names, version=version, allow_downgrade=allow_downgrade)
    return Built(suite=suite, model=model, image=image, ref=ref, sent_bytes=sent.bytes_sent)


def deploy(
    site: Site,
    digest: Digest | None = None,
    *,
    kind: Kind = "deploy",
    wait: bool = False,
    force: bool = False,
    allow_downgrade: bool = False,
    leaves: Version | None = None,
) -> Deployed:
    """Roll an image out, check it, and give it to users; on any failure go back.

    Takes the newest image that was built from a passing suite where no digest is given. With
    `leaves`, raises `Overtaken` when another version than that serves once the lock is ours.
    """
    from shipway import upkeep  # noqa: PLC0415 - what throws images away, which building does not need

    if kind != "rollback":
        site.require_runnable()
    wanted = site.read_image(digest or upkeep.newest_tested(site))
    with _turn(site, kind, wanted, wait=wait) as turn:
        turn.require_still(leaves)
        if (digest is None or kind == "release") and not allow_downgrade:
            model_stage.require_forward(turn.version.model, _released_models(site))
        if turn.serves_already:
            turn.held.discard_candidate()  # a killed release of another version may have left one
            return _proven(site, turn, force=force)
        turn.refuse_what_failed(force=force)
        golden = site.golden(turn.version)
        with turn.going_back():
            candidate = rollout_stage.start(turn.held, wanted, site.tell, as_before=kind == "rollback")
            rollout_stage.ask_golden(candidate.url, turn.version, golden, site.tell)
            _measure_candidate(site, turn, candidate.url, wanted)
            rollout_stage.promote(turn.held, candidate, site.tell)
            _measure_public(site, turn, wanted)
            rollout_stage.settle(turn.held, site.tell)
            rollout_stage.ask_golden(turn.target.url, turn.version, golden, site.tell)
        deployed = _closed(site, turn, "rolled back" if kind == "rollback" else "released")
        upkeep.clean_up(site)
        return deployed


def release(
    site: Site,
    *,
    version: int | None = None,
    again: bool = False,
    wait: bool = False,
    force: bool = False,
    allow_downgrade: bool = False,
) -> Deployed:
    """Build this commit and deploy it."""
    site.require_runnable()  # before anything is built
    built = build(site, version=version, again=again, allow_downgrade=allow_downgrade)
    is_meant = allow_downgrade or version is not None
    return deploy(site, built.ref.digest, kind="release", wait=wait, force=force, allow_downgrade=is_meant)


def rollback(site: Site, *, only: Only | None = None, wait: bool = False) -> Deployed:
    """Go back to the version before this one; `only` goes back with its model or its code alone.

    That makes a new image out of layers that are there, which passes every check.
    """
    live = site.target.current()
    if live is None:
        raise NothingToGoBackTo(
            f"nothing serves in {site.environment}",
            advice="invoke deploy starts the newest tested image; invoke history --json lists all that served",
        )
    earlier = _earlier(site, live.version, only).digest
    if only:
        code, model = (live.version.digest, earlier) if only == "model" else (earlier, live.version.digest)
        composed = image_stage.recombine(read_image(site.images, code), read_image(site.images, model))
        said = evidence.of_recombined(composed.image, images=site.images, code=code, model=model, maker=_maker(site))
        ref, _ = _pushed(site, composed, said)
        earlier = ref.digest
    return deploy(site, earlier, kind="rollback", wait=wait, force=True, leaves=live.version)


# -- stages alone ------------------------------------------------------------------------


def test(site: Site, *, again: bool) -> SuiteRun:
    """Run the test suite on the checkout."""
    return test_stage.run(
        site.settings,
        site.snapshot,
        root=site.root,
        state=site.state,
        environ=site.environ,
        proc=site.proc,
        tell=site.tell,
        again=again,
    )


def image(site: Site, *, version: int | None = None, allow_downgrade: bool = False) -> Image:
    """Compose the image, and pin its model for a `push` of this tree that comes later."""
    model, composed = _composed(site, version, allow_downgrade=allow_downgrade)
    receipts.save(site.state, image_stage.STAGE, tree=site.snapshot.tree, facts={"model_version": model.version})
    return composed.image


def _composed(
    site: Site,
    version: int | None = None,
    *,
    allow_downgrade: bool = False,
    may_build: bool = True,
    ready: compose.Ready = compose.ignore,
) -> tuple[Model, Composed]:
    """Pin the model and compose the image, from what was made before where that is the same."""
    catalogue = site.catalogue
    model = model_stage.resolve(
        site.settings.model, catalogue=catalogue, root=site.root, version=version, tell=site.tell
    )
    if version is None and not allow_downgrade:
        _refuse_early(site, compose.model_ref(model))
    composed = image_stage.compose(
        site.settings,
        checkout=site.checkout,
        snapshot=site.snapshot,
        model=model,
        model_bytes=partial(catalogue.layer_bytes, cache=site.cache),
        model_objects=partial(catalogue.objects, cache=site.cache),
        images=site.images,
        open_images=site.open_images,
        cache=site.cache,
        environ=site.environ,
        proc=site.proc,
        tell=site.tell,
        allow_dirty=not site.in_ci,
        may_build=may_build,
        ready=ready,
    )
    return model, composed


def _refuse_early(site: Site, model: ModelRef) -> None:
    """Refuse a model that `deploy` would refuse, where whoever builds may look at what was released."""
    try:
        model_stage.require_forward(model, _released_models(site))
    except (ToolMissing, ConfigError, NotConfigured, ClusterRefused, ClusterUnreachable) as error:
        told = f"what was released in {site.environment} cannot be seen from here ({error.message})"
        site.tell.warn(f"{told}: deploy looks whether {model.name} {model.version} is a step back")


def _released_models(site: Site) -> Iterator[ModelRef]:
    """Yield the models that served in the environment, the newest release first."""
    return (version.model for version in served(site.ledger.attempts()))


def push(site: Site, *, version: int | None = None, allow_downgrade: bool = False) -> ImageRef:
    """Store what is not there of the image; the model is the one that `image` pinned for this tree.

    It counts as tested when the tree passed its suite.
    """
    pinned = receipts.load(site.state, image_stage.STAGE, tree=site.snapshot.tree) or {}
    suite = test_stage.passed_before(site.state, site.snapshot)
    tags = tested.names(site.images, site.snapshot) if suite else ()
    version = version or pinned.get("model_version")
    _, _, ref, _ = _made(site, suite, *tags, version=version, allow_downgrade=allow_downgrade)
    return ref


def _made(
    site: Site, suite: SuiteRun | None, *tags: str, version: int | None = None, allow_downgrade: bool = False
) -> tuple[Model, Image, ImageRef, push_stage.Sent]:
    """Compose the image and push it: a layer that is known goes while the others are made."""
    with push_stage.at_work(site.images, site.tell) as crew:
        model, composed = _composed(site, version, allow_downgrade=allow_downgrade, ready=crew.send)
        ref, sent = _pushed(site, composed, _evidence(site, model, composed, suite), *tags, begun=crew)
    return model, composed.image, ref, sent


def _pushed(
    site: Site, composed: Composed, said: Evidence, *tags: str, begun: push_stage.Crew | None = None
) -> tuple[ImageRef, push_stage.Sent]:
    """Push with what is said of the image; its build id is always among its tags."""
    names = (composed.image.build, *tags)
    return push_stage.push(composed, images=site.images, tags=names, tell=site.tell, evidence=said, begun=begun)


def _evidence(site: Site, model: Model, composed: Composed, suite: SuiteRun | None) -> Evidence:
    """Say what is in the image, and how it came about."""
    return evidence.of_composed(
        composed.image,
        pins=lockfile.remembered(composed.lock, Target.of(site.settings.image), site.cache),
        lock=composed.lock,
        model=model,
        settings=site.settings.image,
        snapshot=site.snapshot,
        maker=_maker(site, suite),
    )


def _maker(site: Site, suite: SuiteRun | None = None) -> Maker:
    return Maker(who=site.who, in_ci=site.in_ci, began_s=site.began_s, suite=suite)


# -- looking -----------------------------------------------------------------------------


def status(site: Site) -> Status:
    """Say what serves users now."""
    return Status(environment=site.environment, live=site.target.current(), holder=site.lock.holder())


def history(site: Site) -> tuple[Record, ...]:
    """Return every attempt to change what serves, newest first."""
    return tuple(reversed(site.ledger.attempts()))


def plan(site: Site, *, version: int | None = None) -> Plan | Unbuilt:
    """Say what a release would move, in bytes, and what it would go back to; change nothing, and build nothing."""
    tested = test_stage.passed_before(site.state, site.snapshot) is not None
    try:
        _, composed = _composed(site, version, allow_downgrade=True, may_build=False)
    except NotBuilt as nothing:
        return Unbuilt(environment=site.environment, tested=tested, what=nothing.message)
    planned, live = compose.version(composed.image), site.target.current()
    same = bool(live and live.version.digest == planned.digest)
    way_back = live.version if live else None
    if live and same:
        with contextlib.suppress(NothingToGoBackTo):
            way_back = _earlier(site, live.version, None)
    return Plan(
        environment=site.environment,
        tested=tested,
        version=planned,
        moves=push_stage.plan(composed, images=site.images),
        serves=bool(live and same and live.healthy and site.target.is_as_wanted(live)),
        is_other=bool(live and same and not site.target.is_as_wanted(live)),
        is_down=bool(live and same and not live.healthy),
        way_back=None if way_back == planned else way_back,
        refusal=refusal(site.ledger.attempts(), planned, manner=site.target.manner),
        downgrade=None if version else model_stage.downgrade(planned.model, _released_models(site)),
    )


def stop(site: Site, *, wait: bool = False) -> Version | None:
    """End what serves in the environment, and return what that was; `deploy` or `release` starts it again."""
    with site.lock.acquire(owner=site.who, what="stop", wait=wait, tell=site.tell):
        live = site.target.current()
        site.target.stop()
    return live.version if live else None


def run_here(site: Site, *, port: int | None) -> None:
    """Run the checkout as it stands, in the foreground, until a signal ends it. Users never meet it."""
    site.require_runnable_here()
    suite = test_stage.passed_before(site.state, site.snapshot)
    _, image, ref, _ = _made(site, suite, allow_downgrade=True)
    rollout_stage.run_here(
        image,
        site.unpacked(ref.digest),
        port=port or site.settings.service.port,
        home=site.state / "home",
        proc=site.proc,
        tell=site.tell,
    )


# -- the steps of a deploy -----------------------------------------------------------------


def _turn(site: Site, kind: Kind, wanted: Image, *, wait: bool) -> AbstractContextManager[Turn]:
    return take(
        kind,
        compose.version(wanted),
        who=site.who,
        wait=wait,
        target=site.target,
        lock=site.lock,
        ledger=site.ledger,
        tell=site.tell,
    )


def _proven(site: Site, turn: Turn, *, force: bool) -> Deployed:
    """Close a turn that finds its version serving; one that nobody lived to prove is asked its golden answers now."""
    if turn.passed_before():
        return _closed(site, turn, "unchanged")
    turn.refuse_what_failed(force=force)
    rollout_stage.ask_golden(turn.target.url, turn.version, site.golden(turn.version), site.tell)
    return _closed(site, turn, "released")


def _measure_candidate(site: Site, turn: Turn, url: str, image: Image) -> None:
    """Hold the candidate's figures against the limits and the last release's."""
    if turn.is_trusted:
        site.tell.say("loadcheck", "served users here before, and passed then")
        return
    report = _measure(
        site,
        url,
        service=compose.service(image),
        model=site.golden(turn.version),
        seconds=site.settings.loadcheck.seconds,
        builds={turn.version.build},
        baseline_p95_ms=turn.baseline_p95_ms,
    )
    turn.attempt.note(load=figures(report))
    loadcheck_stage.require_pass(report)


def _measure_public(site: Site, turn: Turn, image: Image) -> None:
    """Hold what users meet against the limits; on some targets the version before still serves beside.

    One that is asked by other paths goes first: no question suits both. If it fails there, the
    version before may be the culprit; then it must not stand in the way of its own replacement.
    So the new one is taken away, and the old one measured alone.
    """
    if turn.is_trusted:
        return
    before = turn.previous.version if turn.previous else None
    met = turn.target.met(turn.version, before)
    if before and before in met and not _are_asked_alike(site, before, turn.version):
        site.tell.say("loadcheck", f"{before} is asked by other paths, so it ends before {turn.version} is measured")
        rollout_stage.settle(turn.held, site.tell)
        met = (turn.version,)
    report = _measure_live(site, turn, image, *met)
    if report.verdict != "pass" and before in met and before:
        turn.held.undo(before)
        if _measure_live(site, turn, site.read_image(before.digest), before).verdict != "pass":
            site.tell.warn(f"what serves now, {before}, does not pass itself: it goes before the new one is measured")
            candidate = rollout_stage.start(turn.held, image, site.tell)
            rollout_stage.promote(turn.held, candidate, site.tell)
            rollout_stage.settle(turn.held, site.tell)
            report = _measure_live(site, turn, image, turn.version)
    turn.attempt.note(public_load=figures(report))
    loadcheck_stage.require_pass(report)


def _are_asked_alike(site: Site, before: Version, version: Version) -> bool:
    """Tell whether one load check suits both; where the one before is too damaged to say, it is taken to."""
    try:
        return _paths(site, before) == _paths(site, version)
    except (PushError, ModelError):
        return True


def _paths(site: Site, version: Version) -> tuple[object, ...]:
    """Return by what a load check asks a version."""
    from shipway import exchanges  # noqa: PLC0415 - not for a command that only builds

    service = compose.service(site.read_image(version.digest))
    asked = {(each.method, each.path) for each in exchanges.load(site.golden(version))}
    return service.version_path, service.build_field, asked or service.ready_path


def _measure_live(site: Site, turn: Turn, image: Image, *versions: Version) -> LoadReport:
    """Measure the public address, which these versions share; answers are compared where one model gives them."""
    return _measure(
        site,
        turn.target.url,
        service=compose.service(image),
        model=site.golden(versions[0]),
        seconds=site.settings.loadcheck.public_seconds,
        builds={version.build for version in versions},
        check_answers=len({version.model.digest for version in versions}) == 1,
    )


def _measure(
    site: Site,
    url: str,
    *,
    service: ServiceSettings,
    model: Path | None,
    seconds: float,
    builds: AbstractSet[str] | None,
    baseline_p95_ms: float | None = None,
    check_answers: bool = True,
) -> LoadReport:
    return loadcheck_stage.run(
        site.settings.loadcheck,
        service=service,
        url=url,
        exchanges=model,
        seconds=seconds,
        allowed_builds=builds,
        baseline_p95_ms=baseline_p95_ms,
        root=site.root,
        reports=site.state / "reports",
        environ=site.environ,
        proc=site.proc,
        tell=site.tell,
        check_answers=check_answers,
    )


def _closed(site: Site, turn: Turn, outcome: Outcome) -> Deployed:
    record = turn.attempt.close(outcome)
    before = turn.previous.version if turn.previous else None
    return Deployed(
        record=record,
        rollout=Rollout(environment=site.environment, current=turn.version, previous=before, url=turn.target.url),
    )


# -- going back ----------------------------------------------------------------------------


def _earlier(site: Site, live: Version, only: Only | None) -> Version:
    """Return the newest version that served here, differs as `only` says, and nobody left for being bad."""
    records = site.ledger.attempts()
    for version in served(records):
        if refusal(records, version) is None and _differs(site, version, live, only):
            return version
    what = {None: "version", "model": "model", "code": "code"}[only]
    raise NothingToGoBackTo(f"no other {what} served in {site.environment} before {live}")


def _differs(site: Site, version: Version, live: Version, only: Only | None) -> bool:
    if only == "model":
        return version.model.digest != live.model.digest
    if only == "code":
        return _code(site, version) != _code(site, live)
    return version.digest != live.digest


def _code(site: Site, version: Version) -> list[Digest]:
    """Return what an image holds beside its model."""
    return [layer.diff_id for layer in read_image(site.images, version.digest).layers if layer.part != "model"]
