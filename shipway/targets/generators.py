"""Load generators in the cluster: Locust's master and workers, there for one test and gone after it.

Owns their manifests and their life. All of it belongs to the master's Job, so that deleting
that one deletes the rest, and the cluster itself ends and deletes it when nobody does. What
the master measured comes home through its log, which can still be read when it has ended, and
whole or not at all. Knows nothing of limits. Whatever ends a test, nothing of it stays; what a
killed one left, the next removes first: whoever runs one holds the lock of this service's load tests.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import hashlib
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from msgspec import Struct

from shipway.console import Tell
from shipway.errors import GeneratorsNotStarted, ShipwayError
from shipway.proc import signals_ignored
from shipway.targets import manifests, progress
from shipway.targets.forward import Running, Start, start_beside
from shipway.targets.kubectl import Kubectl, Object

LOADTEST = f"{manifests.OURS}loadtest-of"
RUN = f"{manifests.OURS}loadtest"
ROLE = f"{manifests.OURS}role"
STAGE = "loadcheck"
REPORT = "/report"  # the master's folder that comes home
_FILES = frozenset({"figures.json", "report.html"})
_PORT = 5557
_CONTAINER = "locust"
_KINDS = "jobs.batch,services,pods"
_POLL_S = 1.0
_START_S = 120.0  # what nodes may take to find room, to pull the image and to start it
_DOUBT_S = 20.0  # a registry may be back in a moment
_GONE_S = 60.0
_KEPT_S = 600  # how long the cluster keeps what ended, should nobody delete it
_LOG_LINES = 15
_LIVE = "live "


class Wanted(Struct, frozen=True, kw_only=True):
    """One load test: `load` are Locust's options, the same for master and workers.

    `image` is as nodes know it, `python` starts Python in it. `lasts_s` is how long it takes
    once all are there; the cluster ends what takes much longer.
    """

    service: str
    name: str
    image: str
    python: Sequence[str]
    load: Sequence[str]
    variables: Mapping[str, str]
    workers: int
    lasts_s: float
    who: str


def fresh_name(service: str) -> str:
    """Return a name that no other test has."""
    return f"{service}-loadtest-{secrets.token_hex(3)}"


# -- what is applied -----------------------------------------------------------------------


def master(wanted: Wanted) -> Object:
    """Return the Job that all the rest belongs to."""
    arguments = (
        *("--master", "--master-bind-port", str(_PORT), "--expect-workers", str(wanted.workers)),
        *("--meter-connect", f"{_START_S:g}", "--meter-home", REPORT),
        *("--html", f"{REPORT}/report.html", "--meter-figures", f"{REPORT}/figures.json"),
    )
    job = _job(wanted, "master", arguments, pods=1)
    pod = job["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "report", "emptyDir": {"sizeLimit": "64Mi"}})
    pod["containers"][0]["volumeMounts"].append({"name": "report", "mountPath": REPORT})
    pod["containers"][0]["ports"] = [{"name": "locust", "containerPort": _PORT}]
    return job


def belongings(wanted: Wanted, owner: Object) -> list[Object]:
    """Return the workers, and the name under which they find the master; both go when `owner` goes."""
    arguments = (
        *("--worker", "--master-host", wanted.name, "--master-port", str(_PORT)),
        *("--meter-figures", "/tmp/figures.json"),  # noqa: S108 - in the container; Locust wants it said
    )
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": wanted.name, "labels": _labels(wanted, "master")},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {RUN: wanted.name, ROLE: "master"},
            "ports": [{"name": "locust", "port": _PORT, "targetPort": _PORT}],
        },
    }
    found = [service, _job(wanted, "worker", arguments, pods=wanted.workers)]
    for each in found:
        each["metadata"]["ownerReferences"] = [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
            }
        ]
    return found


def _job(wanted: Wanted, role: str, arguments: Sequence[str], *, pods: int) -> Object:
    labels = _labels(wanted, role)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{wanted.name}-{role}",
            "labels": labels,
            "annotations": {f"{manifests.OURS}started-by": wanted.who},
        },
        "spec": {
            "parallelism": pods,
            "completions": pods,
            "backoffLimit": 0,  # a generator that ended early has measured nothing: the test begins anew
            "activeDeadlineSeconds": round(wanted.lasts_s + 2 * _START_S),
            "ttlSecondsAfterFinished": _KEPT_S,
            "template": {"metadata": {"labels": labels}, "spec": _pod(wanted, arguments)},
        },
    }


def _labels(wanted: Wanted, role: str) -> dict[str, str]:
    """Return labels that no Service or NetworkPolicy of the service itself selects."""
    return {
        "app.kubernetes.io/name": "loadtest",
        "app.kubernetes.io/managed-by": "shipway",
        LOADTEST: wanted.service,
        RUN: wanted.name,
        ROLE: role,
    }


def _pod(wanted: Wanted, arguments: Sequence[str]) -> Object:
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 2,  # nothing here is worth waiting for
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {RUN: wanted.name}},
            }
        ],
        "containers": [
            {
                "name": _CONTAINER,
                "image": wanted.image,
                "command": [*wanted.python, "-m", "locust"],
                "args": ["--headless", "--only-summary", *wanted.load, *arguments],
                "env": [{"name": name, "value": value} for name, value in sorted(wanted.variables.items())],
                # no CPU limit: a throttled generator measures itself
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - in the container
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
    }


# -- what comes home -----------------------------------------------------------------------


def brought(lines: Iterable[str]) -> tuple[dict[str, bytes], list[str]]:
    """Return the files that a master's log holds, those that are whole, and the lines for its log file."""
    parts: dict[str, list[str]] = {}
    files: dict[str, bytes] = {}
    log: list[str] = []
    for line in lines:
        match line.split(" "):
            case ["home", name, text] if name in _FILES:
                parts.setdefault(name, []).append(text)
            case ["home-end", name, digest] if name in parts:
                with contextlib.suppress(binascii.Error, ValueError, EOFError, OSError, zlib.error):
                    data = gzip.decompress(base64.b64decode("".join(parts.pop(name)), validate=True))
                    if hashlib.sha256(data).hexdigest() == digest:
                        files[name] = data
            case _ if not line.startswith(_LIVE):
                log.append(line)
    return files, log


