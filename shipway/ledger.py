"""Who may change an environment now, and what was tried there.

Owns the lock and the records of attempts, whatever keeps them: a `Slot` holds the lock, and
`Records` the attempts. Here both are plain JSON files that are written whole; a target that
many machines share brings its own. Knows nothing of targets or stages. A process that is
killed leaves both behind: its lock is taken over at once on the same host and after its expiry
elsewhere, and its record is closed by whoever comes next. What is torn, or not ours, hides
nothing else.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from msgspec import Struct
from msgspec.structs import replace

from shipway import documents, proc
from shipway.console import Tell
from shipway.errors import LockHeld, LockLost, MachineRefused, ShipwayError

Outcome = Literal["released", "rolled back", "unchanged", "failed", "undone", "interrupted", "killed"]


def write(path: Path, text: str) -> None:
    """Replace a file whole: a reader, also after a crash, sees what was or what is, never a part.

    Raises `MachineRefused` that names the path and the bytes when they cannot be written.
    """
    with _whole(path, text) as temporary:
        temporary.replace(path)


@contextlib.contextmanager
def _whole(path: Path, text: str) -> Iterator[Path]:
    """Give a temporary file beside `path` that holds `text` for good."""
    data = text.encode()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except FileExistsError:
        raise
    except OSError as error:
        raise MachineRefused(f"{path} cannot be written ({len(data)} bytes): {error.strerror}") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


# -- the lock ------------------------------------------------------------------------------


class Holder(Struct, frozen=True, kw_only=True):
    """Who holds a lock. Times are seconds since 1970; `fence` only ever grows."""

    owner: str
    what: str
    host: str
    pid: int
    process: str | None
    since: float
    expires: float
    fence: int

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"{self.owner} on {self.host} (process {self.pid}), since {since}: {self.what}"


class Seen(Struct, frozen=True, kw_only=True):
    """A lock as it was read. `etag` is another after each change, and `None` where nothing was ever written."""

    holder: Holder | None
    etag: str | None


class Slot(Protocol):
    """Where one lock is kept. Whoever changes it must have seen the last change."""

    @property
    def shared(self) -> bool:
        """Whether other machines may hold it, one with our own's name among them."""

    @property
    def poll_s(self) -> float:
        """How often somebody who waits may look."""

    def read(self) -> Seen:
        """Return what is there; what cannot be understood is nobody."""

    def write(self, holder: Holder, seen: Seen) -> bool:
        """Replace what was `seen`, or return false because it is not what is there any more."""


