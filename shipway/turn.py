"""One turn at an environment: the lock is held, the attempt is recorded and closed, once.

Owns what a deploy owes its users whatever happens in the middle: an error, a signal or a
lost lock ends with the version before serving, verified, and with a record that says so.
Knows the target and the ledger, and no stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shipway.artifacts import Digest, ModelRef, Version
from shipway.console import Tell
from shipway.errors import (
    CandidateFailed,
    GoldenAnswersWrong,
    Interrupted,
    LoadCheckFailed,
    LockLost,
    PromotionFailed,
    RefusedBefore,
    ShipwayError,
    UndoFailed,
    WrongBuild,
)
from shipway.ledger import Attempt, Ledger, Lock, Outcome, Record
from shipway.targets import Live
from shipway.targets.local import Local

GOOD = frozenset({"released", "rolled back"})
# What proves the version bad. All else (a taken port, a full disk, a signal) is not its fault.
_ITS_FAULT = (CandidateFailed, WrongBuild, GoldenAnswersWrong, LoadCheckFailed, PromotionFailed)


@dataclass(slots=True, kw_only=True)
class Turn:
    """What the holder of the lock works with. `previous` is what served when the turn began."""

    kind: str
    version: Version
    previous: Live | None
    target: Local
    lock: Lock
    ledger: Ledger
    attempt: Attempt
    undone: bool = field(default=False, init=False)

    @property
    def held(self) -> Local:
        """The target, the lock proven to be ours still: to be asked for before each change."""
        self.lock.check()
        return self.target

    @property
    def serves_already(self) -> bool:
        """Whether the wanted image is what users are served, where the settings say, and it is well."""
        live = self.previous
        return bool(
            live and live.healthy and live.version.digest == self.version.digest and live.url == self.target.url
        )

    @property
    def baseline_p95_ms(self) -> float | None:
        """The 95th percentile that the last released version's candidate had."""
        for record in reversed(self.ledger.attempts()):
            if record.outcome in GOOD and (load := record.facts.get("load")):
                return float(load["p95_ms"])
        return None

    def passed_before(self) -> bool:
        """Whether this very image served users here before."""
        return any(
            record.outcome in GOOD and record.facts.get("digest") == self.version.digest
            for record in self.ledger.attempts()
        )

    def refuse_what_failed(self, *, force: bool) -> None:
        """Raise `RefusedBefore` for a digest that failed, or was rolled back, here; `force` lets it try again."""
        if not force and (why := refusal(self.ledger.attempts(), self.version)):
            raise RefusedBefore(f"{self.version} {why}")

    @contextlib.contextmanager
    def going_back(self) -> Iterator[None]:
        """Whatever ends the body early, let only the version before serve; then let the error go on.

        A lost lock is the exception: its new holder decides now. Raises `UndoFailed` when
        the version before cannot be proven to serve.
        """
        try:
            yield
        except LockLost:
            raise
        except BaseException as error:
            before = self.previous.version if self.previous else None
            self.target.undo(before)
            self.undone = True
            if isinstance(error, ShipwayError):
                error.serving = f"Serving, as before: {before}." if before else "Nothing serves, as before."
            raise


@contextlib.contextmanager
def take(
    kind: str, version: Version, *, who: str, wait: bool, target: Local, lock: Lock, ledger: Ledger, tell: Tell
) -> Iterator[Turn]:
    """Hold the lock and an open record for the body; close the record as failed when it raises.

    Raises `LockHeld` unless `wait`.
    """
    with lock.acquire(owner=who, what=f"{kind} of {version}", wait=wait, tell=tell):
        for dead in ledger.close_dead():
            tell.warn(f"attempt {dead.number} ({dead.kind} by {dead.who}) was killed; going on from what it left")
        previous = target.current()
        facts = {"version": asdict(version), "digest": version.digest}
        if previous:
            facts["previous"] = asdict(previous.version)
        attempt = ledger.begin(kind, who=who, **facts)
        turn = Turn(
            kind=kind, version=version, previous=previous, target=target, lock=lock, ledger=ledger, attempt=attempt
        )
        try:
            yield turn
        except BaseException as error:
            attempt.close(
                _outcome(error, undone=turn.undone),
                error=getattr(error, "message", repr(error)),
                exit=getattr(error, "code", 1),
                its_fault=isinstance(error, _ITS_FAULT),
            )
            raise


def refusal(records: Sequence[Record], version: Version) -> str | None:
    """Return why this digest is not rolled out again: the last verdict on it was bad, or a person left it."""
    for record in reversed(records):
        about = record.facts.get("digest") == version.digest
        if about and record.outcome in GOOD:
            return None
        if about and record.facts.get("its_fault"):
            return f"failed here before (attempt {record.number}: {record.facts.get('error')})"
        left = record.facts.get("previous", {}).get("digest") == version.digest
        if left and record.outcome == "rolled back":
            return f"was rolled back here (attempt {record.number}, by {record.who})"
    return None


def version_of(facts: Mapping[str, Any]) -> Version:
    """Return the version that a record is about, from its facts."""
    version = facts["version"]
    return Version(**version | {"digest": Digest(version["digest"]), "model": _model(version["model"])})


def _model(facts: Mapping[str, Any]) -> ModelRef:
    return ModelRef(**{**facts, "digest": Digest(facts["digest"])})


def _outcome(error: BaseException, *, undone: bool) -> Outcome:
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "interrupted"
    return "undone" if undone and not isinstance(error, UndoFailed) else "failed"
