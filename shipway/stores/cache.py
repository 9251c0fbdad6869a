"""What was fetched from a store: under its hash, shared by several processes.

Owns the check of length and hash (each time: an SDK's success is no proof, and disks rot),
and folders made of links to what is here. Knows nothing of stores: it is given a source, and
fetches it in ranges. A file is here whole or not at all; the half of one that a dead process
left is a `.part`, and is gone on with. Raises `ModelCorrupt` when what comes is not what was
promised, and `ModelError` when the disk does not take it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from shipway.artifacts import ModelFile
from shipway.errors import ModelCorrupt, ModelError
from shipway.stores import durable, transfer
from shipway.stores.manifest import measured, set_digest
from shipway.stores.objects import Replaced
from shipway.stores.transfer import Part, Source, Unasked

_TRIES = 3


class Cache:
    """A folder of verified files."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self._blobs = folder / "sha256"
        self._folders = folder / "models"

    def find(self, file: ModelFile) -> Path | None:
        """Return a file that is here and whole; one that rotted is removed."""
        path = self._blobs / file.digest.hex
        with contextlib.suppress(FileNotFoundError):
            if _is_whole(path, file):
                return path
            path.unlink()
        return None

    def fetch(self, file: ModelFile, source: Source, advance: Callable[[int], None]) -> Path:
        """Return the verified file, fetching what is missing of it."""
        path = self._blobs / file.digest.hex
        part = path.with_suffix(".part")
        if self.find(file):
            advance(file.size_bytes)
            return path
        with _disk(part, file.size_bytes):
            self._blobs.mkdir(parents=True, exist_ok=True)
            with durable.locked(part, create=True) as written:
                if self.find(file):  # somebody else fetched it while we waited
                    part.unlink()
                    return path
                _fill(written, file, source, advance)
                durable.sync(written)
                part.rename(path)
                path.chmod(0o444)  # last: a part that is read-only could not be gone on with
            durable.sync_folder(self._blobs)
        return path

    def folder(self, blobs: Mapping[ModelFile, Path]) -> Path:
        """Return a folder that holds exactly these files, as links to the verified ones."""
        target = self._folders / set_digest(blobs).hex
        with _disk(target, 0):
            self._folders.mkdir(parents=True, exist_ok=True)
            while not _is_made_of(target, blobs):
                _make(target, blobs)
        return target


def _fill(written: BinaryIO, file: ModelFile, source: Source, advance: Callable[[int], None]) -> None:
    """Go on with what is there; begin anew, a few times, when it turns out to be wrong."""
    trouble = ""
    for _ in range(_TRIES):
        part = Part(written, file.size_bytes)
        advance(part.held_bytes)
        try:
            etag = _etag(file, source) if part.count > 1 else None
            if transfer.fill(part, source, etag=etag, advance=advance) == file.digest.hex:
                part.finish()
                return
            trouble = f"the bytes that came are not those of {file.digest}"
        except (Replaced, Unasked) as error:
            trouble = error.message
        advance(-part.held_bytes)
        written.truncate(0)
    raise ModelCorrupt(f"{file.path}: {trouble}")


def _etag(file: ModelFile, source: Source) -> str | None:
    found = source.find()
    if found and found.size_bytes != file.size_bytes:
        raise ModelCorrupt(f"{file.path}: the store holds {found.size_bytes:,} of {file.size_bytes:,} bytes")
    return found.etag if found else None


def _is_whole(path: Path, file: ModelFile) -> bool:
    size_bytes = path.stat(follow_symlinks=False).st_size
    return size_bytes == file.size_bytes and measured(durable.read(path)) == (file.digest, size_bytes)


def _make(target: Path, blobs: Mapping[ModelFile, Path]) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        for file, blob in blobs.items():
            (new / file.path).parent.mkdir(parents=True, exist_ok=True)
            os.link(blob, new / file.path)
        try:
            new.rename(target)
        except OSError:
            if not _is_made_of(target, blobs):  # a spoiled one, not that of another process
                target.rename(Path(scratch) / "old")


def _is_made_of(folder: Path, blobs: Mapping[ModelFile, Path]) -> bool:
    if not folder.is_dir():
        return False
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    return found == {file.path for file in blobs} and all(
        os.path.samestat((folder / file.path).stat(follow_symlinks=False), blob.stat()) for file, blob in blobs.items()
    )


@contextlib.contextmanager
def _disk(path: Path, size_bytes: int) -> Iterator[None]:
    """Tell where and for how much the disk was too small; leave no part of a file behind."""
    try:
        yield
    except OSError as error:
        if path.suffix == ".part":
            path.unlink(missing_ok=True)
        free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
        raise ModelError(
            f"cannot write {path} ({size_bytes:,} bytes, {free:,} are free): {error.strerror}",
            advice="make room, then run the same command again",
        ) from error
