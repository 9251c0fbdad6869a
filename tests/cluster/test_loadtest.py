"""Load from generators in the cluster: seen while it lasts, judged at home, and nothing of it stays.

The service is a stand-in that needs no release, in a namespace that enforces the restricted
pod security level, with the rights of `k8s/setup` and no others.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import releaser
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import fresh
from tests.system import project as projects
from tests.system.project import Project, kill_at

SERVER = """
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Adder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        self.send({"sum": sum(json.loads(self.rfile.read(int(self.headers["Content-Length"])))), "card": "# Adds 1"})

    def do_GET(self):
        self.send({"build": "stand-in"})

    def send(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("", 8080), Adder).serve_forever()
"""
WORKERS = 4


@dataclass(frozen=True, kw_only=True)
class Place:
    """A project whose environment is a namespace with a stand-in for its service."""

    cluster: Cluster
    namespace: str
    project: Project

    def words(self, *more: str) -> tuple[str, ...]:
        url = f"http://adder.{self.namespace}.svc"
        return ("loadtest", "--in-cluster", "--url", url, "--users", "8", "--workers", str(WORKERS), *more)

    def there(self) -> list[str]:
        """Return what the namespace has of all that a load test makes."""
        found = self.cluster.get("jobs,pods,services", "-n", self.namespace)["items"]
        return sorted(f"{each['kind']}/{each['metadata']['name']}" for each in found)


@pytest.fixture(scope="module")
def place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    for namespace in fresh(cluster, __file__):
        releaser.set_up(cluster, namespace)
        cluster.apply(*_stand_in(cluster.base), namespace=namespace)
        cluster.await_("deployment/adder", "condition=Available", namespace=namespace)
        for project in projects.adder(tmp_path_factory.mktemp("loadtest")):
            settings = {
                "IMAGE_BASE": cluster.base,
                "IMAGE_PYTHON": "3.13",
                "PUSH_REPOSITORY": f"{cluster.registry}/{namespace}/adder",
                "ROLLOUT_CONTEXT": cluster.context,
                "ROLLOUT_NAMESPACE": namespace,
            }
            project.environ.update(cluster.environ)
            project.environ.update({f"SHIPWAY_{key}": value for key, value in settings.items()})
            project.write(
                "release.toml", f"{(project.root / 'release.toml').read_text()}[env.there.rollout]\n{_TARGET}"
            )
            project.environ.update(releaser.log_in(cluster, namespace, tmp_path_factory.mktemp("releaser")))
            project.commit("Release to a cluster")
            yield Place(cluster=cluster, namespace=namespace, project=project)


_TARGET = 'target = "kubernetes"\n'


def _stand_in(image: str) -> tuple[dict[str, Any], ...]:
    labels = {"app": "adder"}
    container = {
        "name": "service",
        "image": image,
        "command": ["python", "-c", SERVER],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"automountServiceAccountToken": False, "securityContext": security, "containers": [container]}
    template = {"metadata": {"labels": labels}, "spec": {**pod, "terminationGracePeriodSeconds": 1}}
    return (
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "adder"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "adder"},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )


def test_report_of_four_workers_comes_home_and_nothing_stays_even_of_a_killed_test(place: Place) -> None:
    before = place.there()
    with place.project.start(*place.words("--seconds", "60", "--env", "there")) as killed:
        kill_at(killed, re.compile("generators run"))
    assert len(place.there()) > len(before)

    out, err = place.project.invoke(*place.words("--seconds", "3", "--env", "there", "--json"))

    report = json.loads(out)
    html = Path(report["html"])
    parts = json.loads((html.parent / "figures.json").read_bytes())["parts"]
    assert (report["verdict"], report["failure_ratio"], len(parts)) == ("pass", 0, WORKERS)
    assert report["requests"] == sum(count for part in parts for _, count in part["latencies_ms"])
    assert min(part["answered"] for part in parts) > 0
    assert "/score (one)" in html.read_text("utf-8")
    assert re.search(r"loadcheck \d+ req/s  p95 .* left", err), err
    assert f"{WORKERS + 1} of {WORKERS + 1} generators run" in err
    assert "which a killed load test left" in err
    assert (place.there(), len(before)) == (before, 2)


def test_nothing_stays_when_sigterm_comes_in_the_middle(place: Place) -> None:
    before = place.there()
    with place.project.start(*place.words("--seconds", "60", "--env", "there")) as process:
        kill_at(process, re.compile(r"req/s .* left"), signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert (process.returncode, place.there()) == (130, before), err
    lease = place.cluster.get("lease", "adder-loadtest", "-n", place.namespace)
    assert "holderIdentity" not in lease["spec"]


def test_error_has_what_the_cluster_says_when_the_image_cannot_be_pulled(place: Place) -> None:
    before, nowhere = place.there(), f"{place.cluster.registry}/Nowhere"

    out, err = place.project.invoke(
        *place.words("--seconds", "2", "--env", "there", "--json"), exits=62, SHIPWAY_ROLLOUT_PULL_FROM=nowhere
    )

    assert json.loads(out)["error"]["kind"] == "GeneratorsNotStarted"
    assert "InvalidImageName" in err
    assert re.search(r"InspectFailed adder-loadtest-\w+-(master|worker)-\w+: ", err), err
    assert place.there() == before
