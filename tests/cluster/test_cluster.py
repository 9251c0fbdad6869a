"""The cluster itself: what tests of releases take for granted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import keeper
from tests.cluster.cloud import LABEL
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import fresh
from tests.cluster.plan import NODES, Plan

LABELS = {"app": "web"}
_WAIT_S = 30.0


@pytest.fixture(autouse=True)
def ours(cluster: Cluster) -> Plan:
    """Leave somebody's cluster alone: these are tests of our own."""
    return cluster.mine


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Iterator[str]:
    """Give a namespace in which each node has a pod that says its name, behind a load balancer."""
    for name in fresh(cluster, __file__):
        cluster.apply(deployment(cluster), service(), namespace=name)
        cluster.kubectl("rollout", "status", "deployment/web", "-n", name, "--timeout=60s")
        yield name


def deployment(cluster: Cluster) -> dict[str, Any]:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": LABELS},
    }
    container = {
        "name": "web",
        "image": cluster.base,
        "command": ["python3", "-um", "http.server", "8000", "--directory", "/etc"],
        "readinessProbe": {"httpGet": {"path": "/hostname", "port": 8000}, "periodSeconds": 1},
    }
    pod = {
        "containers": [container],
        "topologySpreadConstraints": [spread],
        "terminationGracePeriodSeconds": 1,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": pod},
        },
    }


def service(name: str = "web", label: str = "shop") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": {LABEL: label}},
        "spec": {"type": "LoadBalancer", "selector": LABELS, "ports": [{"port": 80, "targetPort": 8000}]},
    }


def pods(cluster: Cluster, namespace: str) -> dict[str, str]:
    """Return each node that has a pod, and the pod's name."""
    found = cluster.get("pods", "-n", namespace, "-l", "app=web")["items"]
    return {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in found}


def answer(host: str) -> str:
    with urllib.request.urlopen(f"http://{host}/hostname", timeout=2) as response:
        return str(response.read().decode().strip())


def answers(host: str) -> set[str]:
    """Return who answers, each time on a connection of its own."""
    return {answer(host) for _ in range(20)}


