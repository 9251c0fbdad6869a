"""The cluster itself: what tests of releases take for granted."""

from __future__ import annotations

import json

from tests.cluster.cluster import Cluster
from tests.cluster.plan import NODES


def test_nodes_are_ready_when_the_cluster_is_up(cluster: Cluster) -> None:
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]

    ready = {
        node["metadata"]["name"]: each["status"]
        for node in nodes
        for each in node["status"]["conditions"]
        if each["type"] == "Ready"
    }
    assert ready == dict.fromkeys(NODES, "True")
