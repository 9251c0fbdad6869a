"""A workspace of Azure ML as a store: MLflow's API behind an Entra token, and Azure's own for files.

Owns the workspace's addresses and its artifact service, which lends an address of Blob storage
for each file: signed, good for a while, and never shown. Entra's token goes to the workspace's
own host alone, and no token goes to Blob storage. Written from Microsoft's own client, the
package azureml-mlflow, and never tried on Azure itself; docs/stores.md says what that leaves.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from shipway import entra
from shipway.console import Tell
from shipway.entra import Identity
from shipway.errors import ModelMissing, NotConfigured, StoreRefused, StoreUnreachable
from shipway.proc import Run
from shipway.stores.adopt import Adopter
from shipway.stores.artifacts import ALSO, Child, ranged, whole_bytes
from shipway.stores.mlflow import Mlflow
from shipway.stores.objects import Access, Found
from shipway.stores.patience import Clock, Passing, persist, resumed
from shipway.stores.registry import Registry
from shipway.stores.rest import Answered, Entra, Rest, is_loopback, open_client

ROLE = "AzureML Data Scientist"
_SCOPE = "https://management.azure.com/.default"
_ADDRESS = re.compile(
    r"azureml://([A-Za-z0-9.:-]+)/mlflow/v\d+\.\d+"
    r"(/subscriptions/[\w.-]+/resourceGroups/[\w.()-]+/providers/Microsoft\.MachineLearningServices/workspaces/[\w-]+)/?"
)
_RUN = re.compile(r"azureml:/.*/runs/([\w.-]+)/artifacts/?(.*)")
_CONTAINER = re.compile(r"azureml:/.*/(ExperimentRun|LocalUpload)/([\w.-]+)/?(.*)")
_LENT_S = 300.0  # of the hours that a signed address is good
_MOST_PAGES = 1000
_BLOCK_BLOB = {"x-ms-blob-type": "BlockBlob"}


def open_azureml(
    address: str,
    access: Access,
    *,
    cache: Path,
    run: Run,
    tell: Tell,
    identity: Identity | None = None,
    clock: Clock | None = None,
) -> Mlflow:
    """Name a workspace by its tracking address; nobody is asked yet. Raises `NotConfigured`.

    `identity` stands in for the credential that `access` names.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise NotConfigured(
            f"[model] store = {address!r} is no workspace of Azure ML",
            advice="write what this prints: az ml workspace show --query mlflow_tracking_uri",
        )
    host, workspace = match.groups()
    who = identity or entra.identity(
        access.azure_credential, role=ROLE, setting=f"[model] store = {address!r}", environ=access.environ
    )
    base = httpx.URL(f"https://{host}")
    client, login, clock = open_client(base, authority=access.authority), Entra(who, _SCOPE), clock or Clock()
    models, files = (
        Rest(base.copy_with(path=f"/{api}/v2.0{workspace}"), client=client, login=login, clock=clock)
        for api in ("mlflow", "artifact")
    )
    adopter = Adopter(cache=cache, run=run, tell=tell)
    registry = Registry(models, address=address.rstrip("/"))
    return Mlflow(registry, Lent(files), adopter=adopter, warn=tell.warn, has_aliases=False)


