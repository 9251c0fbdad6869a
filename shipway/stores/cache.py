"""What was fetched from a store: under its hash, shared by several processes.

Owns the check of length and hash (each time: an SDK's success is no proof, and disks rot),
and folders made of links to what is here. Knows nothing of stores: it is given a source, and
fetches it in ranges. A file is here whole or not at all; the half of one that a dead process
left is a `.part`, and is gone on with. Beyond its limit the cache gives up what was used least
recently, and nothing that a living process uses. Raises `ModelCorrupt` when what comes is not
what was promised, and `ModelError` when the disk does not take it.
"""

from __future__ import annotations

import contextlib
import errno
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
from shipway.stores.uses import Uses, uses_of

_TRIES = 3


class Cache:
    """A folder of verified files."""

    def __init__(self, folder: Path, *, limit_bytes: int | None = None, uses: Uses | None = None) -> None:
        """Name the folder; beyond `limit_bytes` nothing is kept that nobody uses."""
        self._blobs = folder / "sha256"
        self._folders = folder / "models"
        self._limit_bytes = limit_bytes
        self._uses = uses or uses_of(folder.absolute() / "uses")

    def find(self, file: ModelFile) -> Path | None:
        """Return a file that is here and whole; one that rotted is removed."""
        path = self._blobs / file.digest.hex
        with contextlib.suppress(FileNotFoundError):
            path.stat()
            self._use(path)
            if _is_whole(path, file):
                with contextlib.suppress(OSError):  # another user's, who shares the cache, or one that is read-only
                    os.utime(path)
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
            self._uses.add(path.name)
            with durable.locked(part, create=True) as written:
                if self.find(file):  # somebody else fetched it while we waited
                    part.unlink()
                    return path
                self._make_room(file.size_bytes)
                _fill(written, file, source, advance)
                durable.sync(written)
                part.rename(path)
                path.chmod(0o444)  # last: a part that is read-only could not be gone on with
            durable.sync_folder(self._blobs)
        return path

    def _use(self, path: Path) -> None:
        """Tell that a file is in use, unless nobody can remove it anyway."""
        try:
            self._uses.add(path.name)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise

    def _make_room(self, size_bytes: int) -> None:
        """Remove what was used least recently until so much more fits, as far as nobody uses it."""
        if self._limit_bytes is None:
            return
        with self._uses.alone():
            used = self._uses.all()
            held = dict(_found(self._blobs))
            spare = [path for path in sorted(held, key=lambda path: held[path].st_mtime) if path.stem not in used]
            too_many = sum(map(_on_disk, held.values())) + size_bytes - self._limit_bytes
            while too_many > 0 and spare:
                path = spare.pop(0)
                too_many -= _on_disk(held[path])
                self._remove(path, held[path])

    def _remove(self, path: Path, found: os.stat_result) -> None:
        """Remove a file, and the folders that hold it."""
        for folder in list(self._folders.iterdir()) if found.st_nlink > 1 else []:
            with contextlib.suppress(FileNotFoundError):  # another process' folder, which is in the making or going
                if any(os.path.samestat(inside.stat(follow_symlinks=False), found) for inside in folder.rglob("*")):
                    with tempfile.TemporaryDirectory(prefix=".old-", dir=self._folders) as scratch:
                        folder.rename(Path(scratch) / "old")  # first, so that nobody meets half of it
        path.unlink(missing_ok=True)

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


def _found(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process, which uses it, gave it its last name
            yield path, path.stat()


def _on_disk(found: os.stat_result) -> int:
    return found.st_blocks * 512  # a file on its way has holes; POSIX counts in 512 whatever the disk does


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
