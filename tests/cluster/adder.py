"""The smallest project, released to the cluster: two replicas behind the load balancer, under a public name."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.cloud import LABEL
from tests.cluster.cluster import Cluster
from tests.system import project as projects
from tests.system.project import Project

NAME = "adder"
_LABELS = {"app": NAME}

_GUNICORN = """\
import os

bind = f"0.0.0.0:{os.environ['PORT']}"
worker_class, workers, threads = "gthread", 1, 8
graceful_timeout = 20
keepalive = 60  # longer than a machine that is busy with tests may leave a process without a turn
control_socket_disable = True
"""

# What a version does where it is served, and not in its suite; `public` is false in a candidate.
_FAULTY = '''

def create_app():
    """Be faulty where it is served, and whole in its suite."""
    if "SHIPWAY_BUILD" not in os.environ:
        return answer
    import signal, sys, threading, time
    public = "-candidate-" not in os.uname().nodename
    {fault}
    return answer


SCORED = []


def errors(environ, start_response):
    if environ["PATH_INFO"] != "/score":
        return answer(environ, start_response)
    SCORED.append(1)
    if len(SCORED) == 1:  # the golden exchange
        return answer(environ, start_response)
    return answer(environ, lambda status, headers: start_response("500 Internal Server Error", headers))


def never_ready(environ, start_response):
    if environ["PATH_INFO"] == "/readyz":
        return answer(environ, lambda status, headers: start_response("503 Service Unavailable", headers))
    return answer(environ, start_response)


def wrong(environ, start_response):
    if environ["PATH_INFO"] != "/score":
        return answer(environ, start_response)
    body = json.dumps(json.loads(answer(environ, lambda *_: None)[0]) | {"sum": -1}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def late(environ, start_response):
    import time
    time.sleep(0.3)
    return answer(environ, start_response)


def slow(environ, start_response):
    import time
    if environ["PATH_INFO"] == "/slow":
        time.sleep(8)
    return answer(environ, start_response)


def end():
    for pid in (os.getppid(), os.getpid()):
        os.kill(pid, 9)
'''


@dataclass(frozen=True, kw_only=True)
class Adder:
    """A checkout, and where it is served."""

    cluster: Cluster
    namespace: str
    project: Project

    @property
    def url(self) -> str:
        """The load balancer's address."""
        return f"http://{self.cluster.address(NAME, namespace=self.namespace)}"

    def broken(self, fault: str) -> None:
        """Commit a version that does this where it is served."""
        text = (self.project.root / "app/__init__.py").read_text("utf-8").partition("\n\ndef create_app")
        rest = text[2].partition("def answer")
        self.project.write("app/__init__.py", f"{text[0]}\n\ndef answer{rest[2]}{_FAULTY.replace('{fault}', fault)}")
        self.project.commit(f"Break: {fault}")

    def restricted(self) -> None:
        """Have its pods keep the rules of the restricted level."""
        deployment = json.loads((self.project.root / "k8s/deployment.yaml").read_text("utf-8"))
        pod = deployment["spec"]["template"]["spec"]
        profile = {"type": "RuntimeDefault"}
        pod["securityContext"] = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": profile}
        for container in pod["containers"]:
            container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        self.project.write("k8s/deployment.yaml", json.dumps(deployment, indent=1) + "\n")
        self.project.commit("Restrict")

    def touched(self, word: str) -> None:
        """Commit another good version."""
        text = (self.project.root / "app/__init__.py").read_text("utf-8").partition("# touched")[0]
        self.project.write("app/__init__.py", f"{text}# touched: {word}\n")
        self.project.commit(word)

    def version(self) -> dict[str, Any]:
        """Return what users are told now, on a connection of its own."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        connection.request("GET", "/version", headers={"Connection": "close"})
        return dict(json.loads(connection.getresponse().read()))

    def builds(self) -> set[str]:
        """Return the builds that users meet now."""
        return {str(self.version()["build"]) for _ in range(20)}

    def pods(self) -> list[dict[str, Any]]:
        """Return all pods, a candidate's too."""
        return list(self.cluster.get("pods", "-n", self.namespace)["items"])

    def staying(self) -> list[dict[str, Any]]:
        """Return the pods that are not ending: one that was replaced finishes its connections first."""
        return [pod for pod in self.pods() if "deletionTimestamp" not in pod["metadata"]]


def adder(cluster: Cluster, namespace: str, folder: Path) -> Adder:
    """Make the project; nothing of it is released yet."""
    project = projects.written_adder(folder)
    project.write("app/gunicorn.conf.py", _GUNICORN)
    for name, value in _manifests(namespace).items():
        project.write(f"k8s/{name}", json.dumps(value, indent=1) + "\n")
    projects.begin(project)
    project.environ.update(_environ(cluster, namespace))
    return Adder(cluster=cluster, namespace=namespace, project=project)


def _environ(cluster: Cluster, namespace: str) -> dict[str, str]:
    return {
        **cluster.environ,
        "SHIPWAY_IMAGE_BASE": cluster.base,
        "SHIPWAY_IMAGE_PYTHON": "3.13",
        "SHIPWAY_PUSH_REPOSITORY": f"{cluster.registry}/{namespace}/{NAME}",
        "SHIPWAY_ROLLOUT_TARGET": "kubernetes",
        "SHIPWAY_ROLLOUT_CONTEXT": cluster.context,
        "SHIPWAY_ROLLOUT_NAMESPACE": namespace,
        "SHIPWAY_ROLLOUT_OVERLAY": "k8s",
        "SHIPWAY_SERVICE_START_TIMEOUT_S": "40",
        "SHIPWAY_LOADCHECK_RATE": "60",
    }


def _manifests(namespace: str) -> Mapping[str, Any]:
    return {
        "kustomization.yaml": {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["deployment.yaml", "service.yaml"],
        },
        "deployment.yaml": _deployment(),
        "service.yaml": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "annotations": {LABEL: namespace}},
            "spec": {"type": "LoadBalancer", "selector": _LABELS, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    }


def _deployment() -> dict[str, Any]:
    probe = {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 3}
    container = {
        "name": "service",
        "image": NAME,
        "ports": [{"containerPort": 8080}],
        "readinessProbe": probe,
        "lifecycle": {"preStop": {"sleep": {"seconds": 6}}},
        "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
    }
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": _LABELS},
        "matchLabelKeys": ["pod-template-hash"],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 30,
        "topologySpreadConstraints": [spread],
        "containers": [container],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": 2,
            "minReadySeconds": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": _LABELS},
            "template": {"metadata": {"labels": _LABELS}, "spec": pod},
        },
    }