class Lent:
    """`Artifacts` of a workspace; a path is `ORIGIN/CONTAINER/PATH`, where a run's origin is `ExperimentRun`."""

    def __init__(self, rest: Rest) -> None:
        """Take the way to the artifact service."""
        self._rest = rest
        self._lock = threading.Lock()
        self._addresses: dict[str, tuple[float, httpx.URL]] = {}

    def place(self, uri: str) -> str:
        """See `Artifacts.place`."""
        if match := _RUN.fullmatch(uri):
            found = f"ExperimentRun/dcid.{match[1]}/{match[2]}"
        elif match := _CONTAINER.fullmatch(uri):
            found = "/".join(match.groups())
        else:
            found = ""
        parts = found.rstrip("/").split("/")
        if any(part in {"", ".", ".."} for part in parts):
            raise StoreRefused(f"{self._rest.base}: the files are at {uri[:300]!a}, which is no place of a workspace")
        return "/".join(parts)

    def find(self, path: str) -> Found | None:
        """See `Store.find`."""
        return persist(self._rest.clock, lambda _again: self._find(path))

    def stream(self, path: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""
        return resumed(self._rest.clock, partial(self._stream, path, stop, etag), start)

    def put(self, path: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """See `Store.put`; Blob storage takes it at once, or not at all."""
        address = self._writable(path)
        headers = {**_BLOCK_BLOB, "Content-Length": str(size_bytes)}

        def send(_again: bool) -> None:  # noqa: FBT001 - of `persist`
            with self._rest.opened("PUT", address, headers=headers, content=pieces):
                pass

        try:
            if isinstance(pieces, list):
                persist(self._rest.clock, send)
            else:
                send(False)
        except Passing as fault:
            raise StoreUnreachable(f"{fault}, in the middle of {size_bytes:,} bytes") from fault

    def children(self, path: str) -> list[Child]:
        """See `Artifacts.children`; the service lists a container flat."""
        container, folder = _split(path)
        prefix = f"{folder}/" if folder else ""
        found: dict[str, bool] = {}
        token: str | None = None
        for _ in range(_MOST_PAGES):
            query = {"continuationToken": token} if token else {}
            told = self._rest.ask("GET", f"/artifacts/{container}", query=query) or {}
            for each in told.get("value", []):
                if str(each["path"]).startswith(prefix):
                    name, _, below = str(each["path"]).removeprefix(prefix).partition("/")
                    found[name] = found.get(name, False) or bool(below)
            token = told.get("continuationToken")
            if not token:
                return [Child(name=name, is_folder=is_folder, size_bytes=None) for name, is_folder in found.items()]
        raise StoreRefused(f"{self._rest.base}: {container} has more than {_MOST_PAGES} pages")

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        container, name = _split(path)
        with self._lock:
            self._addresses.pop(path, None)
        self._rest.ask("DELETE", f"/artifacts/{container}/metadata", query={"path": name, "hardDelete": "true"})

    def _find(self, path: str) -> Found | None:
        address = self._address(path)
        if address is None:
            return None
        with self._rest.opened("GET", address, headers={"Range": "bytes=0-0"}, also=ALSO) as response:
            size_bytes = whole_bytes(response) if response else None
            etag = response.headers.get("etag", "") if response else ""
        return None if size_bytes is None else Found(size_bytes=size_bytes, etag=etag)

    def _stream(self, path: str, stop: int, etag: str | None, start: int) -> Iterator[bytes]:
        if start >= stop:
            return
        address = self._address(path)
        if address is None:
            raise ModelMissing(f"there is no artifact {path}")
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        with self._rest.opened("GET", address, headers=headers, also=ALSO) as response:
            if response is None:
                raise ModelMissing(f"there is no artifact {path}")
            if response.status_code == HTTPStatus.OK:
                raise Passing(f"{path}: the whole came, where a range was asked for")
            yield from ranged(path, response, start=start, etag=etag)

    def _writable(self, path: str) -> httpx.URL:
        """Return where a file can be written; it is made where it is not there yet."""
        container, name = _split(path)
        ask = partial(self._rest.ask, "GET", f"/artifacts/{container}/write", query={"path": name})
        if told := ask():
            return self._checked(told)
        try:
            body = {"paths": [{"path": name}]}
            made = self._rest.ask("POST", f"/artifacts/{container}/batch/metadata", body=body) or {}
            told = made.get("artifactContentInformation", {}).get(name)
        except Answered as error:
            if error.status != HTTPStatus.CONFLICT:  # somebody else made it in this moment
                raise
            told = ask()
        return self._checked(told)

    def _address(self, path: str) -> httpx.URL | None:
        """Return where a file can be read, for a while; `None` when there is none."""
        with self._lock:
            lent_at, address = self._addresses.get(path, (0.0, httpx.URL()))
        if lent_at and time.monotonic() - lent_at < _LENT_S:
            return address
        container, name = _split(path)
        told: Any = self._rest.ask("GET", f"/artifacts/{container}/contentinfo", query={"path": name})
        if not told:
            return None
        address = self._checked(told)
        with self._lock:
            self._addresses[path] = time.monotonic(), address
        return address

    def _checked(self, told: Any) -> httpx.URL:
        """Return a lent address, if it is one that a model may travel to."""
        try:
            address = httpx.URL(str(told["contentUri"]))
        except (httpx.InvalidURL, KeyError, TypeError):
            address = httpx.URL()
        # a service elsewhere has nothing to lend on this machine
        is_local = is_loopback(address.host) and is_loopback(self._rest.base.host)
        if address.userinfo or not (address.scheme == "https" or (address.scheme == "http" and is_local)):
            raise StoreRefused("Azure ML lends no address, or one that is not https")
        return address


def _split(path: str) -> tuple[str, str]:
    origin, container, *rest = path.split("/")
    return f"{origin}/{container}", "/".join(rest)
