"""What the state of a Deployment says: is it done, is it hopeless, and what is it waiting for?

Pure. A status is believed only once the controller has seen what was last asked of it. What is
slow, or finds no room, is waited for by whoever watches; what cannot get better by waiting
is told at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

Object = Mapping[str, Any]

_REVISION = "deployment.kubernetes.io/revision"
_HOPELESS = frozenset(
    {"InvalidImageName", "CrashLoopBackOff", "CreateContainerConfigError", "ErrImageNeverPull", "ImageInspectError"}
)
_DOUBTFUL = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "CreateContainerError", "RunContainerError"}
)
_NO_NODE = "no node takes it"
_NEVER = ("exec format error", "no such file or directory", "executable file not found", "permission denied")


class Progress(Struct, frozen=True, kw_only=True):
    """How far a rollout has come.

    `hopeless` is why it never will; `doubtful` why it hardly will, unless that goes away soon;
    `unbegun` says that a pod found no node, or has not come to run there. `told` is one line for
    people. `pods` are those of the newest revision.
    """

    done: bool
    hopeless: str | None
    doubtful: str | None
    told: str
    unbegun: bool = False
    pods: tuple[Object, ...] = ()


def look(deployment: Object, replica_sets: Iterable[Object], pods: Iterable[Object]) -> Progress:
    """Say how far the newest revision has come."""
    if deployment.get("status", {}).get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return Progress(done=False, hopeless=None, doubtful=None, told="not seen by its controller yet")
    newest = _newest(deployment, replica_sets)
    ours = tuple(pod for pod in pods if newest and _owner(pod) == newest["metadata"]["uid"])
    verdicts = [verdict for pod in ours for verdict in troubles(pod)]
    return Progress(
        done=_is_done(deployment),
        hopeless=next((why for sure, why in verdicts if sure), None),
        doubtful=next((why for sure, why in verdicts if not sure), None) or _refused(deployment),
        told=_told(deployment, ours),
        unbegun=not all(map(_has_begun, ours)),
        pods=ours,
    )


def is_ready(pod: Object) -> bool:
    """Say whether a pod is sent requests."""
    conditions = pod.get("status", {}).get("conditions", ())
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and not is_ending(pod)


def is_ending(pod: Object) -> bool:
    """Say whether a pod was told to end."""
    return "deletionTimestamp" in pod["metadata"]


def _has_begun(pod: Object) -> bool:
    """Say whether a container of a pod ever ran: before that its node finds room, pulls, mounts."""
    status = pod.get("status", {})
    states = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    return any(each.get("lastState") or each.get("state", {}).keys() - {"waiting"} for each in states)


def restarts(pod: Object) -> int:
    """Return how often a pod's containers had to be started again."""
    return sum(int(each.get("restartCount", 0)) for each in pod.get("status", {}).get("containerStatuses", ()))


def troubles(pod: Object) -> Iterator[tuple[bool, str]]:
    """Yield (whether it is sure, why) for each thing that is wrong with a pod."""
    if is_ending(pod) or is_ready(pod):  # what one that is ready went through once is past
        return
    status = pod.get("status", {})
    for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        state, last = each.get("state", {}), each.get("lastState", {})
        waiting = state.get("waiting") or {}
        ended = state.get("terminated") or last.get("terminated") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message") or ended.get("message") or ""
        what = f"{pod['metadata']['name']}: {reason or ended.get('reason', '')}{f': {said.strip()}' if said else ''}"
        if ended.get("reason") == "OOMKilled":
            yield True, f"{pod['metadata']['name']}: killed for memory (OOMKilled), exit code {ended.get('exitCode')}"
        elif reason in _HOPELESS or any(sign in said for sign in _NEVER):
            yield True, what
        elif reason in _DOUBTFUL:
            yield False, what


def wait(pod: Object) -> str | None:
    """Say what a pod waits for, in words that stay the same while it does."""
    if is_ending(pod) or is_ready(pod):
        return None
    status = pod.get("status", {})
    for each in status.get("conditions", ()):
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return f"{_NO_NODE}: {each.get('message', each.get('reason'))}"
    for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if waiting := each.get("state", {}).get("waiting"):
            return str(waiting.get("reason", "waiting"))
    return "not ready yet" if status.get("phase") == "Running" else str(status.get("phase", "Pending"))


def events(found: Iterable[Object], about: Iterable[Object], *, most: int = 12) -> list[str]:
    """Return what happened to these objects, oldest first, a line each; the same more than once is one line."""
    names = {(each["kind"], each["metadata"]["name"]) for each in about}
    ours = [each for each in found if (each["involvedObject"].get("kind"), each["involvedObject"].get("name")) in names]
    ours.sort(key=lambda each: each.get("lastTimestamp") or each.get("eventTime") or "")
    lines = map(_happened, ours)
    return list(dict.fromkeys(lines))[-most:]


def _happened(event: Object) -> str:
    return f"{event.get('reason')} {event['involvedObject']['name']}: {event.get('message', '').strip()}"


def _newest(deployment: Object, replica_sets: Iterable[Object]) -> Object | None:
    revision = deployment["metadata"].get("annotations", {}).get(_REVISION)
    for each in replica_sets:
        if (
            _owner(each) == deployment["metadata"]["uid"]
            and each["metadata"].get("annotations", {}).get(_REVISION) == revision
        ):
            return each
    return None


def _owner(thing: Object) -> str | None:
    owners: Sequence[Object] = thing["metadata"].get("ownerReferences", ())
    return next((each["uid"] for each in owners if each.get("controller")), None)


def _is_done(deployment: Object) -> bool:
    wanted, status = deployment["spec"].get("replicas", 1), deployment["status"]
    counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    return counts == [wanted] * 3 and not status.get("unavailableReplicas")


def _refused(deployment: Object) -> str | None:
    for each in deployment.get("status", {}).get("conditions", ()):
        if each["type"] == "ReplicaFailure" and each["status"] == "True":
            return f"no pod can be made: {each.get('message')}"
    return None


def _told(deployment: Object, pods: Sequence[Object]) -> str:
    wanted, status = deployment["spec"].get("replicas", 1), deployment["status"]
    counts = f"{status.get('updatedReplicas', 0)} of {wanted} new, {status.get('availableReplicas', 0)} available"
    waits = sorted({why for pod in pods if (why := wait(pod))})
    old = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    return "; ".join([counts, *([f"{old} old"] if old > 0 else []), *waits])
