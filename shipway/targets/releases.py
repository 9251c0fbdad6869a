"""What is kept of releases in the namespace, so that one can go back to any of them.

Owns the records: a ConfigMap for each way in which an image was applied, written before it is
applied, marked once it was settled, and deleted when it is long past. A record that cannot be
read is as if it were not there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from shipway.artifacts import Digest, Image, Version
from shipway.targets import manifests
from shipway.targets.kubectl import Kubectl, Object

_KEPT = 20


class Releases:
    """The records of one Deployment."""

    def __init__(self, kubectl: Kubectl, *, name: str) -> None:
        """Keep those of the Deployment `name`."""
        self._kubectl = kubectl
        self._name = name

    def keep(self, objects: Sequence[Object], *, version: Version, image: Image) -> None:
        """Write down how a version is about to be applied."""
        documents = (image.manifest, image.config)
        self._kubectl.apply([manifests.record(objects, name=self._name, version=version, image=documents)])

    def mark_settled(self, record: str) -> None:
        """Write down that a record is of a release that came to its end."""
        self._kubectl.annotate("configmap", record, {manifests.SETTLED: f"{time.time():.3f}"})

    def of(self, digest: Digest) -> str | None:
        """Return the record of how an image was applied when it was settled last."""
        found = self._of(digest)
        return str(found["metadata"]["name"]) if found else None

    def image(self, digest: Digest, *, record: str | None = None) -> tuple[bytes, bytes] | None:
        """Return manifest and configuration of an image that was settled once, or those that `record` holds."""
        found = self._kubectl.get("configmaps", record) if record else self._of(digest)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return manifests.recorded_image(found) if found else None
        return None

    def objects(self, record: str | None) -> list[Object]:
        """Return what was applied; nothing when there is no such record."""
        found = self._kubectl.get("configmaps", record) if record else None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return manifests.recorded(found) if found else []
        return []

    def prune(self, *keep: str | None) -> None:
        """Forget those that were settled longest ago, besides `keep`."""
        old = [each["metadata"]["name"] for each in self._all()[:-_KEPT]]
        self._kubectl.delete([f"configmap/{name}" for name in old if name not in keep])

    def _of(self, digest: Digest) -> Object | None:
        settled = (each for each in reversed(self._all()) if manifests.settled_at(each)[0])
        return next((each for each in settled if manifests.digest_of(each) == digest), None)

    def _all(self) -> list[Object]:
        """Return all; those that were settled come last, the latest at the end."""
        found = self._kubectl.find("configmaps", labels={manifests.RELEASE: self._name})
        return sorted(found, key=manifests.settled_at)
