"""What is applied: kustomize's output with a version in it, the candidate beside it, and its record.

Pure: documents in, documents out. Knows which fields are ours (the image, a few annotations, one
label) and which never are (the number of replicas, which a person or an autoscaler sets).
Raises `ConfigError` for manifests that cannot do what a release needs.
"""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shipway import documents
from shipway.artifacts import Digest, ModelRef, Version
from shipway.errors import ConfigError

Object = dict[str, Any]

OURS = "shipway.dev/"
DIGEST, BUILD, COMMIT, MODEL = (f"{OURS}{name}" for name in ("digest", "build", "commit", "model"))
RECORD = f"{OURS}record"  # which record a Deployment was applied by
REPLICAS = f"{OURS}first-replicas"
SETTLED = f"{OURS}settled"
RELEASE = f"{OURS}release-of"
CANDIDATE = f"{OURS}candidate-of"
_LABEL_LENGTH = 63
KEPT_KINDS = frozenset({"Namespace", "PersistentVolumeClaim", "Secret"})  # never deleted by us
_NEEDED_KINDS = frozenset({"ServiceAccount", "ConfigMap", "Secret", "PersistentVolumeClaim", "NetworkPolicy"})


def released(
    rendered: Sequence[Object], *, name: str, container: str | None, image: str, version: Version
) -> list[Object]:
    """Return the objects with the version in the Deployment `name`: image by digest, annotations, no replicas."""
    objects = copy.deepcopy(list(rendered))
    for each in objects:
        each.pop("status", None)
        each["metadata"].pop("creationTimestamp", None)
    deployment = find(objects, name)
    if (count := deployment["spec"].pop("replicas", None)) is not None:
        deployment["metadata"].setdefault("annotations", {})[REPLICAS] = str(count)
    template = deployment["spec"]["template"]
    _container(template, name, container)["image"] = image
    metadata = template.setdefault("metadata", {})
    metadata.pop("creationTimestamp", None)
    metadata.setdefault("annotations", {}).update(_annotations(version))
    metadata.setdefault("labels", {})[BUILD] = version.build
    record = record_name(name, version.digest, rendered)
    deployment["metadata"].setdefault("annotations", {})[RECORD] = record
    return objects


def find(objects: Iterable[Object], name: str) -> Object:
    """Return the Deployment of this name."""
    names = []
    for each in objects:
        if each["kind"] == "Deployment":
            names.append(each["metadata"]["name"])
            if names[-1] == name:
                return each
    raise ConfigError(
        f"[rollout] overlay has no Deployment {name!r}, but {', '.join(names) or 'none at all'}",
        advice="name the Deployment that runs the service in [rollout] deployment",
    )


def needed(objects: Iterable[Object]) -> list[Object]:
    """Return what pods refer to, or run under: a candidate wants it too."""
    return [each for each in objects if each["kind"] in _NEEDED_KINDS]


def replicas(objects: Iterable[Object], name: str) -> int | None:
    """Return how many replicas a new Deployment begins with: what its manifest said, or its autoscaler's least."""
    objects = list(objects)
    least = [
        int(each["spec"].get("minReplicas", 1))
        for each in objects
        if each["kind"] == "HorizontalPodAutoscaler" and each["spec"]["scaleTargetRef"]["name"] == name
    ]
    found = find(objects, name)["metadata"].get("annotations", {}).get(REPLICAS)
    return max([*least, *([int(found)] if found else [])], default=None)


def selector(deployment: Object) -> dict[str, str]:
    """Return the labels that a Deployment's pods have, and no others."""
    labels = deployment["spec"].get("selector", {}).get("matchLabels")
    if not labels:
        raise ConfigError(f"the Deployment {deployment['metadata']['name']!r} has no spec.selector.matchLabels")
    return dict(labels)


def pod_labels(deployment: Object) -> dict[str, str]:
    """Return the labels of a Deployment's pods."""
    return dict(deployment["spec"]["template"]["metadata"].get("labels", {}))


def _container(template: Object, name: str, container: str | None) -> Object:
    containers: list[Object] = template["spec"]["containers"]
    if container is None:
        return containers[0]
    for each in containers:
        if each["name"] == container:
            return each
    raise ConfigError(f"the Deployment {name!r} has no container {container!r}")


# -- the version in it -------------------------------------------------------------------------


def _annotations(version: Version) -> dict[str, str]:
    return {
        DIGEST: version.digest,
        BUILD: version.build,
        COMMIT: version.commit,
        MODEL: json.dumps(documents.plain(version.model)),
    }


def version_of(template: Mapping[str, Any]) -> Version | None:
    """Return the version that a pod, or a template of pods, says it is."""
    said = template.get("metadata", {}).get("annotations") or {}
    try:
        model = documents.decoded(said[MODEL])
        return Version(
            digest=Digest(said[DIGEST]),
            build=said[BUILD],
            commit=said[COMMIT],
            model=ModelRef(name=model["name"], version=model["version"], digest=Digest(model["digest"])),
        )
    except (KeyError, ValueError, TypeError):
        return None


# -- the candidate -----------------------------------------------------------------------------


