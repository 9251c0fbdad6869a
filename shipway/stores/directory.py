"""A directory as a store: on a laptop, in a repository, on a shared disk.

Owns the mapping of keys to files. Creation is a hard link, which fails when the name is
taken; replacement holds the file's own lock. Knows nothing of models. A key that would leave
the directory is a `ValueError`; symbolic links to objects are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from shipway.errors import ModelError, ModelMissing
from shipway.stores import durable
from shipway.stores.objects import SMALL_BYTES, Found, Replaced, Stored, small


class Directory:
    """A `Store` in a folder, which comes into being with the first object."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def read(self, key: str) -> Stored | None:
        """See `Store.read`."""
        path = self._path(key)
        try:
            with _translated("read", path):
                return _stored(small(durable.read(path), str(path)))
        except ModelMissing:
            return None

    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""
        with _translated("write", self._path(key), len(data)):
            return durable.write(self._path(key), [data], replace=False)

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        """See `Store.replace`."""
        path = self._path(key)
        try:
            with _translated("write", path, len(data)), durable.locked(path, create=False) as file:
                return _stored(file.read(SMALL_BYTES + 1)).etag == etag and durable.write(path, [data], replace=True)
        except ModelMissing:
            return False

    def find(self, key: str) -> Found | None:
        """See `Store.find`."""
        try:
            with _translated("read", self._path(key)):
                found = self._path(key).stat(follow_symlinks=False)
        except ModelMissing:
            return None
        return Found(size_bytes=found.st_size, etag=_tag(found))

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """See `Store.put`."""
        with _translated("write", self._path(key), size_bytes):
            durable.write(self._path(key), pieces, replace=True)

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""
        path = self._path(key)
        with _translated("read", path):
            yield from durable.read(path, start=start, stop=stop, unless=partial(_require, path, etag))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        with contextlib.suppress(ModelMissing), _translated("delete", path):
            path.unlink()
            durable.sync_folder(path.parent)

    def children(self, folder: str) -> list[str]:
        """See `Store.children`; hidden names are not ours."""
        path = self._path(folder) if folder else self._folder
        try:
            with _translated("read", path):
                return [child.name for child in path.iterdir() if not child.name.startswith(".")]
        except ModelMissing:
            return []

    def _path(self, key: str) -> Path:
        if any(part in {"", ".", ".."} or "\0" in part for part in key.split("/")):
            message = f"not a key: {key!r}"
            raise ValueError(message)
        return self._folder / key


def _tag(found: os.stat_result) -> str:
    """Return a large object's tag: files are replaced here, never written to."""
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def _require(path: Path, etag: str | None, opened: os.stat_result) -> None:
    if etag is not None and _tag(opened) != etag:
        raise Replaced(f"{path} was replaced while it was read")


def _stored(data: bytes) -> Stored:
    return Stored(data=data, etag=hashlib.sha256(data).hexdigest())


@contextlib.contextmanager
def _translated(what: str, path: Path, size_bytes: int | None = None) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelMissing(f"there is no {path}") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ModelError(f"{path} is a symbolic link, which a store may not hold") from error
        amount = "" if size_bytes is None else f" ({size_bytes:,} bytes)"
        raise ModelError(f"cannot {what} {path}{amount}: {error.strerror}") from error
