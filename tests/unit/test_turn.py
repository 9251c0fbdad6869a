"""A turn at an environment: what is undone, who is blamed, and what is remembered as having served."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from shipway import documents
from shipway.artifacts import Digest, ModelRef, Version
from shipway.console import Console
from shipway.errors import (
    ClusterUnreachable,
    Interrupted,
    LoadCheckFailed,
    LockLost,
    Overtaken,
    RefusedBefore,
    UndoFailed,
    WrongBuild,
)
from shipway.ledger import FileRecords, FileSlot, Ledger, Lock, Record
from shipway.proc import signals_as_errors
from shipway.targets import Live
from shipway.targets.local import Local
from shipway.turn import Turn, served, take


def _version(letter: str) -> Version:
    model = ModelRef(name="net", version=1, digest=Digest("sha256:" + "0" * 64))
    return Version(digest=Digest("sha256:" + letter * 64), build=letter * 16, commit=letter * 40, model=model)


OLD, NEW, NEXT = _version("a"), _version("b"), _version("c")


@dataclass
class Target:
    """Serves `OLD`, and remembers what it was to go back to."""

    healthy: bool = True
    is_away: bool = False
    hindered: str = ""
    undone: list[Version | None] = field(default_factory=list)
    during_undo: Callable[[], None] = lambda: None

    url = "http://127.0.0.1:8080"
    manner = ""

    def current(self) -> Live:
        return Live(version=OLD, url=self.url, since=0.0, builds=(OLD.build,), healthy=self.healthy)

    def explain(self) -> str:
        if self.is_away:
            raise OSError(11, "Resource temporarily unavailable")
        return "killed for memory"

    def hindrance(self) -> str:
        return self.hindered

    def undo(self, previous: Version | None) -> None:
        self.during_undo()
        self.undone.append(previous)


class Environment:
    """The real ledger and lock in a folder, and a target."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.target, self.told = folder, Target(), io.StringIO()
        self.ledger = Ledger(FileRecords(folder / "history"))

    def lock(self, *, late_s: float = 0.0) -> Lock:
        clock: Callable[[], float] = lambda: 1e9 + late_s  # noqa: E731 - a clock that stands
        return Lock(FileSlot(self.folder / "lock"), lease_s=3600, clock=clock)

    @contextlib.contextmanager
    def turn(self, version: Version = NEW) -> Iterator[Turn]:
        with take(
            "release",
            version,
            who="ann",
            wait=False,
            target=cast("Local", self.target),
            lock=self.lock(),
            ledger=self.ledger,
            tell=Console(err=self.told),
        ) as turn:
            yield turn

    def fail(self, first: Callable[[], object] = lambda: None) -> None:
        with self.turn() as turn, turn.going_back():
            first()
            raise LoadCheckFailed("too slow")

    def records(self) -> list[tuple[str | None, object]]:
        return [(record.outcome, record.facts.get("its_fault")) for record in self.ledger.attempts()]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def test_failure_is_undone_and_told_when_the_body_raises(environment: Environment) -> None:
    with pytest.raises(LoadCheckFailed) as failed:
        environment.fail()

    assert failed.value.serving == f"Serving, as before: {OLD}."
    assert failed.value.tail.endswith("killed for memory")
    assert (environment.target.undone, environment.records()) == ([OLD], [("undone", True)])


def test_failure_is_undone_when_it_cannot_be_explained(environment: Environment) -> None:
    environment.target.is_away = True

    with pytest.raises(LoadCheckFailed):
        environment.fail()

    assert (environment.target.undone, environment.records()) == ([OLD], [("undone", True)])


def test_version_is_not_blamed_for_what_came_between(environment: Environment) -> None:
    environment.target.hindered = "its node was drained"

    with pytest.raises(LoadCheckFailed) as failed:
        environment.fail()

    assert "its node was drained" in failed.value.tail
    assert (environment.target.undone, environment.records()) == ([OLD], [("undone", False)])


