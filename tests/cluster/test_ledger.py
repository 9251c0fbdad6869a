"""Locks and records, bound to a real cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from shipway.console import Console
from shipway.ledger import Records, Slot
from shipway.proc import Completed, Proc
from shipway.targets.kubectl import Cluster as Where
from shipway.targets.kubectl import Kubectl
from shipway.targets.shared import ConfigMapRecords, LeaseSlot
from tests.cluster.cluster import Cluster
from tests.ledger_contract import RecordsContract, SlotContract


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Runs programs in a cluster's environment."""

    environ: Mapping[str, str]

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
        assert env is None, "shipway runs kubectl as it is"
        return Proc().run(
            argv, cwd=cwd, env={**os.environ, **self.environ}, stdin=stdin, on_line=on_line, timeout_s=timeout_s
        )


def _kubectl(cluster: Cluster, namespace: str) -> Kubectl:
    where = Where(context=cluster.context, namespace=namespace)
    return Kubectl(where, run=_Run(environ=cluster.environ), tell=Console())


class TestLeaseSlot(SlotContract):
    @pytest.fixture
    def slot(self, cluster: Cluster, namespace: str) -> Callable[[], Slot]:
        return lambda: LeaseSlot(_kubectl(cluster, namespace), name="web-release")


class TestConfigMapRecords(RecordsContract):
    @pytest.fixture
    def records(self, cluster: Cluster, namespace: str) -> Callable[[], Records]:
        return lambda: ConfigMapRecords(_kubectl(cluster, namespace), name="web")
