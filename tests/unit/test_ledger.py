"""The ledger: numbers, closing records, what is believed of torn and foreign files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shipway.errors import MachineRefused
from shipway.ledger import FileRecords, Ledger, Outcome, write

GOOD, BAD = "sha256:" + "1" * 64, "sha256:" + "2" * 64


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def closed(ledger: Ledger, outcome: Outcome, digest: str = GOOD) -> None:
    ledger.begin("release", who="ann", digest=digest).close(outcome)


def kill(ledger_folder: Path, number: int) -> None:
    """Make the attempt's process one that ended."""
    path = ledger_folder / f"{number:04}.json"
    values = json.loads(path.read_bytes())
    path.write_text(json.dumps(values | {"process": "-".join(reversed(values["process"]))}), "utf-8")


def test_attempt_has_all_facts_and_its_seconds_when_it_is_closed(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(FileRecords(tmp_path), clock=clock)
    attempt = ledger.begin("release", who="ann", digest=GOOD)
    attempt.note(previous=BAD)
    clock.now += 2.5
    closing = attempt.close("released", p95_ms=12.5)
    assert ledger.attempts() == (closing,)
    assert (closing.number, closing.kind, closing.who) == (1, "release", "ann")
    assert (closing.began, closing.seconds, closing.outcome) == (1_000.0, 2.5, "released")
    assert closing.facts == {"digest": GOOD, "previous": BAD, "p95_ms": 12.5}


def test_numbers_go_on_when_a_file_is_torn_or_foreign(tmp_path: Path) -> None:
    ledger = Ledger(FileRecords(tmp_path))
    closed(ledger, "released")
    (tmp_path / "0002.json").write_text('{"number": 2, "kind": "rel', "utf-8")
    (tmp_path / "0003.json").write_text('{"number": 3}', "utf-8")
    (tmp_path / "0004.json").write_text("[]", "utf-8")
    first = (tmp_path / "0001.json").read_text("utf-8")
    (tmp_path / "0005.json").write_text(
        first.replace('"number": 1', '"number": 5').replace('"kind": "release"', '"kind": 5'), "utf-8"
    )
    (tmp_path / "notes.json").write_text("{}", "utf-8")
    closed(ledger, "failed", BAD)
    assert [(record.number, record.outcome) for record in ledger.attempts()] == [(1, "released"), (6, "failed")]


def test_record_is_not_believed_when_its_number_or_outcome_is_another(tmp_path: Path) -> None:
    ledger = Ledger(FileRecords(tmp_path))
    closed(ledger, "released")
    text = (tmp_path / "0001.json").read_text("utf-8")
    (tmp_path / "0002.json").write_text(text, "utf-8")
    (tmp_path / "0003.json").write_text(text.replace("released", "great").replace("1,", "3,", 1), "utf-8")
    assert [record.number for record in ledger.attempts()] == [1]


def test_next_number_is_taken_when_somebody_else_was_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = FileRecords(tmp_path)
    slow, quick = Ledger(records), Ledger(FileRecords(tmp_path))
    monkeypatch.setattr(records, "all", dict)  # it looked before the other one wrote
    closed(quick, "released")
    closed(slow, "failed", BAD)
    assert [(record.number, record.outcome) for record in quick.attempts()] == [(1, "released"), (2, "failed")]


def test_open_attempt_is_closed_as_killed_when_its_process_is_gone(tmp_path: Path) -> None:
    ledger = Ledger(FileRecords(tmp_path))
    ledger.begin("release", who="ann", digest=GOOD)
    ledger.begin("deploy", who="bob", digest=GOOD)
    kill(tmp_path, 1)
    dead = ledger.close_dead()
    assert [(record.number, record.who) for record in dead] == [(1, "ann")]
    assert [record.outcome for record in ledger.attempts()] == ["killed", None]
    assert ledger.close_dead() == ()


def test_attempt_of_another_host_stays_open(tmp_path: Path) -> None:
    ledger = Ledger(FileRecords(tmp_path))
    ledger.begin("release", who="ann")
    kill(tmp_path, 1)
    text = json.loads((tmp_path / "0001.json").read_bytes()) | {"host": "elsewhere"}
    (tmp_path / "0001.json").write_text(json.dumps(text), "utf-8")
    assert ledger.close_dead() == ()


def test_old_text_stays_whole_and_the_error_names_path_and_bytes_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "state.json"
    write(path, "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineRefused, match=r"state\.json cannot be written \(9 bytes\): No space left on device"):
        write(path, "new state")
    assert {each.name: each.read_text("utf-8") for each in tmp_path.iterdir()} == {"state.json": "old"}
