"""A repository of a registry: the one place that speaks the distribution protocol.

Owns what lives under which address, and what is believed: bytes only once their size and
digest are proven. How requests are logged in and retried is `transport`'s, how a blob gets
there is `upload`'s. Everything here raises `PushError` or one of its children.
https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from shipway import documents
from shipway.artifacts import Descriptor, Digest
from shipway.config import PushSettings
from shipway.console import Tell
from shipway.errors import BlobsLost, ConfigError, ImageCorrupt, ImageMissing, PushError, RegistryRefused
from shipway.oci.address import Url
from shipway.oci.client import Client, Response
from shipway.oci.compose import INDEX, MANIFEST, Source
from shipway.oci.credentials import find_credential
from shipway.oci.images import DOCUMENT_BYTES, Advance, described, ignore
from shipway.oci.login import Login
from shipway.oci.patience import Clock, Passing
from shipway.oci.reference import Reference
from shipway.oci.referrers import subject_of
from shipway.oci.transport import Answer, Body, Call, Transport
from shipway.oci.upload import Upload
from shipway.proc import Run

_DOCKER = "application/vnd.docker.distribution.manifest."
DOCUMENTS = (MANIFEST, INDEX, f"{_DOCKER}v2+json", f"{_DOCKER}list.v2+json")
_OK, _CREATED, _ACCEPTED, _NO_CONTENT, _PARTIAL = 200, 201, 202, 204, 206
_BAD, _NOT_FOUND, _NOT_ALLOWED, _NOT_THERE = 400, 404, 405, 416
_LOST = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"})
_DIGESTS = re.compile(r"sha256:[0-9a-f]{64}")
_FIRST = re.compile(r"bytes ([0-9]{1,18})-")
_PAGE, _PAGES = 1000, 1000
_BLOB_S, _SLOWEST_BYTES_S = 900.0, 1 << 16  # the longest that a blob may take: so long, and its bytes at this pace
_STRIDE_BYTES = 1 << 20  # what counts as progress; of a small blob, a hundredth
_NO_DELETIONS = "allow them in the registry's own configuration (distribution: REGISTRY_STORAGE_DELETE_ENABLED=true)"
_STALE = "run again; if it stays, the registry's own store is damaged: push to another repository"


def open_repository(
    name: str,
    *,
    settings: PushSettings,
    root: Path,
    environ: Mapping[str, str],
    proc: Run,
    tell: Tell,
    clock: Clock | None = None,
) -> Repository:
    """Return the repository `HOST[:PORT]/PATH`; nothing is asked of it yet. Raises `ConfigError`."""
    reference = Reference.parse(name)
    if reference.tag or reference.digest:
        raise ConfigError(f"{name!r} names an image, where a repository belongs: {reference.repository}")
    registry = Url.parse(reference.registry_url)
    client = Client(reference, authority=root / settings.authority if settings.authority else None)
    find = partial(find_credential, reference.host, settings=settings, environ=environ, proc=proc)
    login = Login(registry, client=client, find=find, token_services=settings.token_services)
    return Repository(reference, Transport(registry, client=client, login=login, warn=tell.warn, clock=clock))


class Repository:
    """One repository: `Images` in a registry."""

    jobs = 4  # as go-containerregistry and Docker
    shared = True

    def __init__(self, reference: Reference, transport: Transport) -> None:
        """Use the repository that `reference` names."""
        self._reference = reference
        self._transport = transport
        self._url = transport.registry.join(f"/v2/{reference.path}/")
        self._pull = (f"repository:{reference.path}:pull",)
        self._push = (f"repository:{reference.path}:push,pull",)
        self._delete = (f"repository:{reference.path}:delete",)

    def abandon(self) -> None:
        """See `Images.abandon`."""
        self._transport.abandon()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    @property
    def repository(self) -> str:
        """See `Images.repository`."""
        return self._reference.repository

    def pushing(self) -> contextlib.AbstractContextManager[None]:
        """See `Images.pushing`; nothing on this machine cleans a registry up."""
        return contextlib.nullcontext()

    def has(self, blob: Descriptor) -> bool:
        """See `Images.has`; the bytes are checked when they are read."""
        return self._has(blob, self._pull)

    def _has(self, blob: Descriptor, scopes: tuple[str, ...], advance: Advance = ignore) -> bool:
        kind = "manifests" if blob.media_type in DOCUMENTS else "blobs"
        headers = {"Accept": blob.media_type} if kind == "manifests" else {}
        call = self._call("HEAD", f"{kind}/{blob.digest}", scopes, headers=headers)
        answer = self._transport.ask(call, {_OK, _NOT_FOUND}, self._transport.patience(advance))
        said = answer.headers.get("content-length", str(blob.size_bytes))
        return answer.status == _OK and said == str(blob.size_bytes)

    def add(
        self,
        blob: Descriptor,
        source: Source,
        *,
        origins: Sequence[str] = (),
        advance: Advance = ignore,
        anew: bool = False,
    ) -> int:
        """See `Images.add`."""
        session = None
        if not anew:
            if self._has(blob, self._push, advance):
                return 0
            for origin in origins:
                mounted, session = self._mounted(blob, origin)
                if mounted:
                    return 0
        upload = Upload(
            blob,
            source,
            transport=self._transport,
            start=self._call("POST", "blobs/uploads/", self._push),
            cancel_scopes=self._delete,
            lacking=lambda: anew or not self._has(blob, self._push, advance),
            advance=advance,
        )
        return upload.run(session)

    def _mounted(self, blob: Descriptor, origin: str) -> tuple[bool, Url | None]:
        """Ask for a blob of another repository; a registry that will not give it opens an upload, or refuses."""
        scopes = (*self._push, f"repository:{origin}:pull")
        call = self._call("POST", "blobs/uploads/", scopes, query={"mount": blob.digest, "from": origin})
        try:
            answer = self._transport.once(call, {_CREATED, _ACCEPTED})
        except (Passing, PushError):
            return False, None
        if answer.status == _CREATED:
            return True, None
        return False, answer.location

    def pieces(self, blob: Descriptor) -> Iterator[bytes]:
        """See `Images.pieces`; after a cut, the rest alone is asked for."""
        hashed, arrived, patience = hashlib.sha256(), 0, self._transport.patience()
        longest_s = _BLOB_S + blob.size_bytes / _SLOWEST_BYTES_S
        stride, due = min(_STRIDE_BYTES, blob.size_bytes // 100), 0
        whole = False
        while not whole:
            try:
                for piece in patience.in_time(self._rest(blob, arrived), longest_s):
                    hashed.update(piece)
                    arrived += len(piece)
                    if arrived > blob.size_bytes:
                        raise self._corrupt(blob.digest, f"more than its {blob.size_bytes} bytes came")
                    if arrived >= due:
                        due = arrived + stride
                        patience.progressed()
                    yield piece
                whole = True
            except Passing as fault:
                whole = arrived == blob.size_bytes  # cut behind the last byte: the hash decides
                if not whole:
                    patience.spend(fault)
        if hashed.hexdigest() != blob.digest.hex:
            raise self._corrupt(blob.digest, "its bytes have another digest")

    def _rest(self, blob: Descriptor, start: int) -> Iterator[bytes]:
        """Yield what comes from an offset on; raises `Passing` when it ends too early."""
        call = self._call(
            "GET", f"blobs/{blob.digest}", self._pull, headers={"Range": f"bytes={start}-"} if start else {}
        )
        with self._transport.opened(call, {_OK, _PARTIAL, _NOT_FOUND, _NOT_THERE}) as response:
            if response.status == _NOT_FOUND:
                raise ImageMissing(f"there is no {blob.digest} in {self.repository}")
            if response.status == _NOT_THERE:
                raise self._corrupt(blob.digest, f"it ends after {start} of {blob.size_bytes} bytes")
            at = _first_byte(response) if response.status == _PARTIAL else 0
            if at > start:
                raise self._corrupt(blob.digest, f"bytes from {at} on came, asked for were those from {start} on")
            for piece in response.pieces():
                fresh = piece[max(0, start - at) :]
                at += len(piece)
                if fresh:
                    yield fresh
        if at < blob.size_bytes:
            raise Passing(f"{call} ended after {at} of {blob.size_bytes} bytes")

    def read(self, digest: Digest) -> bytes:
        """See `Images.read`."""
        answer = self._manifest("GET", digest)
        if answer.status == _NOT_FOUND:
            raise ImageMissing(f"there is no {digest} in {self.repository}")
        if len(answer.body) > DOCUMENT_BYTES or Digest.of(answer.body) != digest:
            raise self._corrupt(digest, "its bytes have another digest")
        return answer.body

    def put(self, manifest: bytes, media_type: str, *, anew: bool = False) -> int:
        """See `Images.put`."""
        if not anew and self._has(described(manifest, media_type), self._push):
            return 0
        self._put(Digest.of(manifest), manifest, media_type)
        return len(manifest)

    def tag(self, name: str, manifest: bytes, media_type: str) -> None:
        """See `Images.tag`."""
        self._put(name, manifest, media_type)

    def _put(self, name: str, manifest: bytes, media_type: str) -> None:
        body = Body(size_bytes=len(manifest), pieces=lambda: [manifest], media_type=media_type)
        call = self._call("PUT", f"manifests/{name}", self._push, body=body)
        answer = self._transport.ask(call, {_CREATED, _OK, _ACCEPTED, _BAD, _NOT_FOUND})
        if answer.codes & _LOST:
            raise BlobsLost(f"{self.repository} lacks what the manifest names: {answer}", digests=_named(answer))
        if answer.status in {_BAD, _NOT_FOUND}:
            raise RegistryRefused(str(answer))
        stored = answer.headers.get("docker-content-digest")
        if stored not in {None, Digest.of(manifest)}:
            raise PushError(f"{self.repository} stored the manifest under another digest, {stored}: {call}")

    def tagged(self, name: str) -> Digest | None:
        """See `Images.tagged`; a registry that names no digest has to show the manifest."""
        for method in ("HEAD", "GET"):
            answer = self._manifest(method, name)
            if answer.status == _NOT_FOUND:
                return None
            if digest := _digest(answer.headers.get("docker-content-digest", "")):
                return digest
        return Digest.of(answer.body)

    def _manifest(self, method: str, name: str) -> Answer:
        call = self._call(method, f"manifests/{name}", self._pull, headers={"Accept": _accepted(name)})
        return self._transport.ask(call, {_OK, _NOT_FOUND})

    def names(self) -> Iterator[str]:
        """See `Images.names`."""
        call = self._call("GET", "tags/list", self._pull, query={"n": str(_PAGE)})
        for _ in range(_PAGES):
            answer = self._transport.ask(call, {_OK, _NOT_FOUND})
            if answer.status == _NOT_FOUND:
                return
            yield from self._page(answer)
            following = answer.next_page
            if following is None:
                return
            call = replace(call, url=following)
        raise RegistryRefused(f"{call}: the list of tags does not end after {_PAGES} pages")

    def _page(self, answer: Answer) -> list[str]:
        try:
            return [str(name) for name in documents.decoded(answer.body)["tags"] or ()]
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryRefused(f"{answer.call} was not answered with a list of tags") from error

    def delete(self, digest: Digest) -> None:
        """Delete a manifest and every name of it, if it is there; its blobs are the registry's to collect."""
        call = self._call("DELETE", f"manifests/{digest}", self._delete)
        answer = self._transport.ask(call, {_OK, _ACCEPTED, _NO_CONTENT, _NOT_FOUND, _NOT_ALLOWED})
        if answer.status == _NOT_ALLOWED:
            raise RegistryRefused(str(answer), advice=_NO_DELETIONS)

    def examined(self) -> str:
        """See `Images.examined`: an upload is begun, which shows the right to push, and cancelled."""
        begun = self._transport.ask(self._call("POST", "blobs/uploads/", self._push), {_ACCEPTED})
        if begun.location is None:
            raise RegistryRefused(f"{begun}, but without the Location to send to")
        cancel = Call(method="DELETE", url=begun.location, scopes=self._delete)
        with contextlib.suppress(RegistryRefused):  # who may push may not always delete; registries forget it, too
            self._transport.ask(cancel, {_OK, _ACCEPTED, _NO_CONTENT, _NOT_FOUND, _NOT_ALLOWED})
        return f"{self.repository} takes images, with {self._transport.login.source}"

    def _call(
        self,
        method: str,
        path: str,
        scopes: tuple[str, ...],
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Call:
        url = self._url.join(path).asking(*(query or {}).items())
        return Call(method=method, url=url, scopes=scopes, headers=headers or {}, body=body)

    def _corrupt(self, digest: Digest, why: str) -> ImageCorrupt:
        return ImageCorrupt(f"{self.repository}@{digest} is damaged: {why}", advice=_STALE)


def _accepted(name: str) -> str:
    """Return what a manifest may be, which is known where the name is one of shipway's own."""
    if subject_of(name):
        return INDEX
    return MANIFEST if name.startswith("layers-") else ", ".join(DOCUMENTS)


def _digest(text: str) -> Digest | None:
    try:
        return Digest(text)
    except ValueError:
        return None


def _first_byte(response: Response) -> int:
    found = _FIRST.match(response.headers.get("content-range", ""))
    return int(found[1]) if found else 0


def _named(answer: Answer) -> set[str]:
    """Return the digests that the registry's errors name, wherever in their details it puts them."""
    return set(_DIGESTS.findall(answer.body.decode("utf-8", "replace")))
