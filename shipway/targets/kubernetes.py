"""The Kubernetes target: versions run as a Deployment, whose image is a digest.

Owns what a promotion and an undo are here. A candidate is the same pod template once, under
labels that no Service for users selects. A promotion applies what kustomize makes of `k8s/`,
server-side, and watches the rolling update; every replica is asked for its build, one by one,
and then the public address, from here. Which version is to serve (the one that was settled
last) stands in an annotation of the Deployment, and how it was applied in a record beside it,
so that going back needs neither the checkout nor the registry. How many replicas there are is
not our business. What is not said of a function here is said in `Target`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from itertools import chain

from msgspec import Struct

from shipway import documents
from shipway.artifacts import Digest, Image, Version
from shipway.config import RolloutSettings, ServiceSettings
from shipway.console import Tell
from shipway.errors import (
    CandidateFailed,
    ConfigError,
    PromotionFailed,
    RolloutError,
    ShipwayError,
    UndoFailed,
    WrongBuild,
)
from shipway.targets import Candidate, Live, answers, fitness, launch, manifests, progress
from shipway.targets.forward import Forward, Start, start_beside
from shipway.targets.kubectl import Kubectl, Object
from shipway.targets.progress import Progress
from shipway.targets.public import Ask, Public
from shipway.targets.releases import Releases

_POLL_S = 1.0
_DOUBT_S = 15.0  # a registry may be back in a moment; what is not there then never comes
_SETTLING_S = 30.0
_REPLICAS_S = 90.0  # one on a node that died counts as ready for most of a minute
_TOLD_S = 5.0  # a kubelet says within so long that a container ended
_LOG_LINES = 15
_WATCHED = "replicasets.apps,pods"


class _Settled(Struct, frozen=True, kw_only=True):
    version: Version
    since: float
    record: str | None


class Kubernetes:
    """One service in one namespace; a `Target`."""

    def __init__(
        self,
        kubectl: Kubectl,
        *,
        name: str,
        folder: str,
        repository: str,
        platform: str,
        settings: RolloutSettings,
        service: ServiceSettings,
        tell: Tell,
        start: Start = start_beside,
        ask: Ask = answers.build,
        unresolved: Callable[[str], str | None] = answers.unresolved,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Run the Deployment `name` of the kustomize `folder`, its image from `repository`.

        `service` says how a version is asked of which nothing else is known.
        """
        self._kubectl = kubectl
        self._name = name
        self._folder = folder
        self._repository = settings.pull_from or repository
        self._platform = platform
        self._settings = settings
        self._service = service
        self._tell = tell
        self._start = start
        self._ask = ask
        self._sleep = sleep
        self._clock = clock
        self._releases = Releases(kubectl, name=name)
        self._public = Public(
            kubectl,
            name=name,
            settings=settings,
            tell=tell,
            ask=ask,
            unresolved=unresolved,
            sleep=sleep,
            clock=clock,
        )
        self._forward: Forward | None = None
        self._measured = ""
        self._promoted: Version | None = None
        self._wanted: list[Object] = []
        self._began_with: list[str] | None = (
            None  # what of `_wanted` was there before; unknown while nothing is applied
        )
        self._is_applied = False
        self._record_before: str | None = None
        self._version_before: Version | None = None
        self._found_applied: str | None = None  # another record than that before when a promotion was killed

    @property
    def url(self) -> str:
        """The name that the settings say, else the load balancer's address, else an empty text."""
        return self._public.url

    @property
    def manner(self) -> str:
        """The hash of the manifests; none where they cannot be rendered, which a way back need not."""
        with contextlib.suppress(ConfigError):
            return manifests.fingerprint(self._render())
        return ""

    # -- what is served ----------------------------------------------------------------------

    def current(self) -> Live | None:
        """Return what was settled last, and what the Deployment's pods are now."""
        deployment = self._deployment()
        if deployment is None:
            return None
        settled = _settled(deployment)
        if settled is None:
            self._tell.warn(f"the Deployment {self._name} is there, but no release of it was ever finished")
            return None
        state = self._look(deployment)
        running = {version.build: None for pod in self._serving() if (version := manifests.version_of(pod))}
        template = manifests.version_of(deployment["spec"]["template"])
        url = self.url
        healthy = state.done and template is not None and template.digest == settled.version.digest
        answer = self._public.build(url, self._contract(settled.version, record=settled.record))
        return Live(
            version=settled.version,
            url=url,
            since=settled.since,
            builds=tuple(running),
            healthy=healthy and answer == settled.version.build and tuple(running) == (settled.version.build,),
        )

    def is_as_wanted(self, live: Live) -> bool:
        """Say whether the manifests that are live are those of the checkout, and the address is the settings'."""
        deployment = self._deployment()
        wanted = manifests.record_name(self._name, live.version.digest, self._render())
        return deployment is not None and manifests.record_of(deployment) == wanted and live.url == self.url

    def digests(self) -> frozenset[Digest]:
        """Return what runs, and what is to serve."""
        deployment = self._deployment()
        settled = _settled(deployment) if deployment else None
        found = [manifests.version_of(pod) for pod in self._pods(deployment)] if deployment else []
        found += [settled.version] if settled else []
        return frozenset(version.digest for version in found if version)

    def looks(self) -> Mapping[str, Callable[[], str]]:
        """Look at the cluster, our rights in it, its nodes, the manifests, and what serves."""
        rendered = cache(self._render)
        of_manifests = partial(fitness.overlay, folder=self._folder, name=self._name, port=self._service.port)
        return {
            "cluster": partial(fitness.cluster, self._kubectl),
            "rights": partial(fitness.rights, self._kubectl, rendered=rendered),
            "nodes": partial(fitness.nodes, self._kubectl, platform=self._platform),
            "manifests": partial(of_manifests, self._kubectl, rendered=rendered),
            "target": self._look_at_target,
        }

    def image(self, digest: Digest) -> tuple[bytes, bytes] | None:
        """Return the manifest and the configuration of an image that served here, where its record is kept."""
        return self._releases.image(digest)

    def explain(self) -> str:
        """Return events and last log lines of a candidate, or of what was promoted, that ends or is not ready."""
        for name in (manifests.candidate_name(self._name), self._name):
            with contextlib.suppress(ShipwayError):
                deployment = self._deployment(name)
                state = self._look(deployment) if deployment else None
                if state and (not state.done or any(map(progress.restarts, state.pods))):
                    return self._words(name)
        return ""

    def hindrance(self) -> str:
        """Say that the candidate's pod was taken away by somebody, or the way to it was cut while it ran on."""
        if self._forward is None:
            return ""
        if self._forward.cuts:
            self._sleep(_TOLD_S)
        deployment = self._deployment(manifests.candidate_name(self._name))
        pods = [pod for pod in self._pods(deployment) if pod["metadata"]["name"] == self._measured]
        if not pods or progress.is_ending(pods[0]):
            return f"{self._measured} was drained, evicted or deleted while it was measured"
        if self._forward.cuts and not progress.restarts(pods[0]):
            return f"the way to {self._measured} was cut {self._forward.cuts} times while it was measured"
        return ""

    def logs(self) -> str:
        """Return the last lines of every replica."""
        deployment = self._deployment()
        pods = self._pods(deployment) if deployment else []
        return "\n".join(
            f"==> {pod['metadata']['name']}\n{self._kubectl.logs(pod['metadata']['name'], container=name, lines=100)}"
            for pod in pods
            for name in [pod["spec"]["containers"][0]["name"]]
        )

    # -- what a release does, in this order --------------------------------------------------

    def start(self, version: Version, image: Image, *, as_before: bool) -> Candidate:
        """Apply the candidate and lead a port of this machine to it."""
        self._service = launch.service(image.config)
        self._require_ours()
        self.discard_candidate()
        recorded = self._releases.objects(self._releases.of(version.digest)) if as_before else []
        self._wanted = recorded or self._released(version)
        wanted = manifests.find(self._wanted, self._name)
        beside = manifests.candidate(wanted, port=self._service.port)
        labels = manifests.pod_labels(beside[0])
        services = [*self._wanted, *self._kubectl.find("services")]
        own = manifests.candidate_name(self._name)
        manifests.require_unreachable(labels, (each for each in services if each["kind"] == "Service"), own=own)
        self._releases.keep(self._wanted, version=version, image=image)
        self._began_with = self._kubectl.existing(self._wanted)
        self._tell.say("rollout", f"starting {version} as {own}")
        lacking = [each for each in manifests.needed(self._wanted) if not self._was_there(each)]
        self._kubectl.apply([*lacking, *beside], force=True)
        state = self._watch(own, error=CandidateFailed, limit_s=self._service.start_timeout_s)
        return Candidate(version=version, url=self._proven(state.pods[0], version))

    def promote(self, candidate: Candidate) -> None:
        """Apply what the candidate was made of; its own room is what the rolling update needs."""
        self._require_alive(manifests.candidate_name(self._name))
        self.discard_candidate()
        there = self._deployment()
        is_new = there is None or _settled(there) is None  # a first release that was killed may have left one
        self._tell.say("rollout", f"applying {candidate.version}")
        self._is_applied, self._promoted = True, candidate.version
        self._kubectl.apply_when_heard(self._wanted)
        if is_new and (count := manifests.replicas(self._wanted, self._name)):
            self._kubectl.scale("deployment.apps", self._name, count)
        self._watch(self._name, error=PromotionFailed, limit_s=self._rollout_s())
        self._require_replicas(candidate.version, error=PromotionFailed)
        self._public.require(candidate.version, self._service, error=PromotionFailed)

    def met(self, version: Version, before: Version | None) -> tuple[Version, ...]:  # noqa: ARG002 - it is gone by then
        """Return the new one alone."""
        return (version,)

    def settle(self) -> None:
        """Wait until the replicas before have ended; write down what serves.

        Last, so that whoever is killed before leaves a release to be finished, what is not applied any more included.
        """
        deployment = self._deployment()
        version = manifests.version_of(deployment["spec"]["template"]) if deployment else None
        if deployment is None or version is None:
            raise PromotionFailed("nothing was promoted that could be settled")
        if self._promoted and version != self._promoted:
            raise PromotionFailed(f"{self._promoted} was promoted, and somebody put {version} in its place")
        before = _settled(deployment)
        self._await_alone(version, error=PromotionFailed)
        self._tidy(manifests.record_of(deployment), before.record if before else None, self._found_applied)
        self._settle(deployment, version)

    def undo(self, previous: Version | None) -> None:
        """Apply what was recorded of `previous`, unless it was never replaced; say how long that took."""
        began = self._clock()
        try:
            self.discard_candidate()
            if previous is None:
                self._remove_all()
            else:
                self._go_back(previous)
        except Exception as error:  # whatever it was, a person must know that going back failed
            raise UndoFailed(
                f"going back to {previous or 'nothing'} failed: {error}",
                serving=f"kubectl --context {self._kubectl.cluster.context} "
                f"--namespace {self._kubectl.cluster.namespace} get deployment,pods shows what is there.",
            ) from error
        self._tell.say("rollout", f"undone in {self._clock() - began:.0f} s")

    def discard_candidate(self) -> None:
        """Remove the candidate, and what leads to it."""
        if self._forward:
            self._forward.close()
            self._forward = None
        own = manifests.candidate_name(self._name)
        self._kubectl.delete([f"deployment.apps/{own}", f"service/{own}"])

    def stop(self) -> None:
        """Delete what was applied, but for the Services: they hold the public address."""
        self.discard_candidate()
        deployment = self._deployment()
        if deployment is None:
            return
        objects = self._releases.objects(manifests.record_of(deployment)) or [deployment]
        names = manifests.names(objects, but=frozenset({"Service"}))
        self._tell.say("rollout", f"deleting {', '.join(names)}; Services stay, with their addresses")
        self._kubectl.delete(names, wait=True)
        self._require_gone(deployment)

    # -- steps -------------------------------------------------------------------------------

    def _render(self) -> list[Object]:
        return self._kubectl.render(self._folder)

    def _released(self, version: Version) -> list[Object]:
        return manifests.released(
            self._render(),
            name=self._name,
            container=self._settings.container,
            image=f"{self._repository}@{version.digest}",
            version=version,
        )

    def _require_ours(self) -> None:
        """Raise `ConfigError` for a Deployment that another made, which nobody could go back to, or without pods."""
        deployment = self._deployment()
        settled = _settled(deployment) if deployment else None
        self._record_before = settled.record if settled else None
        self._version_before = settled.version if settled else None
        self._found_applied = manifests.record_of(deployment) if deployment else None
        if deployment and not manifests.version_of(deployment["spec"]["template"]):
            raise ConfigError(
                f"the Deployment {self._name} was not made by shipway, so nobody could go back to it",
                advice="delete it, or give the one in [rollout] overlay another name and [rollout] deployment that",
            )
        if deployment and _is_put_to_sleep(deployment):
            raise ConfigError(
                f"the Deployment {self._name} is scaled to 0, so no version could prove itself there",
                advice=f"kubectl scale deployment {self._name} --replicas 1, then run the same command again",
            )

    def _proven(self, pod: progress.Object, version: Version) -> str:
        """Lead a port to the candidate, and have it say the right build there, some times in a row.

        To its very pod: by its Service kubectl might choose one of the candidate before, which is ending.
        """
        cluster, own = self._kubectl.cluster, manifests.candidate_name(self._name)
        self._measured = pod["metadata"]["name"]
        argv = partial(_forwarded, cluster.forward, f"pod/{self._measured}", self._service.port)
        self._forward = Forward(argv, tell=self._tell, start=self._start)
        self._forward.open()
        deadline, in_a_row = self._clock() + _SETTLING_S, 0
        while in_a_row < self._settings.proofs:
            answer = self._ask(self._forward.url, self._service)
            in_a_row = in_a_row + 1 if answer == version.build else 0
            if answer not in (None, version.build) or (not in_a_row and self._clock() > deadline):
                said = f"build {answer} answered" if answer else "nothing told its build"
                raise WrongBuild(f"{version} was expected of {own}, but {said}", tail=self._words(own))
            if not in_a_row:
                self._sleep(_POLL_S)
        return self._forward.url

    def _require_alive(self, own: str) -> None:
        """Raise `CandidateFailed` when the candidate is not there any more as it was started."""
        deployment = self._deployment(own)
        state = self._look(deployment) if deployment else None
        again = sum(map(progress.restarts, state.pods)) if state else 0
        if again or state is None or not state.done:
            what = f"ended and was started again ({again} times)" if again else "is not ready any more"
            raise CandidateFailed(f"{own} {what} while it was measured", tail=self._words(own))

    def _watch(self, name: str, *, error: type[RolloutError], limit_s: float) -> Progress:
        """Say what changes until all of a Deployment's replicas are new and available; return that state.

        Raises `error` with events and last log lines, at once when it is hopeless.
        """
        began, told, doubts = self._clock(), "", dict[str, float]()
        while True:
            deployment = self._deployment(name)
            if deployment is None:
                raise error(f"somebody deleted the Deployment {name}")
            state, now = self._look(deployment), self._clock()
            if state.done and (state.pods or deployment["spec"]["replicas"] == 0):
                return state
            if state.told != told:
                self._tell.say("rollout", f"{name}: {state.told}")
                told = state.told
            doubts = {state.doubtful: doubts.get(state.doubtful, now)} if state.doubtful else {}
            if state.hopeless:
                raise error(f"{name} cannot start: {state.hopeless}", tail=self._words(name))
            if any(now - since > _DOUBT_S for since in doubts.values()):
                raise self._hindered(error(f"{name} cannot start: {state.doubtful}", tail=self._words(name)))
            if now - began > limit_s:
                late = error(f"{name} was not ready within {limit_s:g} s: {state.told}", tail=self._words(name))
                raise self._hindered(late) if state.unbegun else late
            self._tell.live("rollout", f"{name}: {state.told}, {now - began:.0f} of {limit_s:.0f} s")
            self._sleep(_POLL_S)

    def _hindered(self, error: RolloutError) -> RolloutError:
        """Say of an error that the version is not to blame."""
        error.is_hindered = True
        error.next = "mend what the cluster says, then run the same command again"
        return error

    def _require_replicas(self, version: Version, *, error: type[RolloutError]) -> None:
        """Have every replica that is sent requests say the right build, each asked itself."""
        deadline = self._clock() + _REPLICAS_S
        while True:
            asked = {pod["metadata"]["name"]: self._build_of(pod) for pod in self._serving()}
            wrong = {name: build for name, build in asked.items() if build != version.build}
            if asked and not wrong:
                build = f"build {version.build[:12]}"
                self._tell.say("rollout", f"asked one by one, {len(asked)} of {len(asked)} replicas say {build}")
                return
            if self._clock() > deadline:
                said = ", ".join(f"{name} says {build or 'nothing'}" for name, build in wrong.items())
                raise error(f"{version} was expected of every replica: {said or 'there is none'}")
            self._sleep(_POLL_S)

    def _build_of(self, pod: Object) -> str | None:
        body = self._kubectl.proxied(pod["metadata"]["name"], self._service.port, self._service.version_path)
        return answers.told(body, self._service) if body else None

    def _settle(self, deployment: Object, version: Version) -> None:
        """Write down that this version is the one to serve, and that its record is a good one."""
        settled, record = _settled(deployment), manifests.record_of(deployment)
        if record:  # first: whoever is killed in between leaves a version that is proven once more
            self._releases.mark_settled(record)
        if settled is None or (settled.version, settled.record) != (version, record):
            facts = json.dumps({"version": documents.plain(version), "since": time.time(), "record": record})
            self._kubectl.annotate("deployment.apps", self._name, {manifests.SETTLED: facts})

    def _await_alone(self, version: Version, *, error: type[RolloutError]) -> None:
        """Wait until the pods of all other versions have ended; one on a node that died never says so."""
        began, limit_s = self._clock(), self._grace_s() + _SETTLING_S
        while others := [pod for pod in self._pods(self._deployment()) if _digest(pod) != version.digest]:
            names = ", ".join(pod["metadata"]["name"] for pod in others)
            if self._clock() - began > limit_s:
                if not all(map(progress.is_ending, others)):
                    raise error(f"{names} of another version did not end within {limit_s:g} s")
                self._tell.warn(f"{names} should have ended, and gets no more requests; did its node die?")
                return
            self._tell.live("rollout", f"{names} finish their requests and end")
            self._sleep(_POLL_S)

    def _go_back(self, previous: Version) -> None:
        self._service = self._contract(previous)
        deployment = self._deployment()
        record = self._record_of(previous)
        there = manifests.record_of(deployment) if deployment else None
        template = manifests.version_of(deployment["spec"]["template"]) if deployment else None
        if self._is_applied or template != previous or (record and there != record):
            objects = self._releases.objects(record)
            if not objects:
                raise RolloutError(f"the record of {previous} is gone, so nobody knows how it was applied")
            self._tell.say("rollout", f"applying {previous} again, as it was recorded")
            self._kubectl.apply(objects, force=True)
            self._watch(self._name, error=RolloutError, limit_s=self._rollout_s())
            left = self._left_of(there, self._found_applied, without=objects)
            self._kubectl.delete(list(dict.fromkeys([*left, *self._brought(without=objects)])))
        else:
            self._kubectl.delete(self._brought(without=self._releases.objects(there)))
        deployment = self._deployment()
        if deployment and _is_put_to_sleep(deployment):
            self._tell.warn(f"somebody scaled {self._name} to 0: {previous} is what serves once it is scaled up")
            return
        self._require_replicas(previous, error=RolloutError)
        self._public.require(previous, self._service, error=RolloutError)
        if deployment:
            self._settle(deployment, previous)

    def _remove_all(self) -> None:
        """Delete what the first release applied; what was there before it, such as an address that was kept, stays.

        A first release that was killed may have left what is there: then that goes as well.
        """
        deployment = self._deployment()
        names = self._brought()
        if deployment and manifests.named(deployment) not in names:
            names = manifests.names([*self._wanted, *self._releases.objects(manifests.record_of(deployment))])
        self._kubectl.delete(list(dict.fromkeys(names)), wait=True)
        if deployment:
            self._require_gone(deployment)

    def _was_there(self, thing: Object) -> bool:
        """Say whether an object of what is wanted was there before this turn."""
        return manifests.named(thing) in (self._began_with or ())

    def _brought(self, *, without: Iterable[Object] = ()) -> list[str]:
        """Return what this turn may have made: nothing before it was known what was there."""
        if self._began_with is None:
            return []
        return [name for name in manifests.names(self._wanted, without=without) if name not in self._began_with]

    def _require_gone(self, deployment: Object) -> None:
        """Have nothing be left of a Deployment that was deleted; a pod on a node that died may never end."""
        if self._deployment() is not None:
            raise RolloutError(f"the Deployment {self._name} is still there, though it was deleted")
        grace_s = float(deployment["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30))
        deadline = self._clock() + grace_s + _SETTLING_S
        while pods := self._pods(deployment):
            if self._clock() > deadline:
                names = ", ".join(pod["metadata"]["name"] for pod in pods)
                self._tell.warn(f"{names} should have ended; did its node die?")
                return
            self._sleep(_POLL_S)

    def _tidy(self, record: str | None, *earlier: str | None) -> None:
        """Delete what `earlier` releases applied and this one does not, and old records."""
        if applied := self._releases.objects(record):  # whose record is gone may need all that is there
            left = self._left_of(*earlier, without=applied)
            if left:
                self._tell.say("rollout", f"deleting what is not applied any more: {', '.join(left)}")
            self._kubectl.delete(left)
        self._releases.prune(record, *earlier)

    def _left_of(self, *records: str | None, without: list[Object]) -> list[str]:
        """Return what was applied by these records, but for the objects of `without`."""
        names = (manifests.names(self._releases.objects(each), without=without) for each in dict.fromkeys(records))
        return list(dict.fromkeys(chain.from_iterable(names)))

    def _contract(self, version: Version, *, record: str | None = None) -> ServiceSettings:
        """Return how a version is asked, which another version's image, or the checkout, may say otherwise."""
        kept = self._releases.image(version.digest, record=record)
        return launch.service(kept[1]) if kept else self._service

    def _record_of(self, previous: Version) -> str | None:
        """Return the record of what was live when this turn began."""
        is_known = self._version_before == previous and self._releases.objects(self._record_before)
        return self._record_before if is_known else self._releases.of(previous.digest)

    # -- looking -----------------------------------------------------------------------------

    def _look_at_target(self) -> str:
        live = self.current()
        if live is None:
            return "nothing serves"
        return f"{live.version} on {live.url or '(no address)'}, {'healthy' if live.healthy else 'not healthy'}"

    def _deployment(self, name: str | None = None) -> Object | None:
        return self._kubectl.get("deployments.apps", name or self._name)

    def _look(self, deployment: Object) -> Progress:
        found = self._kubectl.find(_WATCHED, labels=manifests.selector(deployment))
        sets = [each for each in found if each["kind"] == "ReplicaSet"]
        return progress.look(deployment, sets, [each for each in found if each["kind"] == "Pod"])

    def _pods(self, deployment: Object | None) -> list[Object]:
        return self._kubectl.find("pods", labels=manifests.selector(deployment)) if deployment else []

    def _serving(self) -> list[Object]:
        return [pod for pod in self._pods(self._deployment()) if progress.is_ready(pod)]

    def _grace_s(self) -> float:
        deployment = self._deployment()
        template = deployment["spec"]["template"]["spec"] if deployment else {}
        return float(template.get("terminationGracePeriodSeconds", 30))

    def _rollout_s(self) -> float:
        """Return how long a rolling update may take: every replica starts, stays, and another one ends."""
        deployment = self._deployment()
        spec = deployment["spec"] if deployment else {}
        each_s = self._service.start_timeout_s + float(spec.get("minReadySeconds", 0)) + self._grace_s()
        return each_s * max(2, int(spec.get("replicas", 1)))

    def _words(self, name: str) -> str:
        """Return what the cluster and the pods of a Deployment said last: events, then log lines."""
        with contextlib.suppress(ShipwayError):
            deployment = self._deployment(name)
            state = self._look(deployment) if deployment else None
            pods = state.pods if state else ()
            about = [*([deployment] if deployment else []), *pods]
            lines = progress.events(self._kubectl.find("events"), about)
            return "\n".join([*lines, *self._last_lines(pods)])
        return ""

    def _last_lines(self, pods: Iterable[progress.Object]) -> list[str]:
        lines: list[str] = []
        for pod in pods:
            name, spec = pod["metadata"]["name"], pod["spec"]
            container = self._settings.container or spec["containers"][0]["name"]
            for previous in (True, False):
                said = self._kubectl.logs(name, container=container, lines=_LOG_LINES, previous=previous)
                if said:
                    lines += [f"-- {name}{', before it was started again' if previous else ''}:", *said.splitlines()]
        return lines


def _settled(deployment: Object) -> _Settled | None:
    said = deployment["metadata"].get("annotations", {}).get(manifests.SETTLED)
    try:
        facts = documents.decoded(said or "")
        return _Settled(version=Version.of(facts["version"]), since=float(facts["since"]), record=facts.get("record"))
    except (ValueError, KeyError, TypeError):
        return None


def _is_put_to_sleep(deployment: Object) -> bool:
    return bool(deployment["spec"].get("replicas", 1) == 0)


def _digest(pod: Object) -> Digest | None:
    version = manifests.version_of(pod)
    return version.digest if version else None


def _forwarded(forward: Callable[..., tuple[str, ...]], what: str, remote: int, local: int) -> tuple[str, ...]:
    return forward(what, local=local, remote=remote)
