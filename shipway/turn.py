"""One turn at an environment: the lock is held, the attempt is recorded and closed, once.

Owns what a deploy owes its users whatever happens in the middle: an error or a signal ends
with the version before serving, verified, and with a record that says so. Whoever lost the
lock changes nothing more. Knows the target and the ledger, and no stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from msgspec import Struct

from shipway import documents, proc
from shipway.artifacts import Version
from shipway.console import Tell
from shipway.errors import (
    CandidateFailed,
    ClusterUnreachable,
    GoldenAnswersWrong,
    Interrupted,
    LoadCheckFailed,
    LoadCheckInconclusive,
    LockLost,
    Overtaken,
    PromotionFailed,
    RefusedBefore,
    ShipwayError,
    UndoFailed,
    WrongBuild,
)
from shipway.ledger import Attempt, Ledger, Lock, Outcome, Record
from shipway.targets import Live, Target

_GOOD = frozenset({"released", "rolled back"})
# What proves the version bad. All else (a taken port, a full disk, a signal) is not its fault.
_ITS_FAULT = (CandidateFailed, WrongBuild, GoldenAnswersWrong, LoadCheckFailed, PromotionFailed)
_SAYS_NOT_WHY = (GoldenAnswersWrong, LoadCheckFailed, LoadCheckInconclusive)


class Turn(Struct, kw_only=True):
    """What the holder of the lock works with. `previous` is what served when the turn began.

    `failure` is what ended the changes early, and `undone` says that they were taken back.
    """

    kind: str
    version: Version
    previous: Live | None
    target: Target
    lock: Lock
    ledger: Ledger
    attempt: Attempt
    failure: BaseException | None = None
    undone: bool = False

    @property
    def is_its_fault(self) -> bool:
        """Whether what failed proves the version bad."""
        return isinstance(self.failure, _ITS_FAULT) and not self.failure.is_hindered

    @property
    def held(self) -> Target:
        """The target, the lock proven to be ours still: to be asked for before each change."""
        self.lock.check()
        return self.target

    @property
    def serves_already(self) -> bool:
        """Whether the wanted image is what users are served, as the settings say, and it is well."""
        live = self.previous
        same = live and live.healthy and live.version.digest == self.version.digest
        return bool(live and same and self.target.is_as_wanted(live))

    @property
    def baseline_p95_ms(self) -> float | None:
        """The 95th percentile that the last released version's candidate had."""
        for record in reversed(self.ledger.attempts()):
            if record.outcome in _GOOD and (load := record.facts.get("load")):
                return float(load["p95_ms"])
        return None

    @property
    def is_trusted(self) -> bool:
        """Whether a person goes back to what served users here before: that must not wait for a load check."""
        return self.kind == "rollback" and self.passed_before()

    def passed_before(self) -> bool:
        """Whether this very image served users here before."""
        return any(
            record.outcome in _GOOD and record.facts.get("digest") == self.version.digest
            for record in self.ledger.attempts()
        )

    def require_still(self, version: Version | None) -> None:
        """Raise `Overtaken` unless this version, where one is given, serves now that the lock is ours."""
        now = self.previous.version if self.previous else None
        if version and now != version:
            raise Overtaken(f"{now or 'nothing'} serves now, and not {version} any more, which was to be left")

    def refuse_what_failed(self, *, force: bool) -> None:
        """Raise `RefusedBefore` for a digest that failed, or was rolled back, here; `force` lets it try again."""
        records = self.ledger.attempts()
        if not force and (why := refusal(records, self.version, manner=self.target.manner)):
            raise RefusedBefore(f"{self.version} {why}", advice=self._instead(records))

    def _instead(self, records: Sequence[Record]) -> str:
        """Say how the last good version is started where nothing serves; otherwise there is nothing to add."""
        good = (version for version in served(records) if refusal(records, version) is None)
        if (self.previous and self.previous.healthy) or not (last := next(good, None)):
            return ""
        return f"invoke rollout {last.digest} starts {last} again"

    @contextlib.contextmanager
    def going_back(self) -> Iterator[None]:
        """Whatever ends the body early, let only the version before serve; then let the error go on.

        A lost lock is the exception, found out now if not before: its new holder decides.
        No signal cuts the way back short. Raises `LockLost`, and `UndoFailed` when the version
        before cannot be proven to serve.
        """
        try:
            yield
        except LockLost:
            raise
        except BaseException as error:
            with proc.signals_ignored():
                self._require_lock(error)
                self._go_back(error)
            raise

    def _require_lock(self, error: BaseException) -> None:
        """Raise `LockLost` if another holds the lock: then `error` may be his doing, and an undo would undo his.

        While nobody says whose it is, nothing is undone either; that is asked twice, as long as one asks.
        """
        unknown = ""
        for _ in range(2):
            try:
                return self.lock.check()
            except LockLost as lost:
                raise lost from error
            except ClusterUnreachable as gone:
                unknown = gone.message
            except ShipwayError:  # it is ours, but could not be renewed
                return None
        what = f"nobody could say who holds the lock, so nothing was undone: {unknown}"
        raise UndoFailed(f"{what}; it was tried because: {_told(error)}") from error

    def _go_back(self, failure: BaseException) -> None:
        self.failure = failure
        with contextlib.suppress(Exception):  # whatever cannot be looked at, the undo must come
            self._explain(failure)
        before = self.previous.version if self.previous else None
        try:
            self.target.undo(before)
        except UndoFailed as error:
            error.message += f"; it was tried because: {_told(failure)}"
            raise
        self.undone = True
        if isinstance(failure, ShipwayError):
            failure.serving = f"Serving, as before: {before}." if before else "Nothing serves, as before."

    def _explain(self, failure: BaseException) -> None:
        """Say of a failure what only the target knows, before the undo removes it."""
        if isinstance(failure, _ITS_FAULT) and (between := self.target.hindrance()):
            failure.is_hindered = True
            failure.tail = "\n".join(filter(None, (failure.tail, between)))
        if isinstance(failure, _SAYS_NOT_WHY) and (why := self.target.explain()):
            failure.tail = "\n".join(filter(None, (failure.tail, why)))


