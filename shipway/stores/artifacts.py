"""Files that an MLflow server hands out and takes, by their paths below its artifact root.

Owns the proxied artifacts' part of the API: ranges where the server knows them, and one
stream into a temporary file where it does not, out of which the ranges are given then. Knows
nothing of versions. Nobody trusts what `stream` gives: the caller checks length and hash.
https://mlflow.org/docs/latest/self-hosting/architecture/artifact-store/
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import urllib.parse
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from http import HTTPStatus
from typing import IO, Protocol

import httpx
from msgspec import Struct

from shipway.errors import ModelMissing, StoreRefused, StoreUnreachable
from shipway.stores import durable
from shipway.stores.objects import Found, Replaced
from shipway.stores.patience import Passing, persist, resumed
from shipway.stores.rest import Rest
from shipway.stores.transfer import at_most

_API = "/api/2.0/mlflow-artifacts/artifacts"
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
ALSO = frozenset({int(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)})


class Child(Struct, frozen=True, kw_only=True):
    """An artifact in a folder; `size_bytes` where the server says it."""

    name: str
    is_folder: bool
    size_bytes: int | None


class Artifacts(Protocol):
    """Where a server keeps files, by paths that `place` makes of its addresses."""

    def place(self, uri: str) -> str:
        """Return the path of an address. Raises `StoreRefused` for one that this server does not serve."""

    def find(self, path: str) -> Found | None:
        """See `Store.find`."""

    def stream(self, path: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""

    def put(self, path: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """See `Store.put`."""

    def children(self, path: str) -> list[Child]:
        """Return what is directly in a folder."""

    def delete(self, path: str) -> None:
        """See `Store.delete`."""


class Artifact(Struct, frozen=True):
    """One file of a server's."""

    artifacts: Artifacts
    path: str

    def __str__(self) -> str:
        return self.path

    def find(self) -> Found | None:
        """See `Store.find`."""
        return self.artifacts.find(self.path)

    def stream(self, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""
        return self.artifacts.stream(self.path, start=start, stop=stop, etag=etag)


class Proxied:
    """`Artifacts` of a server that was started to serve them, as `mlflow server` is."""

    def __init__(self, rest: Rest) -> None:
        """Take the way to the server."""
        self._rest = rest
        self._lock = threading.Lock()
        self._spooled: dict[str, IO[bytes]] = {}
        self._found: dict[str, Found] = {}
        weakref.finalize(self, _close, self._spooled)

    def place(self, uri: str) -> str:
        """See `Artifacts.place`."""
        parsed = urllib.parse.urlsplit(uri)
        path = parsed.path
        if parsed.scheme in {"http", "https"}:
            served, _, path = path.partition(f"{_API}/")
            is_ours = (parsed.scheme, served) == (self._rest.base.scheme, self._rest.base.path.rstrip("/"))
        else:
            is_ours = parsed.scheme == "mlflow-artifacts"
        own = {"", self._rest.base.host, self._rest.base.netloc.decode("ascii")}
        parts = path.strip("/").split("/")
        if not is_ours or parsed.netloc not in own or any(part in {"", ".", ".."} for part in parts):
            raise StoreRefused(
                f"{self._rest.base}: the files are at {uri[:300]!a}, which this server does not hand out",
                advice="start it with --artifacts-destination, so that it serves artifacts itself",
            )
        return "/".join(parts)

    def find(self, path: str) -> Found | None:
        """See `Store.find`; asks for one byte, since the server answers no HEAD."""
        return persist(self._rest.clock, lambda _again: self._find(path))

    def stream(self, path: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""
        return resumed(self._rest.clock, partial(self._stream, path, stop, etag), start)

    def put(self, path: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """See `Store.put`; one stream, because the server's own API of parts is not for every storage."""
        with self._lock:
            self._spooled.pop(path, None)
            self._found.pop(path, None)
        if isinstance(pieces, list):  # small, and known whole: it can be sent again
            persist(self._rest.clock, lambda _again: self._rest.send(_url(path), pieces, size_bytes=size_bytes))
            return
        try:
            self._rest.send(_url(path), pieces, size_bytes=size_bytes)
        except Passing as fault:
            raise StoreUnreachable(f"{fault}, in the middle of {size_bytes:,} bytes") from fault

    def children(self, path: str) -> list[Child]:
        """See `Artifacts.children`."""
        told = self._rest.ask("GET", _API, query={"path": path}) or {}
        return [
            Child(
                name=str(each["path"]).rpartition("/")[2],
                is_folder=bool(each.get("is_dir")),
                size_bytes=int(each["file_size"]) if "file_size" in each else None,
            )
            for each in told.get("files", [])
        ]

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        self._rest.ask("DELETE", _url(path))

    def _find(self, path: str) -> Found | None:
        with self._rest.opened("GET", _url(path), headers={"Range": "bytes=0-0"}, also=ALSO) as response:
            if response is None:
                return None
            size_bytes, etag = whole_bytes(response), response.headers.get("etag", "")
        if size_bytes is None:
            folder, _, name = path.rpartition("/")
            size_bytes = next((each.size_bytes for each in self.children(folder) if each.name == name), None)
        if size_bytes is None:
            return None
        found = self._found[path] = Found(size_bytes=size_bytes, etag=etag)
        return found

    def _stream(self, path: str, stop: int, etag: str | None, start: int) -> Iterator[bytes]:
        if start >= stop:
            return
        with self._lock:
            spooled = self._spooled.get(path)
        if spooled is not None:
            yield from _pieces(spooled, start, stop)
            return
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        with self._rest.opened("GET", _url(path), headers=headers, also=ALSO) as response:
            if response is None:
                raise ModelMissing(f"there is no artifact {path}")
            if response.status_code != HTTPStatus.OK:
                yield from ranged(path, response, start=start, etag=etag)
                return
            _require_tag(path, response, etag)
            if start == 0:  # the server knows no ranges: what is wanted comes first
                yield from _until(stop, response.iter_raw())
                return
        yield from _pieces(self._spool(path), start, stop)

    def _spool(self, path: str) -> IO[bytes]:
        """Fetch a file whole, once for all its ranges: the server gives none. Raises `Unasked`."""
        with self._lock:
            if path not in self._spooled:
                found = self._found.get(path) or self._find(path)
                with contextlib.ExitStack() as begun, self._rest.opened("GET", _url(path)) as response:
                    if response is None:
                        raise ModelMissing(f"there is no artifact {path}")
                    file = begun.enter_context(tempfile.TemporaryFile())
                    file.writelines(at_most(found.size_bytes if found else 0, response.iter_raw(), path))
                    file.flush()
                    begun.pop_all()  # it lives as long as this does
                self._spooled[path] = file
            return self._spooled[path]


def ranged(path: str, response: httpx.Response, *, start: int, etag: str | None) -> Iterator[bytes]:
    """Yield a range that was asked for, if it is that. Raises `Replaced`, and `Passing` for another one."""
    if response.status_code in ALSO:
        return  # nothing is there any more
    _require_tag(path, response, etag)
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None or match[1] is None or int(match[1]) != start:
        raise Passing(f"{path}: another range came than was asked for")
    came, said = 0, int(match[2]) + 1 - start
    for piece in response.iter_raw():
        yield piece
        came += len(piece)
    if came < said:
        raise Passing(f"{path}: {came:,} of {said:,} bytes came")


def whole_bytes(response: httpx.Response) -> int | None:
    """Return the size of the whole file, where an answer says it."""
    if match := _RANGE.fullmatch(response.headers.get("content-range", "")):
        return int(match[3])
    length = response.headers.get("content-length", "")
    return int(length) if response.status_code == HTTPStatus.OK and length.isdecimal() else None


def _require_tag(path: str, response: httpx.Response, etag: str | None) -> None:
    if etag and response.headers.get("etag", "") != etag:
        raise Replaced(f"{path} was replaced")


def _close(spooled: dict[str, IO[bytes]]) -> None:
    for file in spooled.values():
        file.close()


def _pieces(file: IO[bytes], start: int, stop: int) -> Iterator[bytes]:
    while start < stop and (piece := os.pread(file.fileno(), min(durable.PIECE_BYTES, stop - start), start)):
        yield piece
        start += len(piece)


def _until(stop: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    at = 0
    for piece in pieces:
        yield piece[: stop - at]
        at += len(piece)
        if at >= stop:
            return


def _url(path: str) -> str:
    return f"{_API}/{urllib.parse.quote(path)}"
