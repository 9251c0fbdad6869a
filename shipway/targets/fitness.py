"""What `invoke doctor` looks at in a cluster before a release: each look raises, or says what was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shipway.errors import ClusterRefused, NotReady
from shipway.targets import manifests
from shipway.targets.kubectl import Kubectl, Object

_APPLIED = ("get", "list", "create", "patch", "delete")
# Besides those on what the manifests hold; `k8s/setup` gives these, and those on what `k8s/base` holds.
_RIGHTS = (
    *((verb, "configmap") for verb in (*_APPLIED, "update")),
    *((verb, "lease.coordination.k8s.io") for verb in ("get", "create", "update")),
    *((verb, "job.batch") for verb in ("get", "list", "create", "delete")),
    *((verb, "pod") for verb in ("get", "list")),
    *((verb, "pod/portforward") for verb in ("get", "create")),
    *((verb, "deployment.apps/scale") for verb in ("get", "patch")),
    ("list", "replicaset.apps"),
    ("list", "event"),
    ("get", "pod/log"),
    ("get", "pod/proxy"),
)


def cluster(kubectl: Kubectl) -> str:
    """Look whether the context leads to the right server, and there is the namespace."""
    kubectl.require_right_cluster()
    where, (ours, theirs) = kubectl.cluster, kubectl.versions()
    apart = abs(_minor(ours) - _minor(theirs))
    skew = "" if apart <= 1 else f"; kubectl {ours} is {apart} versions apart, and one is supported"
    return f"{where.context} ({kubectl.server()}), namespace {where.namespace}, {theirs}{skew}"


def rights(kubectl: Kubectl, *, rendered: Callable[[], Sequence[Object]]) -> str:
    """Look whether we may do all that a release needs, with each kind that the manifests hold too."""
    applied = [right for each in rendered() for right in _rights(each)]
    wanted = list(dict.fromkeys([*applied, *_RIGHTS]))
    if lacking := [f"{verb} {what}" for verb, what in kubectl.lacking(wanted)]:
        raise NotReady(
            f"you may not {', '.join(lacking)}",
            advice="an administrator: kubectl apply -k k8s/setup; kinds that k8s/base has not, add to its Role",
        )
    return f"all {len(wanted)} that a release needs"


def nodes(kubectl: Kubectl, *, platform: str) -> str:
    """Look whether a node runs what the image is made for."""
    try:
        found = kubectl.find("nodes")
    except ClusterRefused:
        return "you may not look at them, and need not"
    fit = [node for node in found if _platform(node) == platform]
    if not fit:
        raise NotReady(f"no node runs {platform}, which is what [image] is made for")
    return f"{len(fit)} of {len(found)} run {platform}"


def overlay(kubectl: Kubectl, *, rendered: Callable[[], Sequence[Object]], folder: str, name: str, port: int) -> str:
    """Look whether the manifests can do what a release needs, and whether the API server accepts them."""
    objects = rendered()
    manifests.candidate(manifests.find(objects, name), port=port)
    kubectl.apply(objects, dry_run=True)
    return f"{folder}: {len(objects)} objects, accepted"


def _rights(thing: Object) -> list[tuple[str, str]]:
    """Return what is done with an object, and its kind as kubectl takes it, such as `deployment.apps`."""
    group, _, _ = thing["apiVersion"].rpartition("/")
    kind = f"{thing['kind'].lower()}.{group}".rstrip(".")
    return [(verb, kind) for verb in _APPLIED if verb != "delete" or thing["kind"] not in manifests.KEPT_KINDS]


def _platform(node: Object) -> str:
    info = node["status"]["nodeInfo"]
    return f"{info['operatingSystem']}/{info['architecture']}"


def _minor(version: str) -> int:
    return int(version.removeprefix("v").split(".")[1])
