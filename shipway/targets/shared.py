"""The lock and the records of attempts, kept in the namespace: any machine that may release sees them.

Owns their form: a Lease, changed only by whoever read its last version, and a ConfigMap for
each attempt, created once. See `ledger.Slot` and `ledger.Records`.
https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/lease-v1/
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

from shipway import documents
from shipway.ledger import Holder, Seen
from shipway.targets.kubectl import Kubectl, Object
from shipway.targets.manifests import OURS

HOLDER = f"{OURS}holder"
ATTEMPT_OF = f"{OURS}attempt-of"
_KEPT = 200


class LeaseSlot:
    """A lock in a Lease. What `kubectl get lease` shows is for people; an annotation has all of it."""

    shared = True
    poll_s = 2.0

    def __init__(self, kubectl: Kubectl, *, name: str, clock: Callable[[], float] = time.time) -> None:
        """Use the Lease `name`."""
        self._kubectl = kubectl
        self._name = name
        self._clock = clock

    def read(self) -> Seen:
        """See `Slot.read`."""
        found = self._kubectl.get("leases.coordination.k8s.io", self._name)
        if found is None:
            return Seen(holder=None, etag=None)
        try:
            said = found["metadata"]["annotations"][HOLDER]
            holder = documents.parse(Holder, said)
        except (KeyError, ValueError):
            holder = None
        return Seen(holder=holder, etag=str(found["metadata"]["resourceVersion"]))

    def write(self, holder: Holder, seen: Seen) -> bool:
        """See `Slot.write`; the server compares versions."""
        lease = self._lease(holder)
        if seen.etag is None:
            return self._kubectl.create(lease)
        lease["metadata"]["resourceVersion"] = seen.etag
        return self._kubectl.replace(lease)

    def _lease(self, holder: Holder) -> Object:
        now = self._clock()
        held = {
            "holderIdentity": holder.owner,
            "leaseDurationSeconds": max(1, round(holder.expires - now)),
            "acquireTime": _moment(holder.since),
            "renewTime": _moment(now),
        }
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "annotations": {HOLDER: json.dumps(documents.plain(holder))}},
            "spec": held if holder.expires else {},
        }


class ConfigMapRecords:
    """Records of attempts, a ConfigMap each; the oldest beyond two hundred are deleted."""

    shared = True

    def __init__(self, kubectl: Kubectl, *, name: str) -> None:
        """Keep those of the service `name`."""
        self._kubectl = kubectl
        self._name = name

    def all(self) -> dict[int, bytes]:
        """See `Records.all`."""
        found = {}
        for each in self._kubectl.find("configmaps", labels={ATTEMPT_OF: self._name}):
            number = each["metadata"]["name"].removeprefix(f"{self._name}-attempt-")
            if number.isdecimal():
                found[int(number)] = str(each.get("data", {}).get("record", "")).encode()
        return dict(sorted(found.items()))

    def create(self, number: int, text: str) -> bool:
        """See `Records.create`."""
        if not self._kubectl.create(self._map(number, text)):
            return False
        old = list(self.all())[:-_KEPT]
        self._kubectl.delete([f"configmap/{self._named(each)}" for each in old])
        return True

    def replace(self, number: int, text: str) -> None:
        """See `Records.replace`."""
        if not self._kubectl.replace(self._map(number, text)):
            self._kubectl.create(self._map(number, text))  # somebody deleted it: what came of it is told all the same

    def _map(self, number: int, text: str) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self._named(number), "labels": {ATTEMPT_OF: self._name}},
            "data": {"record": text},
        }

    def _named(self, number: int) -> str:
        return f"{self._name}-attempt-{number:04}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