@contextlib.contextmanager
def take(
    kind: str, version: Version, *, who: str, wait: bool, target: Target, lock: Lock, ledger: Ledger, tell: Tell
) -> Iterator[Turn]:
    """Hold the lock and an open record for the body; close the record as failed when it raises.

    Raises `LockHeld` unless `wait`.
    """
    with lock.acquire(owner=who, what=f"{kind} of {version}", wait=wait, tell=tell):
        for dead in ledger.close_dead():
            tell.warn(f"attempt {dead.number} ({dead.kind} by {dead.who}) was killed; going on from what it left")
        previous = target.current()
        facts = {"version": documents.plain(version), "digest": version.digest, "manner": target.manner}
        if previous:
            facts["previous"] = documents.plain(previous.version)
        attempt = ledger.begin(kind, who=who, **facts)
        turn = Turn(
            kind=kind, version=version, previous=previous, target=target, lock=lock, ledger=ledger, attempt=attempt
        )
        try:
            yield turn
        except BaseException as error:
            try:
                attempt.close(
                    _outcome(error, undone=turn.undone),
                    error=_told(error),
                    exit=getattr(error, "code", 1),
                    its_fault=turn.is_its_fault,
                )
            except ShipwayError as unwritten:  # what went wrong first is what counts; the next one closes it
                tell.warn(f"attempt {attempt.record.number} is left open: {unwritten.message}")
            raise


def refusal(records: Sequence[Record], version: Version, *, manner: str | None = None) -> str | None:
    """Return why this digest is not rolled out again: the last verdict on it was bad, or a person left it.

    With `manner`, a verdict on the same image that ran in another one does not count.
    """
    for record in reversed(records):
        about = record.facts.get("digest") == version.digest
        if about and record.outcome in _GOOD:
            return None
        same = manner is None or record.facts.get("manner", manner) == manner
        if about and same and record.facts.get("its_fault"):
            return f"failed here before (attempt {record.number}: {record.facts.get('error')})"
        left = record.facts.get("previous", {}).get("digest") == version.digest
        if left and record.outcome == "rolled back":
            return f"was rolled back here (attempt {record.number}, by {record.who})"
    return None


def served(records: Sequence[Record]) -> Iterator[Version]:
    """Yield the versions that served users, the newest first; one may come more than once.

    What served when an attempt began counts too: whoever settled it may have been killed
    before it was recorded.
    """
    for record in reversed(records):
        if record.outcome in _GOOD:
            yield Version.of(record.facts["version"])
        if previous := record.facts.get("previous"):
            yield Version.of(previous)


def _told(error: BaseException) -> str:
    return error.message if isinstance(error, ShipwayError) else repr(error)


def _outcome(error: BaseException, *, undone: bool) -> Outcome:
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "interrupted"
    return "undone" if undone else "failed"
