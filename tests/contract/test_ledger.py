"""Locks and records, bound to files and to a cluster in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shipway.console import Console
from shipway.ledger import FileRecords, FileSlot, Holder, Ledger, Records, Seen, Slot
from shipway.targets.kubectl import Cluster, Kubectl
from shipway.targets.shared import ConfigMapRecords, LeaseSlot
from tests.fake_kubectl import FakeKubectl
from tests.ledger_contract import RecordsContract, SlotContract


class TestFileSlot(SlotContract):
    @pytest.fixture
    def slot(self, tmp_path: Path) -> Callable[[], Slot]:
        return lambda: FileSlot(tmp_path / "lock")


class TestFileRecords(RecordsContract):
    @pytest.fixture
    def records(self, tmp_path: Path) -> Callable[[], Records]:
        return lambda: FileRecords(tmp_path)


class TestLeaseSlot(SlotContract):
    @pytest.fixture
    def slot(self) -> Callable[[], Slot]:
        cluster = FakeKubectl()
        return lambda: LeaseSlot(_kubectl(cluster), name="web-release")


class TestConfigMapRecords(RecordsContract):
    @pytest.fixture
    def records(self) -> Callable[[], Records]:
        cluster = FakeKubectl()
        return lambda: ConfigMapRecords(_kubectl(cluster), name="web")


def test_attempt_is_closed_as_killed_when_it_was_of_another_machine() -> None:
    cluster = FakeKubectl()
    ledger = Ledger(ConfigMapRecords(_kubectl(cluster), name="web"))
    ledger.begin("release", who="ann")
    text = json.loads(cluster.objects[("configmap", "web-attempt-0001")]["data"]["record"]) | {"host": "elsewhere"}
    cluster.objects[("configmap", "web-attempt-0001")]["data"]["record"] = json.dumps(text)

    dead = ledger.close_dead()

    assert [record.outcome for record in ledger.attempts()] == ["killed"]
    assert [record.number for record in dead] == [1]


def test_record_is_ours_when_its_answer_was_lost_and_it_was_sent_twice() -> None:
    cluster = FakeKubectl()
    records = ConfigMapRecords(_kubectl(cluster), name="web")
    records.all()
    cluster.lost = 1

    assert records.create(1, "mine")
    assert [call[0] for call in cluster.calls].count("create") == 2


def test_lease_says_to_people_who_holds_it() -> None:
    cluster = FakeKubectl()
    slot = LeaseSlot(_kubectl(cluster), name="web-release", clock=lambda: 1000.0)
    holder = json.loads(
        '{"owner": "ann@here", "what": "release", "host": "here", "pid": 1, "process": null, '
        '"since": 990, "expires": 1030, "fence": 7}'
    )
    slot.write(Holder(**holder), Seen(holder=None, etag=None))

    assert cluster.objects[("lease.coordination.k8s.io", "web-release")]["spec"] == {
        "holderIdentity": "ann@here",
        "leaseDurationSeconds": 30,
        "acquireTime": "1970-01-01T00:16:30.000000Z",
        "renewTime": "1970-01-01T00:16:40.000000Z",
    }


def _kubectl(cluster: FakeKubectl) -> Kubectl:
    return Kubectl(Cluster(context="there", namespace="shop"), run=cluster, tell=Console(), sleep=lambda _s: None)