class Lock:
    """A lease, renewed by a thread for as long as its holder runs."""

    def __init__(
        self, slot: Slot, *, lease_s: float, doubt_s: float = 0, clock: Callable[[], float] = time.time
    ) -> None:
        """Keep it in `slot`; a holder that does not renew for `lease_s` has lost it.

        Where clocks of several machines may differ, one that seems to have run out is watched
        for `doubt_s` before it is taken over: whoever renews it meanwhile lives.
        """
        self._slot = slot
        self._lease_s = lease_s
        self._doubt_s = doubt_s
        self._clock = clock
        self._mine: Holder | None = None

    @contextlib.contextmanager
    def acquire(self, *, owner: str, what: str, wait: bool, tell: Tell) -> Iterator[Self]:
        """Hold the lock; raise `LockHeld`, or with `wait` say for whom and wait."""
        ended = threading.Event()
        renewal = threading.Thread(target=self._keep, args=(ended,), name="lock", daemon=True)
        try:
            told = None
            while holder := self._take(owner, what, tell):
                if not wait:
                    raise LockHeld(f"the lock is held by {holder}")
                if holder.fence != told:
                    tell.say("rollout", f"waiting for {holder}")
                    told = holder.fence
                time.sleep(self._slot.poll_s)
            renewal.start()
            yield self
        finally:
            ended.set()
            self._drop(tell)

    def check(self) -> None:
        """Renew the lease, or raise `LockLost`: to be called before each change."""
        while True:
            seen, mine = self._slot.read(), self._mine
            holder = seen.holder
            if mine is None or holder is None or holder.fence != mine.fence:
                raise LockLost(f"the lock was lost to {holder}" if holder else "the lock is not held any more")
            if self._slot.write(replace(mine, expires=self._clock() + self._lease_s), seen):
                return

    def holder(self) -> Holder | None:
        """Return who holds the lock now."""
        holder = self._slot.read().holder
        return None if holder is None or self._over(holder) else holder

    def _take(self, owner: str, what: str, tell: Tell) -> Holder | None:
        """Take the lock and return `None`, or return who holds it."""
        mine: Holder | None = None
        while True:
            seen = self._slot.read()
            last, now = seen.holder, self._clock()
            if mine and last == mine:  # written, and the answer was lost
                self._mine = mine
                return None
            if last and (not self._over(last) or self._lives(last, seen)):
                return last
            mine = Holder(
                owner=owner,
                what=what,
                host=socket.gethostname(),
                pid=os.getpid(),
                process=proc.identity(os.getpid()),
                since=now,
                expires=now + self._lease_s,
                fence=max(last.fence + 1 if last else 0, int(now)),  # grows even if what was kept is gone
            )
            if self._slot.write(mine, seen):
                if last and last.expires:
                    tell.warn(f"taking over a lock whose holder is gone: {last}")
                self._mine = mine
                return None

    def _over(self, holder: Holder) -> bool:
        return holder.expires <= self._clock() or self._ended_here(holder)

    def _lives(self, holder: Holder, seen: Seen) -> bool:
        """Watch one that seems to have run out for a sign of life."""
        if not (self._doubt_s and holder.expires) or self._ended_here(holder):
            return False
        time.sleep(self._doubt_s)
        later = self._slot.read()
        return bool(later.etag != seen.etag and later.holder and later.holder.expires)

    def _ended_here(self, holder: Holder) -> bool:
        """Say whether it was a process of this machine, and has ended. Many machines may have one name."""
        is_here = proc.is_of_this_boot(holder.process) if self._slot.shared else holder.host == socket.gethostname()
        return is_here and proc.gone(holder.pid, holder.process)

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(self._lease_s / 3):
            try:
                self.check()
            except LockLost:
                return
            except (ShipwayError, OSError):
                continue  # a full disk may have room again; if not, the lease runs out

    def _drop(self, tell: Tell) -> None:
        mine, self._mine = self._mine, None
        if mine is None:
            return
        try:
            while (seen := self._slot.read()).holder and seen.holder and seen.holder.fence == mine.fence:
                if self._slot.write(replace(mine, expires=0), seen):
                    return
        except ShipwayError as error:  # no reason to fail: the next one sees that this process is gone
            tell.warn(f"the lock is left behind: {error.message}")


class FileSlot:
    """A lock in a folder: each change is a file of the next number, and whoever creates it has made the change.

    Nobody is kept out meanwhile, so a process that is suspended at any moment stops no other.
    """

    shared = False
    poll_s = 0.2

    def __init__(self, folder: Path) -> None:
        """Use `folder`."""
        self._changes = FileRecords(folder)

    def read(self) -> Seen:
        """See `Slot.read`; a torn or foreign file is nobody."""
        number, data = self._last()
        try:
            holder = documents.parse(Holder, data)
        except ValueError:
            holder = None
        return Seen(holder=holder, etag=str(number) if number else None)

    def write(self, holder: Holder, seen: Seen) -> bool:
        """See `Slot.write`."""
        number = int(seen.etag or 0) + 1
        if not self._changes.create(number, documents.text(holder)):
            return False
        there = self._changes.all()
        last = max(there)
        for each in there:
            if each < last:
                self._changes.delete(each)
        return last == number  # what came before the last change may be gone, and its number free again

    def _last(self) -> tuple[int, bytes]:
        """Return the last change; one that is gone before it was read was followed by another."""
        while True:
            number, data = max(self._changes.all().items(), default=(0, b""))
            if data or number == max(self._changes.all(), default=0):
                return number, data


# -- the records ---------------------------------------------------------------------------


class Record(Struct, frozen=True, kw_only=True):
    """One attempt. Times are seconds since 1970; `outcome` is `None` while it runs.

    `facts` are the caller's: `digest`, `build`, `commit`, `model`, `previous`, figures.
    """

    number: int
    kind: str
    who: str
    host: str
    pid: int
    process: str | None
    began: float
    seconds: float | None = None
    outcome: Outcome | None = None
    facts: Mapping[str, Any] = {}