def eventually(what: Callable[[], object], *, wait_s: float = _WAIT_S) -> None:
    """Wait until this is true; what it raises counts as false."""
    until = time.monotonic() + wait_s
    while True:
        try:
            assert what()
        except (AssertionError, OSError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


# -- nodes, pods, images ---------------------------------------------------------------------


def test_nodes_are_ready_when_the_cluster_is_up(cluster: Cluster) -> None:
    assert cluster.nodes() == dict.fromkeys(NODES, True)


def test_each_node_has_a_pod_when_two_are_wanted(cluster: Cluster, web: str) -> None:
    assert pods(cluster, web).keys() == set(NODES)


def test_each_node_pulls_by_digest_when_the_registry_wants_a_login(cluster: Cluster, web: str) -> None:
    found = cluster.get("pods", "-n", web)["items"]

    assert {each["status"]["containerStatuses"][0]["imageID"] for each in found} == {cluster.base}
    assert re.fullmatch(r".+@sha256:[0-9a-f]{64}", cluster.base)


@pytest.mark.parametrize("node", NODES)
def test_logs_and_exec_reach_a_pod_when_it_is_on(cluster: Cluster, web: str, node: str) -> None:
    pod = pods(cluster, web)[node]

    said = cluster.kubectl("exec", "-n", web, pod, "--", "cat", "/etc/hostname").strip()

    assert said == pod
    assert "GET /hostname" in cluster.kubectl("logs", "-n", web, pod)


@pytest.mark.parametrize("node", NODES)
def test_port_forward_reaches_a_pod_when_it_is_on(cluster: Cluster, web: str, node: str) -> None:
    pod = pods(cluster, web)[node]
    argv = cluster.argv("port-forward", "-n", web, f"pod/{pod}", ":8000")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, **cluster.environ}) as process:
        try:
            assert process.stdout
            found = re.search(rb"127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found

            assert answer(f"127.0.0.1:{int(found[1])}") == pod
        finally:
            process.terminate()


# -- networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("node", NODES)
def test_service_name_leads_to_both_nodes_when_asked_by_a_pod_on(cluster: Cluster, web: str, node: str) -> None:
    found = pods(cluster, web)
    script = "import urllib.request as u; print({u.urlopen('http://web/hostname').read() for _ in range(20)})"

    said = cluster.kubectl("exec", "-n", web, found[node], "--", "python3", "-c", script)

    assert set(re.findall(r"web-[a-z0-9-]+", said)) == set(found.values())


def test_address_and_name_lead_to_both_nodes_when_asked_by_the_host(cluster: Cluster, web: str) -> None:
    address, name = cluster.address("web", namespace=web), cluster.public_name("shop")
    eventually(lambda: socket.gethostbyname(name) == address)

    assert answers(address) == set(pods(cluster, web).values())
    assert answers(name) == set(pods(cluster, web).values())


def test_public_name_is_known_to_a_pod_when_the_cloud_has_given_it(cluster: Cluster, web: str) -> None:
    name = cluster.public_name("shop")
    script = f"import socket; print(socket.gethostbyname('{name}'))"
    pod = pods(cluster, web)[NODES[0]]

    eventually(
        lambda: (
            cluster.tried("exec", "-n", web, pod, "--", "python3", "-c", script).stdout.strip()
            == cluster.address("web", namespace=web)
        )
    )


def test_address_is_pending_when_the_cloud_holds_it_back(cluster: Cluster, namespace: str) -> None:
    with cluster.held("addresses"):
        cluster.apply(service("late", "late"), namespace=namespace)
        time.sleep(1.5)
        assert cluster.get("service", "late", "-n", namespace)["status"] == {"loadBalancer": {}}

    assert cluster.address("late", namespace=namespace)


def test_name_is_unknown_when_the_cloud_holds_it_back(cluster: Cluster, namespace: str) -> None:
    with cluster.held("names"):
        cluster.apply(service("late", "later"), namespace=namespace)
        address = cluster.address("late", namespace=namespace)
        time.sleep(1.5)
        with pytest.raises(OSError, match="not known"):
            socket.gethostbyname(cluster.public_name("later"))

    eventually(lambda: socket.gethostbyname(cluster.public_name("later")) == address)


# -- faults ----------------------------------------------------------------------------------


def test_api_server_has_what_it_had_when_it_was_away(cluster: Cluster, web: str) -> None:
    address, before = cluster.address("web", namespace=web), pods(cluster, web)

    with cluster.without("apiserver"):
        assert cluster.tried("get", "nodes").returncode != 0
        assert answers(address) == set(before.values())

    assert pods(cluster, web) == before


def test_address_leads_to_another_node_when_the_one_that_took_it_is_killed(cluster: Cluster, web: str) -> None:
    taking, other = NODES
    address, before = cluster.address("web", namespace=web), pods(cluster, web)

    with cluster.without(taking):
        eventually(lambda: answer(address) == before[other])


def test_node_is_not_ready_and_its_pods_go_elsewhere_when_it_is_killed(cluster: Cluster, web: str) -> None:
    alive, dead = NODES
    address, before = cluster.address("web", namespace=web), pods(cluster, web)

    with cluster.without(dead):
        cluster.await_(f"node/{dead}", "condition=Ready=Unknown")
        eventually(lambda: len(answers(address)) == 2)
        assert before[dead] not in answers(address)
        assert before[alive] in answers(address)

    assert cluster.nodes() == dict.fromkeys(NODES, True)


def test_node_is_ready_again_when_its_network_was_cut(cluster: Cluster) -> None:
    cluster.cut(NODES[1])
    cluster.await_(f"node/{NODES[1]}", "condition=Ready=Unknown")

    cluster.join(NODES[1])

    cluster.await_(f"node/{NODES[1]}", "condition=Ready")


# -- up and down -----------------------------------------------------------------------------


def test_nothing_had_to_be_started_twice_when_nobody_killed_it(cluster: Cluster) -> None:
    twice = {name for name, count in cluster.starts().items() if count > 1}

    assert twice <= {"apiserver", *NODES}


def test_up_is_refused_when_the_cluster_is_there(cluster: Cluster, ours: Plan) -> None:
    with pytest.raises(keeper.ClusterError, match=str(cluster.kubeconfig)):
        keeper.up(ours.name)


def test_nothing_is_left_when_the_keeper_was_killed_and_down_was_called(ours: Plan) -> None:
    other = keeper.up(f"{ours.name}-other")
    assert other.plan
    try:
        pod = {"containers": [{"name": "idle", "image": f"{other.registry}/pause:1"}]}
        idle = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "idle"}, "spec": pod}
        other.apply(idle, service(label="other"), namespace="default")
        other.await_("pod/idle", "condition=Ready")
        eventually(lambda: socket.gethostbyname(other.public_name("other")))
        there = traces(other.plan)
        os.kill(int((other.plan.folder / "keeper").read_text("ascii")), signal.SIGKILL)
    finally:
        keeper.down(other.plan.name)

    assert {what for what, found in there.items() if found} == {"cgroups", "folder", "hosts", "interface", "processes"}
    assert traces(other.plan) == {what: [] for what in there}


def traces(plan: Plan) -> dict[str, list[str]]:
    """Return what a cluster has of this machine; its rules, and its mounts, are to be its own at all times."""
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return {
        "cgroups": [str(folder) for folder in Path("/sys/fs/cgroup").glob(f"**/{plan.context}")],
        "folder": [str(plan.folder)] if plan.folder.exists() else [],
        "hosts": [line for line in Path("/etc/hosts").read_text("utf-8").splitlines() if plan.zone in line],
        "interface": [name for _, name in socket.if_nameindex() if name == plan.interface],
        "processes": [process.name for process in Path("/proc").glob("[0-9]*") if belongs(process, plan)],
        "mounts": [line for line in Path("/proc/mounts").read_text("utf-8").splitlines() if str(plan.folder) in line],
        "rules": [line for line in rules.splitlines() if plan.net in line],
    }


def belongs(process: Path, plan: Plan) -> bool:
    """Tell whether a process is the cluster's: by its command, or, where it is a pod's, by its cgroup."""
    with contextlib.suppress(OSError):
        said = (process / "cmdline").read_bytes() + (process / "cgroup").read_bytes()
        return str(plan.folder).encode() in said or plan.context.encode() in said
    return False
