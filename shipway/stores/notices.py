"""Who is about to need what, and who is about to delete what, so that neither harms the other.

Whoever publishes, copies or promotes first writes a notice that names the files and versions
it counts on, and only then looks whether somebody deletes them; if so it waits. Whoever
deletes first writes a notice that names what shall go, and only then looks at everything
once more. One of the two always sees the other, however long either is held up. A notice is
removed when its work is done. One that a dead process left counts for nothing: on the same
machine at once; elsewhere a sweep's after an hour, and it stops itself after half of that, so
that clocks may differ by as much; a publisher's after two days.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Literal

from shipway import documents, proc
from shipway.artifacts import Digest
from shipway.documents import Document, Malformed
from shipway.errors import ModelCorrupt, ModelError, ModelInUse
from shipway.stores.manifest import Moment
from shipway.stores.objects import Store

Folder = Literal["pending", "sweeps"]
SWEEP_LIMIT = timedelta(minutes=30)
_SILENT: Mapping[Folder, timedelta] = {"pending": timedelta(days=2), "sweeps": 2 * SWEEP_LIMIT}
_TRIES, _PAUSE_S = 60, 1.0


class Notice(Document, frozen=True, kw_only=True):
    """What a process is about to need (`pending`) or to delete (`sweeps`); files by their digests."""

    who: str
    host: str
    pid: int
    process: str | None
    when: Moment
    files: frozenset[str] = frozenset()
    versions: frozenset[int] = frozenset()

    def meets(self, other: Notice) -> bool:
        """Whether both name a file or a version."""
        return bool(self.files & other.files or self.versions & other.versions)

    def is_dead(self, folder: Folder, now: datetime) -> bool:
        """Whether nobody goes on with this."""
        return now - self.when > _SILENT[folder] or (self._is_of_here() and proc.gone(self.pid, self.process))

    def _is_of_here(self) -> bool:
        """Whether this machine wrote it, since it was booted: a host's name alone may be that of many."""
        mine, theirs = (proc.identity(os.getpid()) or "").split("/"), (self.process or "").split("/")
        return (
            self.host == socket.gethostname() and len(mine) == len(theirs) and (len(mine) == 1 or mine[0] == theirs[0])
        )

    def __str__(self) -> str:
        return f"{self.who} on {self.host} since {self.when:%Y-%m-%d %H:%M:%S} UTC"


def written_by(who: str, now: datetime, *, files: Collection[Digest] = (), versions: Collection[int] = ()) -> Notice:
    """Return a notice of this process."""
    return Notice(
        who=who,
        host=socket.gethostname(),
        pid=os.getpid(),
        process=proc.identity(os.getpid()),
        when=now,
        files=frozenset(map(str, files)),
        versions=frozenset(versions),
    )


@contextlib.contextmanager
def posted(store: Store, name: str, folder: Folder, notice: Notice) -> Iterator[str]:
    """Let a notice stand for the body; give its key."""
    key = f"{name}/{folder}/{secrets.token_hex(8)}.json"
    store.create(key, documents.encoded(notice))
    try:
        yield key
    finally:
        try:
            store.delete(key)
        except ModelError:
            if folder != "pending":  # a publisher's that stays keeps its files for two days: no reason to fail
                raise


def standing(store: Store, name: str, folder: Folder) -> dict[str, Notice]:
    """Return the notices of a folder by their keys; raises `ModelCorrupt` for one that does not say what it is."""
    keys = [f"{name}/{folder}/{child}" for child in store.children(f"{name}/{folder}") if child.endswith(".json")]
    return {key: _parsed(stored.data, f"{store}/{key}") for key in keys if (stored := store.read(key))}


@contextlib.contextmanager
def announced(
    store: Store, name: str, notice: Notice, *, now: Callable[[], datetime], pause: Callable[[float], None]
) -> Iterator[None]:
    """Say what is needed for the body, and wait until nobody deletes any of it; raises `ModelInUse`."""
    with posted(store, name, "pending", notice):
        for turn in range(_TRIES + 1):
            sweeps = [(key, sweep) for key, sweep in standing(store, name, "sweeps").items() if sweep.meets(notice)]
            if not (in_the_way := [each for each in sweeps if not each[1].is_dead("sweeps", now())]):
                break
            if turn == _TRIES:
                key, sweep = in_the_way[0]
                raise ModelInUse(f"what this needs of {name} in {store} is being deleted by {sweep} ({key})")
            pause(_PAUSE_S)
        yield


def _parsed(data: bytes, where: str) -> Notice:
    try:
        return documents.parse(Notice, data)
    except Malformed as error:
        raise ModelCorrupt(
            f"{where} does not say who needs or deletes what", advice="delete it once nobody is at work there"
        ) from error