def candidate(deployment: Object, *, port: int) -> list[Object]:
    """Return the same pods once, under labels that no Service for users selects, and a Service of their own.

    Only the labels that the Deployment's selector has are changed: what other labels bring
    (a network policy, an identity) the candidate has too.
    """
    ours = copy.deepcopy(deployment)
    name = candidate_name(deployment["metadata"]["name"])
    labels = {key: f"{value[: _LABEL_LENGTH - 10]}-candidate" for key, value in selector(deployment).items()}
    mark = {CANDIDATE: deployment["metadata"]["name"]}
    metadata = ours["metadata"]
    namespace = {"namespace": metadata["namespace"]} if "namespace" in metadata else {}
    ours["metadata"] = {"name": name, **namespace, "labels": mark}
    ours["spec"] |= {"replicas": 1, "selector": {"matchLabels": labels}, "strategy": {"type": "Recreate"}}
    ours["spec"]["template"]["metadata"]["labels"] |= labels | mark
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, **namespace, "labels": mark},
        "spec": {"type": "ClusterIP", "selector": labels, "ports": [{"port": port, "targetPort": port}]},
    }
    return [ours, service]


def candidate_name(name: str) -> str:
    """Return what the candidate of a Deployment, and its Service, are called."""
    return f"{name}-candidate"


def require_unreachable(labels: Mapping[str, str], services: Iterable[Object], *, own: str) -> None:
    """Raise `ConfigError` when a Service other than the candidate's `own` selects pods of these labels."""
    for each in services:
        if each["metadata"]["name"] != own and selects(each, labels):
            raise ConfigError(
                f"the Service {each['metadata']['name']!r} would send users to the candidate: "
                f"it selects {each['spec']['selector']}",
                advice="let it select by a label that the Deployment's spec.selector.matchLabels has",
            )


def selects(service: Object, labels: Mapping[str, str]) -> bool:
    """Say whether a Service sends to pods of these labels."""
    wanted = service["spec"].get("selector") or {}
    return bool(wanted) and wanted.items() <= labels.items()


# -- the record of a release -------------------------------------------------------------------


def record(objects: Sequence[Object], *, name: str, version: Version, image: Sequence[bytes]) -> Object:
    """Return what is kept of a release, so that going back to it needs neither checkout nor registry.

    `image` are the image's manifest and configuration. A Secret is applied, and never recorded.
    """
    kept = [each for each in objects if each["kind"] != "Secret"]
    manifest, config = image
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": record_of(find(objects, name)),
            "labels": {RELEASE: name},
            "annotations": _annotations(version),
        },
        "binaryData": {
            "manifests": _packed(json.dumps(kept).encode()),
            "image-manifest": _packed(manifest),
            "image-config": _packed(config),
        },
    }


def record_name(name: str, digest: Digest, rendered: Sequence[Object]) -> str:
    """Return what the record of a release is called: another image, or other manifests, is another release."""
    return f"{name}-release-{digest.short}-{fingerprint(rendered)}"


def fingerprint(rendered: Sequence[Object]) -> str:
    """Return what tells these manifests, whatever version they run, from all others."""
    return hashlib.sha256(json.dumps(rendered, sort_keys=True).encode()).hexdigest()[:8]


def record_of(deployment: Object) -> str | None:
    """Return the record that a Deployment was applied by."""
    return (deployment["metadata"].get("annotations") or {}).get(RECORD)


def settled_at(record: Object) -> tuple[float, str]:
    """Return when a record's release was settled last (0 for never), and when it was made: for sorting."""
    said = record["metadata"].get("annotations", {}).get(SETTLED, "0")
    return float(said), record["metadata"].get("creationTimestamp", "")


def digest_of(record: Object) -> str | None:
    """Return the image of a record."""
    return (record["metadata"].get("annotations") or {}).get(DIGEST)


def recorded(found: Object) -> list[Object]:
    """Return the objects of a record; raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    return documents.parse(list[Object], _unpacked(found, "manifests"))


def recorded_image(found: Object) -> tuple[bytes, bytes]:
    """Return the manifest and the configuration of a record's image; raises as `recorded` does."""
    return _unpacked(found, "image-manifest"), _unpacked(found, "image-config")


def names(objects: Iterable[Object], *, without: Iterable[Object] = (), but: frozenset[str] = frozenset()) -> list[str]:
    """Return `kind/name` of the objects that may be deleted: not those of `without`, nor of the kinds `but`."""
    kept = {named(each) for each in without}
    return [named(each) for each in objects if each["kind"] not in KEPT_KINDS | but and named(each) not in kept]


def named(thing: Object) -> str:
    """Return an object as `kind.group/name`, as kubectl names it."""
    group = thing["apiVersion"].partition("/")[0] if "/" in thing["apiVersion"] else ""
    return f"{thing['kind'].lower()}{f'.{group}' if group else ''}/{thing['metadata']['name']}"


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _unpacked(found: Object, key: str) -> bytes:
    try:
        return gzip.decompress(base64.b64decode(found["binaryData"][key]))
    except (OSError, EOFError) as error:
        raise ValueError(str(error)) from error