# -- what is wrong -------------------------------------------------------------------------


class State(Struct, frozen=True, kw_only=True):
    """How far the generators are.

    `hopeless` is why they will never all run, `doubtful` why they hardly will, `waits` what they
    wait for. `master` is the pod whose log can be followed, `ended` how it ended.
    """

    running: int
    hopeless: str | None
    doubtful: str | None
    waits: tuple[str, ...]
    master: str | None
    ended: str | None


def look(pods: Sequence[Object]) -> State:
    """Say how far they are."""
    verdicts = [verdict for pod in pods for verdict in progress.troubles(pod)]
    masters = [pod for pod in pods if pod["metadata"]["labels"].get(ROLE) == "master"]
    begun = [pod["metadata"]["name"] for pod in masters if _container(pod).get("state", {}).keys() - {"waiting"}]
    return State(
        running=sum("running" in _container(pod).get("state", {}) for pod in pods),
        hopeless=next((why for sure, why in verdicts if sure), None) or _lost(pods),
        doubtful=next((why for sure, why in verdicts if not sure), None),
        waits=tuple(sorted({why for pod in pods if _phase(pod) == "Pending" and (why := progress.wait(pod))})),
        master=begun[0] if begun else None,
        ended=next((how for pod in masters if (how := _how_it_ended(pod))), None),
    )


def _running(state: State, wanted: Wanted) -> str:
    return f"{state.running} of {1 + wanted.workers} generators run"


