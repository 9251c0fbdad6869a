"""An API server in memory, at the boundary where kubectl is run: enough of one for shipway.

Has versions of objects, conflicts, server-side apply and a controller that rolls Deployments out,
one step each time somebody looks. What becomes of an image is its `fate`. A command that
shipway does not use raises.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shipway.config import ServiceSettings
from shipway.proc import Completed
from shipway.targets.manifests import DIGEST

Object = dict[str, Any]

SERVER = "https://cluster.example:6443"
_KINDS = {
    "deployment": "deployment.apps",
    "deployments.apps": "deployment.apps",
    "replicasets.apps": "replicaset.apps",
    "service": "service",
    "services": "service",
    "configmap": "configmap",
    "configmaps": "configmap",
    "leases.coordination.k8s.io": "lease.coordination.k8s.io",
    "lease": "lease.coordination.k8s.io",
    "jobs.batch": "job.batch",
    "job": "job.batch",
    "job.batch": "job.batch",
    "pods": "pod",
    "events": "event",
    "nodes": "node",
    "deployment.apps": "deployment.apps",
    "serviceaccount": "serviceaccount",
    "horizontalpodautoscaler": "horizontalpodautoscaler.autoscaling",
    "horizontalpodautoscaler.autoscaling": "horizontalpodautoscaler.autoscaling",
}


_NEVER_READY = ("crashes", "never ready", "pulls slowly", "cannot pull", "unschedulable")


class Refused(Exception):
    """What kubectl says on stderr."""


class FakeKubectl:
    """A `Run` that knows `kubectl` alone; the context is `there`, the namespace `shop`."""

    def __init__(self, overlay: Sequence[Object] = ()) -> None:
        """Serve one cluster; `overlay` is what kustomize makes of any folder."""
        self.overlay = list(overlay)
        self.objects: dict[tuple[str, str], Object] = {}
        self.fates: dict[str, str] = {}
        self.gone = 0
        self.lost = 0
        self.logs = "Traceback: no weights"
        self.calls: list[tuple[str, ...]] = []
        self.others_own: set[str] = set()
        self.has_address = True
        self.deletes_nothing = False
        self.ends_slowly = False
        self.forwarding: Forwarding | None = None
        self.paths: dict[str, str] = {}
        self._version = 0

    # -- the boundary ------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> Completed:
        """Answer as kubectl would."""
        words = tuple(map(str, argv))
        assert words[0] == "kubectl", words
        assert (cwd, env, on_line) == (None, None, None), "shipway runs kubectl as it is"
        assert words[1:6:2] == ("--context", "--namespace", "--request-timeout=20s"), words
        assert timeout_s is not None, words
        asked = words[6:]
        self.calls.append(asked)
        try:
            said = self._answer(words[2], words[4], asked, json.loads(stdin) if stdin else None)
        except Refused as error:
            return Completed(argv=words, code=1, stdout=b"", tail=str(error))
        return Completed(argv=words, code=0, stdout=said.encode(), tail="")

    def start(self, argv: Sequence[str], on_line: Callable[[str], None]) -> Forwarding:
        """Stand for `kubectl port-forward`."""
        assert argv[5] == "port-forward", argv
        assert argv[7].removeprefix("pod/") in self.names("pod"), argv
        on_line("Forwarding from 127.0.0.1")
        self.forwarding = Forwarding()
        return self.forwarding

    def ask(self, url: str, service: ServiceSettings) -> str | None:
        """Stand for asking over HTTP: users ask the load balancer, we the forwarded port."""
        name = "web-candidate" if "127.0.0.1" in url else "web"
        pods = [pod for pod in self._pods(self.objects.get(("deployment.apps", name))) if _is_ready(pod)]
        if not pods:
            return None
        digest = pods[-1]["metadata"]["annotations"][DIGEST]
        if service.version_path != self.paths.get(digest, service.version_path):
            return None
        says = {"says another": "another", "bad in public": "another" if name == "web" else None}
        return says.get(self.fate(digest)) or str(pods[-1]["metadata"]["annotations"]["shipway.dev/build"])

    def fate(self, digest: str) -> str:
        """What becomes of pods of an image: `good` where nothing else was said."""
        return self.fates.get(digest, "good")

    def names(self, kind: str) -> list[str]:
        """Return the names of what is there of a kind."""
        return sorted(name for each, name in self.objects if each == kind)

    # -- what kubectl can be told --------------------------------------------------------------

    def _answer(self, context: str, namespace: str, words: tuple[str, ...], stdin: Object | None) -> str:
        if context != "there":
            raise Refused(f"error: context was not found for specified context: {context}")
        if words[:2] == ("config", "view"):
            return json.dumps({"clusters": [{"cluster": {"server": SERVER}}]})
        if self.gone:
            self.gone -= 1
            raise Refused("The connection to the server cluster.example:6443 was refused: connection refused")
        if words[:2] == ("get", "namespace"):
            return "namespace/shop" if words[2] == "shop" else ""
        assert namespace == "shop", namespace
        said = self._verbs()[words[0]](words[1:], stdin)
        if self.lost:
            self.lost -= 1
            raise Refused("error: http2: client connection lost")
        return said

    def _verbs(self) -> dict[str, Callable[[tuple[str, ...], Object | None], str]]:
        return {
            "get": self._get,
            "create": self._create,
            "replace": self._replace,
            "apply": self._apply,
            "annotate": self._annotate,
            "scale": self._scale,
            "delete": self._delete,
            "logs": lambda words, _: "" if "--previous" in words else self.logs,
            "api-resources": lambda *_: "events ev v1 true Event\n",
        }

    def _get(self, words: tuple[str, ...], stdin: Object | None) -> str:
        if words[0].startswith("--raw="):
            return self._proxied(words[0])
        if stdin:
            there = [self._key(each) for each in stdin["items"] if self._key(each) in self.objects]
            return "\n".join(f"{kind}/{name}" for kind, name in there)
        self._reconcile()
        if not words[1].startswith("--"):
            found = self.objects.get((_KINDS[words[0]], words[1]))
            return json.dumps(found) if found else ""
        labels = dict(
            pair.split("=") for word in words if word.startswith("--selector=") for pair in word[11:].split(",")
        )
        kinds = [_KINDS[kind] for kind in words[0].split(",")]
        found_all = [
            each
            for (kind, _), each in self.objects.items()
            if kind in kinds and labels.items() <= each["metadata"].get("labels", {}).items()
        ]
        return json.dumps({"items": found_all})

    def _proxied(self, word: str) -> str:
        name = word.split("/pods/")[1].split(":", maxsplit=1)[0]
        pod = self.objects[("pod", name)]
        if not word.endswith(self.paths.get(pod["metadata"]["annotations"][DIGEST], "")):
            raise Refused("Error from server (NotFound): the server could not find the requested resource")
        build = pod["metadata"]["annotations"]["shipway.dev/build"]
        return json.dumps(
            {"build": "another" if self.fate(pod["metadata"]["annotations"][DIGEST]) == "mixed" else build}
        )

    def _create(self, words: tuple[str, ...], stdin: Object | None) -> str:
        if words[0].startswith("--kustomize="):
            return "\n".join(json.dumps(each) for each in self.overlay)
        assert stdin is not None
        if stdin["kind"] == "List":
            return "\n".join(json.dumps({"status": {"allowed": self._may(each)}}) for each in stdin["items"])
        if self._key(stdin) in self.objects:
            raise Refused(f'Error from server (AlreadyExists): "{stdin["metadata"]["name"]}" already exists')
        self._put(stdin)
        return ""

    def _may(self, review: Object) -> bool:
        assert review["kind"] == "SelfSubjectAccessReview", review
        asked = review["spec"]["resourceAttributes"]
        return (asked["verb"], asked["resource"]) != ("list", "events") or "events" not in self.others_own

    def _replace(self, _words: tuple[str, ...], stdin: Object | None) -> str:
        assert stdin is not None
        found = self.objects.get(self._key(stdin))
        if found is None:
            raise Refused("Error from server (NotFound): not found")
        if (wanted := stdin["metadata"].get("resourceVersion")) and wanted != found["metadata"]["resourceVersion"]:
            raise Refused("Error from server (Conflict): the object has been modified")
        self._put(stdin)
        return ""

    def _apply(self, words: tuple[str, ...], stdin: Object | None) -> str:
        assert "--server-side" in words, words
        assert "--field-manager=shipway" in words, words
        assert stdin is not None
        for each in stdin["items"]:
            if each["kind"] in self.others_own and "--force-conflicts" not in words:
                raise Refused('error: Apply failed with 1 conflict: conflict with "kubectl-edit": .spec')
            if "--dry-run=server" not in words:
                self._merge(each)
        return ""

    def _merge(self, wanted: Object) -> None:
        found = self.objects.get(self._key(wanted))
        merged = copy.deepcopy(wanted)
        if found:
            kept = {key: text for key, text in found["metadata"].get("annotations", {}).items() if "settled" in key}
            merged["metadata"].setdefault("annotations", {}).update(kept)
        if wanted["kind"] == "Deployment":
            merged["spec"].setdefault("replicas", found["spec"]["replicas"] if found else 1)
            changed = not found or found["spec"] != merged["spec"]
            generation = found["metadata"]["generation"] if found else 0
            merged["metadata"] |= {"generation": generation + changed, "uid": f"uid-{wanted['metadata']['name']}"}
            merged["status"] = found["status"] if found else {}
            revision = found["metadata"]["annotations"].get("deployment.kubernetes.io/revision") if found else None
            if revision:
                merged["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = revision
        if wanted["kind"] == "Service" and wanted["spec"].get("type") == "LoadBalancer":
            merged["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}] if self.has_address else None}}
        self._put(merged)

    def _annotate(self, words: tuple[str, ...], _stdin: Object | None) -> str:
        found = self.objects.get((_KINDS[words[0]], words[1]))
        if found is None:
            raise Refused(f'Error from server (NotFound): {words[0]} "{words[1]}" not found')
        found["metadata"].setdefault("annotations", {}).update(
            dict(word.split("=", 1) for word in words[2:] if not word.startswith("--"))
        )
        return ""

    def _scale(self, words: tuple[str, ...], _stdin: Object | None) -> str:
        kind, _, name = words[0].partition("/")
        found = self.objects[(_KINDS[kind], name)]
        found["spec"]["replicas"] = int(words[1].removeprefix("--replicas="))
        found["metadata"]["generation"] += 1
        return ""

    def _delete(self, words: tuple[str, ...], _stdin: Object | None) -> str:
        assert "--interactive=false" in words, "a person's kuberc may say otherwise, and nobody answers"
        for word in words:
            if not word.startswith("--") and not self.deletes_nothing:
                kind, _, name = word.partition("/")
                found = self.objects.pop((_KINDS[kind], name), None)
                if found and found["kind"] == "Deployment":
                    for owned in [*self._pods(found), *self._sets(found)]:
                        del self.objects[self._key(owned)]
        return ""

    # -- the controller ------------------------------------------------------------------------

    def _reconcile(self) -> None:
        for each in [each for (kind, _), each in self.objects.items() if kind == "deployment.apps"]:
            self._roll(each)

    def _roll(self, deployment: Object) -> None:
        """Take one step: see the new generation, then make its pods, then end the others."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        if deployment["status"].get("observedGeneration") != metadata["generation"]:
            deployment["status"]["observedGeneration"] = metadata["generation"]
            self._newest_set(deployment)
            return
        newest, wanted = self._newest_set(deployment), spec["replicas"]
        fate = self.fate(spec["template"]["metadata"]["annotations"][DIGEST])
        ours = [pod for pod in self._pods(deployment) if _owner(pod) == newest["metadata"]["uid"]]
        others = [pod for pod in self._pods(deployment) if _owner(pod) != newest["metadata"]["uid"]]
        if fate in _NEVER_READY:
            if not ours:
                self._pod(deployment, newest, fate)
        else:
            for pod in ours[wanted:] + others:
                if self.ends_slowly:
                    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                else:
                    del self.objects[self._key(pod)]
            for _ in range(wanted - len(ours)):
                self._pod(deployment, newest, fate)
        pods = [pod for pod in self._pods(deployment) if "deletionTimestamp" not in pod["metadata"]]
        deployment["status"] |= {
            "replicas": len(pods),
            "updatedReplicas": sum(_owner(pod) == newest["metadata"]["uid"] for pod in pods),
            "availableReplicas": sum(map(_is_ready, pods)),
        }

    def _newest_set(self, deployment: Object) -> Object:
        template = json.dumps(deployment["spec"]["template"], sort_keys=True)
        name = f"{deployment['metadata']['name']}-{hashlib.sha256(template.encode()).hexdigest()[:10]}"
        revision = {"deployment.kubernetes.io/revision": str(len(self._sets(deployment)) + 1)}
        found = self.objects.get(("replicaset.apps", name))
        if not found:
            found = {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": self._owned(deployment, name) | {"annotations": revision, "uid": f"uid-{name}"},
            }
            self._put(found)
        newest = found["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
        deployment["metadata"].setdefault("annotations", {})["deployment.kubernetes.io/revision"] = newest
        return found

    def _pod(self, deployment: Object, owner: Object, fate: str) -> None:
        template = deployment["spec"]["template"]
        self._version += 1
        state: Object = {"state": {"running": {}}, "restartCount": int(fate == "restarts")}
        if fate == "crashes":
            state = {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, "restartCount": 2}
        if fate == "pulls slowly":
            state = {"state": {"waiting": {"reason": "ContainerCreating"}}}
        if fate == "cannot pull":
            state = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
        scheduled = {"type": "PodScheduled", "status": str(fate != "unschedulable"), "message": "0/2 nodes are free"}
        ready = fate not in _NEVER_READY
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self._owned(owner, f"{owner['metadata']['name']}-{self._version}")
            | {
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"],
            },
            "spec": template["spec"],
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": str(ready)}, scheduled],
                "containerStatuses": [state] if fate != "unschedulable" else [],
            },
        }
        self._put(pod)
        if not ready:
            self._event(pod, fate)

    def _event(self, pod: Object, fate: str) -> None:
        name = pod["metadata"]["name"]
        about = {"kind": "Pod", "name": name}
        metadata = {"name": f"event-{name}"}
        event = {"apiVersion": "v1", "kind": "Event", "reason": "Failed", "message": fate, "metadata": metadata}
        self._put(event | {"involvedObject": about})

    def _owned(self, owner: Object, name: str) -> Object:
        labels = owner["spec"]["template"]["metadata"]["labels"] if "spec" in owner else {}
        uid = owner["metadata"]["uid"]
        return {"name": name, "labels": labels, "ownerReferences": [{"uid": uid, "controller": True}]}

    def _sets(self, deployment: Object) -> list[Object]:
        uid = deployment["metadata"]["uid"]
        return [each for each in self.objects.values() if each["kind"] == "ReplicaSet" and _owner(each) == uid]

    def _pods(self, deployment: Object | None) -> list[Object]:
        owners = {each["metadata"]["uid"] for each in self._sets(deployment)} if deployment else set()
        return [each for each in self.objects.values() if each["kind"] == "Pod" and _owner(each) in owners]

    def _key(self, thing: Object) -> tuple[str, str]:
        group = f".{thing['apiVersion'].split('/')[0]}" if "/" in thing["apiVersion"] else ""
        return f"{thing['kind'].lower()}{group}", thing["metadata"]["name"]

    def _put(self, thing: Object) -> None:
        self._version += 1
        stored = copy.deepcopy(thing)
        stored["metadata"] |= {"resourceVersion": str(self._version), "namespace": "shop"}
        stored["metadata"].setdefault("creationTimestamp", f"2026-01-01T00:{self._version:06}")
        self.objects[self._key(thing)] = stored


class Forwarding:
    """A port that is forwarded until it is ended."""

    runs = True

    def end(self) -> None:
        """End."""
        self.runs = False


def _owner(thing: Object) -> str | None:
    owners = thing["metadata"].get("ownerReferences")
    return str(owners[0]["uid"]) if owners else None


def _is_ready(pod: Object) -> bool:
    return bool(pod["status"]["conditions"][0]["status"] == "True")
