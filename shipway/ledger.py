"""Who may change an environment now, and what was tried there.

Owns the lock and the records of attempts: plain JSON files that are replaced whole. Knows
nothing of targets or stages. A process that is killed leaves both behind: its lock is taken
over at once on the same host and after its expiry elsewhere, and its record is closed by
whoever comes next. A file that is torn, or not ours, hides nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from shipway import proc
from shipway.console import Tell
from shipway.errors import LockHeld, LockLost, ShipwayError

Outcome = Literal["released", "rolled back", "unchanged", "failed", "undone", "interrupted", "killed"]

_POLL_S = 0.2


def write(path: Path, text: str) -> None:
    """Replace a file whole: a reader, also after a crash, sees what was or what is, never a part.

    Raises `ShipwayError` that names the path and the bytes when they cannot be written.
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
        raise ShipwayError(
            f"{path} cannot be written ({len(data)} bytes): {error.strerror}",
            advice="make room on the disk, or make the folder writable, then run the same command again",
        ) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


# -- the lock ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
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


class Lock:
    """A lease in a file, renewed by a thread for as long as its holder runs."""

    def __init__(self, file: Path, *, lease_s: float, clock: Callable[[], float] = time.time) -> None:
        """Use `file`; a holder that does not renew for `lease_s` has lost it."""
        self._file = file
        self._lease_s = lease_s
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
                time.sleep(_POLL_S)
            renewal.start()
            yield self
        finally:
            ended.set()
            self._drop(tell)

    def check(self) -> None:
        """Renew the lease, or raise `LockLost`: to be called before each change."""
        with self._guard():
            holder, mine = self._read(), self._mine
            if mine is None or holder is None or holder.fence != mine.fence:
                raise LockLost(f"the lock was lost to {holder}" if holder else "the lock is not held any more")
            self._record(replace(mine, expires=self._clock() + self._lease_s))

    def holder(self) -> Holder | None:
        """Return who holds the lock now."""
        holder = self._read()
        return None if holder is None or self._over(holder) else holder

    def _take(self, owner: str, what: str, tell: Tell) -> Holder | None:
        """Take the lock and return `None`, or return who holds it."""
        with self._guard():
            last, now = self._read(), self._clock()
            if last and not self._over(last):
                return last
            if last and last.expires:
                tell.warn(f"taking over a lock whose holder is gone: {last}")
            self._mine = Holder(
                owner=owner,
                what=what,
                host=socket.gethostname(),
                pid=os.getpid(),
                process=proc.identity(os.getpid()),
                since=now,
                expires=now + self._lease_s,
                fence=max(last.fence + 1 if last else 0, int(now)),  # grows even if the file was deleted
            )
            self._record(self._mine)
            return None

    def _over(self, holder: Holder) -> bool:
        if holder.expires <= self._clock():
            return True
        return holder.host == socket.gethostname() and proc.gone(holder.pid, holder.process)

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(self._lease_s / 3):
            try:
                self.check()
            except LockLost:
                return
            except (ShipwayError, OSError):
                continue  # a full disk may have room again; if not, the lease runs out

    def _drop(self, tell: Tell) -> None:
        with self._guard():
            holder, mine, self._mine = self._read(), self._mine, None
            if mine and holder and holder.fence == mine.fence:
                try:
                    self._record(replace(mine, expires=0))
                except ShipwayError as error:  # no reason to fail: the next one sees that this process is gone
                    tell.warn(f"the lock is left behind: {error.message}")

    def _read(self) -> Holder | None:
        try:
            return TypeAdapter(Holder).validate_json(self._file.read_bytes())
        except (OSError, ValueError):
            return None

    def _record(self, holder: Holder) -> None:
        write(self._file, json.dumps(asdict(holder), indent=1) + "\n")

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Exclude all others for the moment that reading and writing takes."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(".guard").open("ab") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield


# -- the records ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
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
    facts: Mapping[str, Any] = field(default_factory=dict)


class Ledger:
    """The attempts in one environment, a file each, never overwritten by another attempt."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Keep the records in `folder`."""
        self._folder = folder
        self._clock = clock

    def begin(self, kind: str, *, who: str, **facts: Any) -> Attempt:
        """Record that an attempt begins, under the next free number."""
        record = Record(
            number=max((int(path.stem) for path in self._files()), default=0) + 1,
            kind=kind,
            who=who,
            host=socket.gethostname(),
            pid=os.getpid(),
            process=proc.identity(os.getpid()),
            began=self._clock(),
            facts=facts,
        )
        while True:
            path = self._path(record.number)
            with contextlib.suppress(FileExistsError), _whole(path, _text(record)) as temporary:
                path.hardlink_to(temporary)
                return Attempt(record, path, self._clock)
            record = replace(record, number=record.number + 1)

    def attempts(self) -> tuple[Record, ...]:
        """Return all records that can be read, oldest first."""
        return tuple(record for path in self._files() if (record := _parsed(path)))

    def close_dead(self) -> tuple[Record, ...]:
        """Close, as killed, the open attempts whose process is gone; return them."""
        dead = tuple(
            replace(record, outcome="killed")
            for record in self.attempts()
            if not record.outcome and record.host == socket.gethostname() and proc.gone(record.pid, record.process)
        )
        for record in dead:
            write(self._path(record.number), _text(record))
        return dead

    def _files(self) -> list[Path]:
        return sorted(
            (path for path in self._folder.glob("*.json") if path.stem.isdecimal()), key=lambda path: int(path.stem)
        )

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:04}.json"


class Attempt:
    """An attempt that runs; closed once, with what came of it."""

    def __init__(self, record: Record, path: Path, clock: Callable[[], float]) -> None:
        """Go on with a record that `Ledger.begin` has made."""
        self.record = record
        self._path = path
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
        write(self._path, _text(record))
        self.record = record


def _text(record: Record) -> str:
    return json.dumps(asdict(record), indent=1) + "\n"


def _parsed(path: Path) -> Record | None:
    try:
        record = TypeAdapter(Record).validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if record.number == int(path.stem) else None