def _why_not(state: State, wanted: Wanted, waited_s: float, doubted_s: float) -> str | None:
    """Say why they are not waited for any longer; nothing while they are."""
    if state.hopeless or doubted_s > _DOUBT_S:
        return f"cannot start: {state.hopeless or state.doubtful}"
    if state.running <= wanted.workers and waited_s > _START_S:
        return f"did not start within {_START_S:g} s: {'; '.join([_running(state, wanted), *state.waits])}"
    return None


def _lost(pods: Sequence[Object]) -> str | None:
    """Say which worker ended; one that does so before its master has measured nothing."""
    for pod in pods:
        ended = _container(pod).get("state", {}).get("terminated")
        if ended and pod["metadata"]["labels"].get(ROLE) == "worker":
            return f"{pod['metadata']['name']} ended with {ended.get('exitCode')}"
    return None


def _phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _container(pod: Object) -> Mapping[str, Any]:
    found: Sequence[Mapping[str, Any]] = pod.get("status", {}).get("containerStatuses") or ({},)
    return found[0]


def _how_it_ended(pod: Object) -> str | None:
    ended = _container(pod).get("state", {}).get("terminated")
    if ended:
        reason = ended.get("reason", "")
        why = "" if reason in {"", "Completed", "Error"} else f" ({reason})"
        return f"the master ended with {ended.get('exitCode')}{why}"
    status = pod.get("status", {})
    if _phase(pod) == "Failed":  # its node died, or it was evicted
        return f"the master failed: {status.get('reason', '')} {status.get('message', '')}".rstrip()
    return None


# -- one test ------------------------------------------------------------------------------