class Records(Protocol):
    """Where the records of attempts are kept, as texts by number."""

    @property
    def shared(self) -> bool:
        """Whether machines that cannot see one another's processes write here."""

    def all(self) -> Mapping[int, bytes]:
        """Return everything, by ascending number; what cannot be read is empty."""

    def create(self, number: int, text: str) -> bool:
        """Write a new record, or return false because there is one of this number."""

    def replace(self, number: int, text: str) -> None:
        """Write a record anew, whole."""


class Ledger:
    """The attempts in one environment, a record each, never overwritten by another attempt."""

    def __init__(self, records: Records, *, clock: Callable[[], float] = time.time) -> None:
        """Keep them in `records`."""
        self._records = records
        self._clock = clock

    def begin(self, kind: str, *, who: str, **facts: Any) -> Attempt:
        """Record that an attempt begins, under the next free number."""
        record = Record(
            number=max(self._records.all(), default=0) + 1,
            kind=kind,
            who=who,
            host=socket.gethostname(),
            pid=os.getpid(),
            process=proc.identity(os.getpid()),
            began=self._clock(),
            facts=facts,
        )
        while not self._records.create(record.number, documents.text(record)):
            record = replace(record, number=record.number + 1)
        return Attempt(record, self._records, self._clock)

    def attempts(self) -> tuple[Record, ...]:
        """Return all records that can be read, oldest first."""
        return tuple(record for number, data in self._records.all().items() if (record := _parsed(number, data)))

    def close_dead(self) -> tuple[Record, ...]:
        """Close, as killed, the open attempts that nobody goes on with, and return them; the lock must be held.

        That is one whose process is gone. Of one elsewhere nothing is known, but where all
        machines share one lock, whoever holds it is alone.
        """
        dead = tuple(
            replace(record, outcome="killed")
            for record in self.attempts()
            if not record.outcome
            and (proc.gone(record.pid, record.process) if record.host == socket.gethostname() else self._records.shared)
        )
        for record in dead:
            self._records.replace(record.number, documents.text(record))
        return dead


class Attempt:
    """An attempt that runs; closed once, with what came of it."""

    def __init__(self, record: Record, records: Records, clock: Callable[[], float]) -> None:
        """Go on with a record that `Ledger.begin` has made."""
        self.record = record
        self._records = records
        self._clock = clock

    def note(self, **facts: Any) -> None:
        """Add facts as they become known."""
        self._write(replace(self.record, facts={**self.record.facts, **facts}))

    def close(self, outcome: Outcome, **facts: Any) -> Record:
        """Add the last facts and the outcome; return the record."""
        seconds = round(self._clock() - self.record.began, 3)
        self._write(replace(self.record, facts={**self.record.facts, **facts}, outcome=outcome, seconds=seconds))
        return self.record

    def _write(self, record: Record) -> None:
        self._records.replace(record.number, documents.text(record))
        self.record = record


class FileRecords:
    """Records in a folder, a file each."""

    shared = False

    def __init__(self, folder: Path) -> None:
        """Use `folder`."""
        self._folder = folder

    def all(self) -> dict[int, bytes]:
        """See `Records.all`."""
        numbers = sorted(int(path.stem) for path in self._folder.glob("*.json") if path.stem.isdecimal())
        return {number: self._read(number) for number in numbers}

    def create(self, number: int, text: str) -> bool:
        """See `Records.create`."""
        try:
            with _whole(self._path(number), text) as temporary:
                self._path(number).hardlink_to(temporary)
        except FileExistsError:
            return False
        return True

    def replace(self, number: int, text: str) -> None:
        """See `Records.replace`."""
        write(self._path(number), text)

    def delete(self, number: int) -> None:
        """Let a record be gone."""
        self._path(number).unlink(missing_ok=True)

    def _read(self, number: int) -> bytes:
        try:
            return self._path(number).read_bytes()
        except OSError:
            return b""

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:04}.json"


def _parsed(number: int, data: bytes) -> Record | None:
    try:
        record = documents.parse(Record, data)
    except ValueError:
        return None
    return record if record.number == number else None
