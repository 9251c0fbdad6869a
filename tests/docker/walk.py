"""The judge of what is in a real registry: every manifest, by tag and by digest, with all that it names.

Asks the registry itself, with no code of shipway's client, and looks into its storage for
manifests that no tag names.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


def wrongs(registry: str, repository: str, *, storage: Path, authorization: str = "") -> list[str]:
    """Return, one a line, what is missing or not what its digest says; an empty repository has nothing wrong."""
    return list(_Walk(registry, repository, storage, authorization).wrongs())


def tags(registry: str, repository: str, *, authorization: str = "") -> dict[str, str]:
    """Return every tag with the digest it means."""
    walk = _Walk(registry, repository, Path(), authorization)
    return {tag: walk.digest_of(tag) for tag in walk.tags()}


class _Walk:
    def __init__(self, registry: str, repository: str, storage: Path, authorization: str) -> None:
        self._registry = registry
        self._base = f"/v2/{repository}"
        self._revisions = storage / f"docker/registry/v2/repositories/{repository}/_manifests/revisions/sha256"
        self._headers = {"Accept": _ACCEPT, **({"Authorization": authorization} if authorization else {})}
        self._known: dict[str, str | None] = {}

    def wrongs(self) -> Iterator[str]:
        stored = (link.parent.name for link in self._revisions.glob("*/link"))
        names = {f"revision {hexadecimal}": f"sha256:{hexadecimal}" for hexadecimal in stored}
        names |= {f"tag {tag}": self.digest_of(tag) for tag in self.tags()}
        for name, digest in names.items():
            for wrong in self._manifest(digest):
                yield f"{name}: {wrong}"

    def tags(self) -> list[str]:
        status, _, body = self._get("/tags/list?n=10000")
        return list(json.loads(body)["tags"] or []) if status == http.HTTPStatus.OK else []

    def digest_of(self, tag: str) -> str:
        return self._get(f"/manifests/{tag}")[1].get("docker-content-digest", "none")

    def _manifest(self, digest: str) -> Iterator[str]:
        status, _, body = self._get(f"/manifests/{digest}")
        if status != http.HTTPStatus.OK:
            yield f"the manifest {digest} is answered with {status}"
            return
        if wrong := _unlike(digest, body):
            yield wrong
            return
        manifest = json.loads(body)
        for entry in manifest.get("manifests", ()):
            yield from self._manifest(entry["digest"])
        for entry in (*filter(None, [manifest.get("config")]), *manifest.get("layers", ())):
            if wrong := self._blob(entry):
                yield wrong

    def _blob(self, entry: Mapping[str, Any]) -> str | None:
        digest = entry["digest"]
        if digest not in self._known:
            status, _, body = self._get(f"/blobs/{digest}")
            if status != http.HTTPStatus.OK:
                self._known[digest] = f"the blob {digest} is answered with {status}"
            elif len(body) != entry["size"]:
                self._known[digest] = f"the blob {digest} has {len(body)} bytes, not {entry['size']}"
            else:
                self._known[digest] = _unlike(digest, body)
        return self._known[digest]

    def _get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self._registry, timeout=60)) as connection:
            connection.request("GET", self._base + path, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def _unlike(digest: str, data: bytes) -> str | None:
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return None if found == digest else f"under {digest} lies {found}"
