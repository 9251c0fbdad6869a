"""What a status says: done, hopeless, doubtful, or slow."""

from __future__ import annotations

from typing import Any

import pytest

from shipway.targets import progress


def deployment(*, seen: int = 3, wanted: int = 2, **status: Any) -> dict[str, Any]:
    return {
        "kind": "Deployment",
        "metadata": {
            "name": "web",
            "uid": "d",
            "generation": 3,
            "annotations": {"deployment.kubernetes.io/revision": "2"},
        },
        "spec": {"replicas": wanted},
        "status": {"observedGeneration": seen, **status},
    }


def replica_set(revision: str = "2") -> dict[str, Any]:
    owner = [{"uid": "d", "controller": True}]
    annotations = {"deployment.kubernetes.io/revision": revision}
    return {
        "kind": "ReplicaSet",
        "metadata": {"uid": f"r{revision}", "ownerReferences": owner, "annotations": annotations},
    }


def pod(owner: str = "r2", *, state: Any = None, last: Any = None, ready: str = "False", **more: Any) -> dict[str, Any]:
    container = {"state": state or {}, "lastState": last or {}}
    return {
        "kind": "Pod",
        "metadata": {"name": "web-1", "ownerReferences": [{"uid": owner, "controller": True}], **more},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [container],
        },
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def test_status_is_not_believed_until_the_controller_has_seen_what_was_asked() -> None:
    stale = deployment(seen=2, replicas=2, updatedReplicas=2, availableReplicas=2)

    assert not progress.look(stale, [replica_set()], []).done


@pytest.mark.parametrize(
    ("counts", "done"),
    [
        ({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, True),
        ({"replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}, False),
        ({"replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}, False),
        ({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}, False),
        ({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "unavailableReplicas": 1}, False),
        ({}, False),
    ],
)
def test_rollout_is_done_when_all_replicas_are_new_and_available(counts: dict[str, int], done: bool) -> None:  # noqa: FBT001 - a case of the table
    assert progress.look(deployment(**counts), [replica_set()], []).done == done


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (pod(state=waiting("CrashLoopBackOff", "back-off 10s")), "web-1: CrashLoopBackOff: back-off 10s"),
        (pod(state=waiting("InvalidImageName", "couldn't parse")), "web-1: InvalidImageName: couldn't parse"),
        (pod(state=waiting("CreateContainerConfigError", "no secret")), "web-1: CreateContainerConfigError: no secret"),
        (
            pod(state={"terminated": {"reason": "OOMKilled", "exitCode": 137}}),
            "web-1: killed for memory (OOMKilled), exit code 137",
        ),
        (
            pod(state={"running": {}}, last={"terminated": {"reason": "OOMKilled", "exitCode": 137}}),
            "web-1: killed for memory (OOMKilled), exit code 137",
        ),
        (
            pod(state={"terminated": {"reason": "StartError", "message": "exec /srv/run: exec format error"}}),
            "web-1: StartError: exec /srv/run: exec format error",
        ),
    ],
)
def test_pod_is_hopeless(bad: dict[str, Any], told: str) -> None:
    assert progress.look(deployment(), [replica_set()], [bad]).hopeless == told


def test_image_that_cannot_be_pulled_is_doubtful_and_not_hopeless() -> None:
    state = progress.look(deployment(), [replica_set()], [pod(state=waiting("ErrImagePull", "not found"))])

    assert (state.hopeless, state.doubtful) == (None, "web-1: ErrImagePull: not found")


def test_refused_pods_are_doubtful() -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity"}

    state = progress.look(deployment(conditions=[refused]), [replica_set()], [])

    assert state.doubtful == "no pod can be made: violates PodSecurity"


@pytest.mark.parametrize(
    "other",
    [
        pod("r1", state=waiting("CrashLoopBackOff")),
        pod(state=waiting("CrashLoopBackOff"), deletionTimestamp="2026-01-01T00:00:00Z"),
        pod(state={"running": {}}, last={"terminated": {"reason": "OOMKilled"}}, ready="True"),
    ],
    ids=["of the version before", "that is ending", "that is ready again"],
)
def test_pod_says_nothing_of_the_newest_version(other: dict[str, Any]) -> None:
    sets = [replica_set("1"), replica_set()]

    assert progress.look(deployment(), sets, [other]).hopeless is None


def test_pod_that_finds_no_node_is_waited_for_and_told() -> None:
    stuck = pod()
    condition = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}
    stuck["status"]["conditions"] = [condition]

    state = progress.look(deployment(wanted=1, replicas=1, updatedReplicas=1), [replica_set()], [stuck])

    assert (state.done, state.hopeless, state.doubtful) == (False, None, None)
    assert state.told == "1 of 1 new, 0 available; no node takes it: 0/2 nodes are available"


def test_events_are_those_of_the_objects_in_order_and_the_same_once() -> None:
    def event(name: str, when: str, message: str) -> dict[str, Any]:
        about = {"kind": "Pod", "name": name}
        return {"involvedObject": about, "reason": "Failed", "message": message, "lastTimestamp": when}

    found = [event("web-1", "2", "second"), event("other", "1", "no"), event("web-1", "1", "first")]

    lines = progress.events([*found, event("web-1", "3", "second")], [pod()])

    assert lines == ["Failed web-1: first", "Failed web-1: second"]
