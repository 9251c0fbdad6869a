"""Deterministic tar streams: what every layer is made of.

The same entries give the same bytes on every machine: sorted paths, explicit parent
folders, owner 0, modes 0644 or 0755, one fixed time, PAX headers only where a field does
not fit. Shared by the stores (which must know a model's layer when it is published) and by
the layers. Reads no folder itself: entries bring their own bytes.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from msgspec import Struct

MTIME_S = 315_532_800  # 1980-01-01, the earliest time that zip files can hold
_BLOCK = 512
_RECORD = 20 * _BLOCK


class Entry(Struct, frozen=True, kw_only=True):
    """One file (or, with `link`, one symbolic link) at a relative POSIX path.

    `read` gives exactly `size_bytes` bytes, in pieces.
    """

    path: str
    size_bytes: int = 0
    read: Callable[[], Iterable[bytes]] = tuple
    executable: bool = False
    link: str | None = None


def stream(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the tar of `entries`, in pieces.

    Raises `ValueError` for a path that is absolute, holds `..` or stands twice, and for an
    entry whose bytes are not as many as it said.
    """
    total = 0
    for entry in _with_parents(entries):
        yield (header := _header(entry))
        total += len(header)
        if isinstance(entry, str) or entry.link is not None:
            continue
        sent = 0
        for piece in entry.read():
            sent += len(piece)
            if sent > entry.size_bytes:
                break
            yield piece
        if sent != entry.size_bytes:
            message = f"{entry.path}: said {entry.size_bytes} bytes, gave {'more' if sent > entry.size_bytes else sent}"
            raise ValueError(message)
        yield (padding := b"\0" * (-sent % _BLOCK))
        total += sent + len(padding)
    yield b"\0" * (2 * _BLOCK + -(total + 2 * _BLOCK) % _RECORD)


def _with_parents(entries: Iterable[Entry]) -> Iterator[str | Entry]:
    """Yield folders (as strings) and entries, each folder once and before what it holds."""
    files: dict[str, Entry] = {}
    for entry in entries:
        _check(entry.path)
        if entry.path in files:
            message = f"{entry.path}: stands twice"
            raise ValueError(message)
        files[entry.path] = entry
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    if both := folders & files.keys():
        message = f"{min(both)}: is a file and a folder"
        raise ValueError(message)
    for path in sorted(folders | files.keys(), key=lambda path: path.split("/")):
        yield files.get(path, path)


def _check(path: str) -> None:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path or str(pure) != path or path == ".":
        message = f"{path!r}: not a plain relative path"
        raise ValueError(message)


def _header(entry: str | Entry) -> bytes:
    info = tarfile.TarInfo(entry if isinstance(entry, str) else entry.path)
    info.mtime = MTIME_S
    if isinstance(entry, str):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    elif entry.link is not None:
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, entry.link
    else:
        info.mode, info.size = (0o755 if entry.executable else 0o644), entry.size_bytes
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def collect(entries: Iterable[Entry]) -> bytes:
    """Return the whole tar, for small ones."""
    buffer = io.BytesIO()
    for piece in stream(entries):
        buffer.write(piece)
    return buffer.getvalue()


def link_stays_inside(path: str, target: str, folder: str = ".") -> bool:
    """Tell whether a symbolic link at `path` can lead only to places inside `folder`.

    `..` is accepted at the start of the target alone: after a name it would climb from
    wherever that name leads, should it be a link itself.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    names = list(itertools.dropwhile(lambda part: part == "..", parts))
    depth = len(PurePosixPath(path).relative_to(folder).parts) - 1
    return not target.startswith("/") and "\0" not in target and ".." not in names and len(parts) - len(names) <= depth
