"""A cluster as tests use it: our own, or anybody's disposable one that `--kube-context` names.

Only our own has plugs to pull; a test that wants that is skipped on another's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.inside import Order, ask
from tests.cluster.plan import NODES, Plan
from tests.docker.tools import GO_GENEROUS

_WAIT_S, _LONGEST_S = 60, 300


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that answers.

    `registry` is what stands before an image's name: this machine pushes there, and the nodes
    pull from there. `base` is an image there with Python 3.13, by digest. `environ` is what a
    process needs besides its own environment: the logins, whom to trust, and kubectl. Below
    `zone` are the names that Azure's annotation for DNS labels gives.
    """

    context: str
    registry: str
    base: str
    zone: str
    environ: Mapping[str, str]
    plan: Plan | None = None

    @property
    def kubeconfig(self) -> Path:
        """The administrator's; all that it names belongs to the tests."""
        return Path(self.environ["KUBECONFIG"])

    @property
    def mine(self) -> Plan:
        """The plan of a cluster of our own; on another's the test is skipped."""
        if not self.plan:
            pytest.skip("this test is for a cluster of our own: leave out --kube-context")
        return self.plan

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl and return its stdout."""
        done = self.tried(*words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def tried(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl, which may fail."""
        return subprocess.run(
            self.argv(*words),
            env={**os.environ, **self.environ},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_S,
        )

    def argv(self, *words: str) -> list[str]:
        """Return the command line of kubectl for this cluster."""
        program = shutil.which("kubectl", path=self.environ.get("PATH"))
        return [program or "kubectl", f"--context={self.context}", *words]

    def get(self, *words: str) -> Any:
        """Return what `kubectl get` finds."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, *values: Mapping[str, Any], namespace: str) -> None:
        """Create these objects, or change them."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(values)}
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(listed))

    def await_(self, what: str, condition: str, *, namespace: str = "default", timeout_s: float = _WAIT_S) -> None:
        """Wait for a condition of `kubectl wait`, such as `condition=Ready`."""
        self.kubectl("wait", what, f"--for={condition}", "-n", namespace, f"--timeout={timeout_s:.0f}s")

    def nodes(self) -> dict[str, bool]:
        """Return the nodes, and whether each is ready."""
        return {
            node["metadata"]["name"]: any(
                each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"]
            )
            for node in self.get("nodes")["items"]
        }

    def address(self, service: str, *, namespace: str) -> str:
        """Return a Service's address in front of the load balancer, once it has one."""
        self.await_(f"service/{service}", "jsonpath={.status.loadBalancer.ingress}", namespace=namespace)
        (given,) = self.get("service", service, "-n", namespace)["status"]["loadBalancer"]["ingress"]
        return str(given.get("ip") or given["hostname"])

    def public_name(self, label: str) -> str:
        """Return the name of a Service with Azure's annotation for a DNS label."""
        if not self.zone:
            pytest.skip("no zone for public names: --kube-zone REGION.cloudapp.azure.com")
        return f"{label}.{self.zone}"

    # -- faults ------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """Pull a node's plug, or kill a process of the control plane, such as `apiserver`; it stays away."""
        self._order({"do": "stop", "name": name})

    def start(self, name: str) -> None:
        """Switch on what was killed; a node has on its disk what it had."""
        self._order({"do": "start", "name": name})

    @contextlib.contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Do without a node or a process of the control plane; a node is ready again afterwards."""
        self.kill(name)
        try:
            yield
        finally:
            self.start(name)
            self.restored(name)

    def cut(self, node: str) -> None:
        """Cut a node off the network; what runs there goes on."""
        self._order({"do": "cut", "name": node})

    def join(self, node: str) -> None:
        """Undo `cut`."""
        self._order({"do": "join", "name": node})

    @contextlib.contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Let the cloud give no `addresses`, or tell no new `names`."""
        self._order({"do": "hold", "name": what})
        try:
            yield
        finally:
            self._order({"do": "free", "name": what})

    def restored(self, name: str) -> None:
        """Wait until a node is ready again, or the API server answers."""
        if name in NODES:
            self.await_(f"node/{name}", "condition=Ready")
        elif name == "apiserver":
            until = time.monotonic() + _WAIT_S
            while self.tried("get", "--raw", "/readyz").returncode and time.monotonic() < until:
                time.sleep(0.2)

    def starts(self) -> dict[str, int]:
        """Return how often each process of the control plane, and each node, was started."""
        return dict(self._order({"do": "status"})["starts"])

    def _order(self, order: Order) -> dict[str, Any]:
        return ask(self.mine.folder, order)


def own(plan: Plan) -> Cluster:
    """Return a cluster of our own that runs."""
    return Cluster(
        context=plan.context,
        registry=plan.registry,
        base=(plan.folder / "base").read_text("utf-8"),
        zone=plan.zone,
        environ={
            "KUBECONFIG": str(plan.kubeconfig),
            "KUBECACHEDIR": str(plan.folder / "kubectl"),
            **GO_GENEROUS,
            "DOCKER_CONFIG": str(plan.folder / "docker"),
            "SSL_CERT_FILE": str(plan.folder / "trusted.pem"),
            "PATH": os.pathsep.join([str(plan.kubernetes), os.environ["PATH"]]),
        },
        plan=plan,
    )


def foreign(context: str, *, registry: str, base: str, zone: str) -> Cluster:
    """Return somebody's cluster; the logins are this machine's own."""
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl: https://kubernetes.io/docs/tasks/tools/")
    config = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return Cluster(context=context, registry=registry, base=base, zone=zone, environ={"KUBECONFIG": config})
