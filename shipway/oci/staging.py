"""Temporary folders that no killed process leaves behind, and locks that die with their holder.

Owns the way from "half" to "whole": what is made in a staging folder becomes visible by one
rename. The folder is locked by the process that made it, so the next one can tell the dead
ones' from the living ones', and sweeps them. Knows nothing of images.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shipway.errors import PushError, ShipwayError


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Give a fresh folder below `parent`, on its file system, that is gone afterwards."""
    with _place(parent) as place:
        _sweep(place)
        folder = Path(tempfile.mkdtemp(dir=place))
        owner = contextlib.ExitStack()
        owner.enter_context(locked(folder))
    with owner:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove the staging folders below `parent` whose owners are dead."""
    with _place(parent) as place:
        _sweep(place)


@contextlib.contextmanager
def _place(parent: Path) -> Iterator[Path]:
    """Give the folder of staging folders, while nobody else makes or sweeps any."""
    place = parent / ".staging"
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / "folders.lock"):
        yield place


def _sweep(place: Path) -> None:
    for folder in place.glob("tmp*"):
        # A living owner keeps it locked, or is just removing it.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), locked(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a folder, or on a `.lock` file, made for it; it ends with the process.

    Raises `BlockingIOError` when another holds it and `wait` is false.
    """
    flags = os.O_RDONLY | (os.O_CREAT if path.suffix == ".lock" else 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path, size_bytes: int, error: type[ShipwayError] = PushError) -> Iterator[None]:
    """Turn a failed write into an error that names the path and the bytes it needed."""
    try:
        yield
    except OSError as failed:
        message = f"cannot write {path} ({size_bytes} bytes): {failed.strerror or failed}"
        full = failed.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        raise error(message, advice="make room on that disk, then run again" if full else "") from failed


def write_whole(path: Path, data: bytes, error: type[ShipwayError] = PushError) -> None:
    """Replace `path` by `data` in one step that survives a crash."""
    with writing(path, len(data), error), staging(path.parent) as folder:
        fresh = folder / path.name
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