class Generators:
    """The load generators of one service in one namespace."""

    def __init__(
        self,
        kubectl: Kubectl,
        *,
        service: str,
        tell: Tell,
        start: Start = start_beside,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start those of the Deployment `service`."""
        self._kubectl = kubectl
        self.service = service
        self._tell = tell
        self._start = start
        self._sleep = sleep
        self._clock = clock

    def address(self) -> str | None:
        """Return where pods of the cluster reach the service, if it is there."""
        deployment = self._kubectl.get("deployments.apps", self.service)
        if deployment is None:
            return None
        labels = manifests.pod_labels(deployment)
        for each in self._kubectl.find("services"):
            if manifests.selects(each, labels):
                port = each["spec"]["ports"][0]["port"]
                return f"http://{each['metadata']['name']}.{self._kubectl.cluster.namespace}.svc:{port}"
        return None

    def sweep(self) -> None:
        """Remove what a killed test left. The caller holds the lock, so nobody else's runs."""
        found = {each["metadata"]["labels"][RUN] for each in self._left(LOADTEST, self.service)}
        for name in sorted(found):
            self._tell.say(STAGE, f"removing {name}, which a killed load test left")
            self._remove(name)

    def run(self, wanted: Wanted, folder: Path) -> str:
        """Run a test, bring what it measured into `folder`, and say how it ended; nothing of it stays.

        Raises `GeneratorsNotStarted` with what the cluster says of it.
        """
        try:
            self._tell.say(STAGE, f"starting {wanted.workers} generators as {wanted.name}")
            self._kubectl.create(master(wanted))
            owner = self._kubectl.get("jobs.batch", f"{wanted.name}-master")
            if owner is None:
                return "somebody deleted it"
            for each in belongings(wanted, owner):
                self._kubectl.create(each)
            ended = self._watch(wanted)
            last = self._bring_home(wanted, folder)
            return f"{ended}; its last line: {last or '(none)'}"
        finally:
            with signals_ignored():
                self._removed(wanted.name)

    def _watch(self, wanted: Wanted) -> str:
        """Follow it to its end."""
        began, doubts, told = self._clock(), dict[str, float](), ""
        with _Follower(self._kubectl, self._start, self._tell) as follower:
            while True:
                state, now = look(self._pods(wanted.name)), self._clock()
                if state.ended:
                    return state.ended
                if now - began > wanted.lasts_s + 2 * _START_S:
                    return f"it did not end within {now - began:.0f} s"
                if state.master:
                    follower.follow(state.master)
                if not follower.hears:  # from then on the master knows who is there
                    doubts = {state.doubtful: doubts.get(state.doubtful, now)} if state.doubtful else {}
                    if why := _why_not(
                        state, wanted, now - began, max((now - at for at in doubts.values()), default=0)
                    ):
                        raise GeneratorsNotStarted(f"the load generators {why}", tail=self._words(wanted.name))
                    line = "; ".join([_running(state, wanted), *state.waits])
                    if line != told:
                        self._tell.say(STAGE, line)
                        told = line
                self._sleep(_POLL_S)

    def _words(self, name: str) -> str:
        """Return what the cluster said of them, and the last lines of each that said something."""
        with contextlib.suppress(ShipwayError):
            about = self._left(RUN, name)
            pods = [each for each in about if each["kind"] == "Pod"]
            lines = progress.events(self._kubectl.find("events"), about)
            for pod in pods:
                name = pod["metadata"]["name"]
                if said := self._kubectl.logs(name, container=_CONTAINER, lines=_LOG_LINES):
                    lines += [f"-- {name}:", *said.splitlines()]
            return "\n".join(lines)
        return ""

    def _bring_home(self, wanted: Wanted, folder: Path) -> str:
        """Write the report's files and the log, and return the master's last line.

        What cannot be read is missing there, and told.
        """
        files: dict[str, bytes] = {}
        log, last = list[str](), ""
        for pod in self._pods(wanted.name):
            name, role = pod["metadata"]["name"], pod["metadata"]["labels"][ROLE]
            try:
                said = self._kubectl.ask("logs", name, f"--container={_CONTAINER}").stdout.decode("utf-8", "replace")
            except ShipwayError as error:
                self._tell.warn(f"the log of {name} cannot be read: {error.message}")
                continue
            found, lines = brought(said.splitlines())
            if role == "master":
                files, last = found, next((line for line in reversed(lines) if line.strip()), "")
            log += [f"-- {name}", *lines]
        (folder / "locust.log").write_text("".join(f"{line}\n" for line in log), "utf-8")
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return last

    # -- removing ----------------------------------------------------------------------------

    def _removed(self, name: str) -> None:
        """Remove it; when that fails the test is over all the same, and the cluster does it later."""
        try:
            self._remove(name)
        except ShipwayError as error:
            self._tell.warn(
                f"{name} could not be removed ({error.message}); the next load test, or the cluster, removes it: "
                f"kubectl --namespace {self._kubectl.cluster.namespace} delete job {name}-master"
            )

    def _remove(self, name: str) -> None:
        self._kubectl.delete([f"job.batch/{name}-master", f"job.batch/{name}-worker", f"service/{name}"])
        deadline = self._clock() + _GONE_S
        while left := self._left(RUN, name):
            if self._clock() > deadline:
                names = ", ".join(f"{each['kind'].lower()}/{each['metadata']['name']}" for each in left)
                self._tell.warn(f"not gone after {_GONE_S:g} s, though deleted: {names}")
                return
            self._sleep(_POLL_S / 2)

    def _pods(self, name: str) -> list[Object]:
        return self._kubectl.find("pods", labels={RUN: name})

    def _left(self, label: str, value: str) -> list[Object]:
        return self._kubectl.find(_KINDS, labels={label: value})


class _Follower:
    """Passes on the master's lines a second, as they come; a log that is cut is followed again."""

    def __init__(self, kubectl: Kubectl, start: Start, tell: Tell) -> None:
        self._kubectl = kubectl
        self._start = start
        self._tell = tell
        self._child: Running | None = None
        self.hears = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            self._child.end()

    def follow(self, pod: str) -> None:
        if self._child is None or not self._child.runs:
            self._child = self._start(self._kubectl.cluster.follow(pod, container=_CONTAINER), self._hear)

    def _hear(self, line: str) -> None:
        if line.startswith(_LIVE):
            self.hears = True
            self._tell.live(STAGE, line.removeprefix(_LIVE))
