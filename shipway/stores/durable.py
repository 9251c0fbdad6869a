"""Files that several processes share: written whole or not at all, and locked.

Owns the order that makes it so: a temporary file in the same folder, fsync, link or rename,
fsync of the folder. Knows nothing of what is written. On failure the temporary file is
removed; one left by a killed process is hidden, and swept by the next writer a day later.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 1 << 20
_TEMPORARY = ".new-"
_STALE_S = 86_400


def write(path: Path, pieces: Iterable[bytes], *, replace: bool) -> bool:
    """Write a file; `False` when it exists and may not be replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_in(path.parent)
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            sync(file)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def temporary_in(folder: Path) -> Path:
    """Return a hidden name that nobody else uses, after sweeping what the dead left behind."""
    for stale in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > _STALE_S:
                stale.unlink()
    return folder / f"{_TEMPORARY}{secrets.token_hex(8)}"


def read(
    path: Path, *, start: int = 0, stop: int | None = None, unless: Callable[[os.stat_result], None] | None = None
) -> Iterator[bytes]:
    """Yield a regular file's bytes from `start` to before `stop`, in pieces; a symbolic link is an `OSError`.

    `unless` sees what was opened, and may raise.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        if unless:
            unless(os.fstat(file.fileno()))
        at = file.seek(start)
        while piece := file.read(PIECE_BYTES if stop is None else min(PIECE_BYTES, max(0, stop - at))):
            at += len(piece)
            yield piece


@contextlib.contextmanager
def locked(path: Path, *, create: bool) -> Iterator[BinaryIO]:
    """Open a file to read and write, and hold its lock; the kernel frees a dead holder's.

    Whoever waited gets the file that bears the name then, not the one that was renamed away.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        with os.fdopen(os.open(path, flags, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_named(file, path):
                yield file
                return


def sync(file: BinaryIO) -> None:
    """Bring a file's bytes to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_named(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