def test_nothing_is_undone_when_nobody_can_say_who_holds_the_lock(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def check(_lock: Lock) -> None:
        asked.append(1)
        raise ClusterUnreachable("there did not answer for 90 s")

    with pytest.raises(UndoFailed, match="did not answer for 90 s; it was tried because: too slow"):
        environment.fail(lambda: monkeypatch.setattr(Lock, "check", check))

    assert (len(asked), environment.target.undone, environment.records()) == (2, [], [("failed", False)])


def test_turn_is_refused_when_another_version_serves_than_was_to_be_left(environment: Environment) -> None:
    with pytest.raises(Overtaken, match="serves now, and not"), environment.turn() as turn:
        turn.require_still(NEXT)

    with environment.turn() as turn:
        turn.require_still(OLD)
        turn.require_still(None)


def test_nothing_is_undone_when_another_has_taken_the_lock_meanwhile(environment: Environment) -> None:
    with (
        pytest.raises(LockLost),
        environment.turn() as turn,
        turn.going_back(),
        environment.lock(late_s=7200).acquire(
            owner="bob", what="deploy", wait=False, tell=Console(err=environment.told)
        ),
    ):
        raise LoadCheckFailed("too slow")

    assert (environment.target.undone, environment.records()) == ([], [("failed", False)])


def test_version_is_blamed_and_the_cause_told_when_the_undo_fails_too(environment: Environment) -> None:
    def fail() -> None:
        raise UndoFailed("going back failed")

    environment.target.during_undo = fail

    with pytest.raises(UndoFailed, match="going back failed; it was tried because: too slow"):
        environment.fail()

    assert environment.records() == [("failed", True)]


def test_undo_comes_to_its_end_when_a_signal_comes_during_it(environment: Environment) -> None:
    environment.target.during_undo = lambda: os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(LoadCheckFailed), signals_as_errors():
        environment.fail()

    assert (environment.target.undone, environment.records()) == ([OLD], [("undone", True)])


def test_attempt_is_interrupted_and_nobody_blamed_when_a_signal_ends_it(environment: Environment) -> None:
    with pytest.raises(Interrupted), signals_as_errors():
        environment.fail(lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert (environment.target.undone, environment.records()) == ([OLD], [("interrupted", False)])


def test_first_error_goes_on_when_the_record_cannot_be_closed(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(LoadCheckFailed):
        environment.fail(lambda: monkeypatch.setattr("os.fsync", full))

    assert environment.target.undone == [OLD]
    assert "attempt 1 is left open" in environment.told.getvalue()


@pytest.mark.parametrize(
    ("healthy", "advice"),
    [(True, RefusedBefore.advice), (False, f"invoke rollout {OLD.digest} starts {OLD} again")],
)
def test_refusal_names_the_last_good_version_when_nothing_serves(
    environment: Environment, *, healthy: bool, advice: str
) -> None:
    with contextlib.suppress(LoadCheckFailed):
        environment.fail()
    environment.target.healthy = healthy

    with pytest.raises(RefusedBefore) as refused, environment.turn() as turn:
        turn.refuse_what_failed(force=False)

    assert refused.value.next == advice


def test_served_names_the_version_that_was_settled_but_never_recorded() -> None:
    records = [
        _record(1, "released", OLD),
        _record(2, "killed", NEW, previous=OLD),
        _record(3, "released", NEXT, previous=NEW),
    ]

    assert list(served(records)) == [NEXT, NEW, OLD, OLD]


def _record(number: int, outcome: str, version: Version, previous: Version | None = None) -> Record:
    facts = {"version": documents.plain(version), "digest": version.digest}
    if previous:
        facts["previous"] = documents.plain(previous)
    return Record(
        number=number,
        kind="release",
        who="ann",
        host="here",
        pid=1,
        process=None,
        began=0.0,
        outcome=cast("None", outcome),
        facts=facts,
    )


def test_an_error_can_be_printed_and_written_down_whatever_a_service_said() -> None:
    error = WrongBuild("build \ud83d answered")

    assert error.message.encode() == b"build \\ud83d answered"
    assert str(error).startswith(error.message)
