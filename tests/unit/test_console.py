"""The console: results on stdout alone, bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import errno
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shipway.console import Console, size


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_result_goes_to_stdout_alone() -> None:
    out, err = io.StringIO(), io.StringIO()

    Console(out, err).result("repository@sha256:1")

    assert (out.getvalue(), err.getvalue()) == ("repository@sha256:1\n", "")


def test_say_writes_one_line_that_begins_with_the_stage() -> None:
    out, err = io.StringIO(), io.StringIO()

    Console(out, err).say("push", "sent 3 kB")

    assert (out.getvalue(), err.getvalue()) == ("", "push      sent 3 kB\n")


def test_progress_writes_no_control_character_when_it_is_not_a_terminal() -> None:
    err = io.StringIO()

    with Console(io.StringIO(), err).progress("push", "layer", 100) as advance:
        advance(50)
        advance(50)

    assert "\x1b" not in err.getvalue()
    assert "\r" not in err.getvalue()


def test_live_line_is_gone_before_the_next_line_on_a_terminal() -> None:
    err = _Terminal()
    console = Console(io.StringIO(), err)

    console.live("test", "3 of 9")
    console.say("test", "9 passed")

    assert err.getvalue() == "\r\x1b[2Ktest      3 of 9\r\x1b[2Ktest      9 passed\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (18_600_000, "18.6 MB"), (2.5e9, "2.5 GB")]
)
def test_size_is_in_powers_of_1000(count: float, text: str) -> None:
    assert size(count) == text


class _Refusing(io.StringIO):
    """A stream that the system refuses to write to."""

    def __init__(self, number: int, spare: int = -1) -> None:
        super().__init__()
        self.number, self.spare = number, spare

    def write(self, _text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self) -> int:
        return self.spare


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_result_keeps_quiet_when_nobody_reads_any_more(tmp_path: Path, number: int) -> None:
    with (tmp_path / "spare").open("w") as file:
        Console(_Refusing(number, file.fileno()), io.StringIO()).result("more than was read")


def test_result_raises_when_its_file_cannot_hold_it() -> None:
    with pytest.raises(OSError, match="No space left"):
        Console(_Refusing(errno.ENOSPC), io.StringIO()).result("repository@sha256:1")


def test_result_shows_every_character_when_the_terminal_knows_ascii_alone() -> None:
    stream = io.BytesIO()
    out = io.TextIOWrapper(stream, encoding="ascii")

    Console(out, io.StringIO()).result("Modelle für München")

    assert stream.getvalue() == rb"Modelle f\xfcr M\xfcnchen" + b"\n"


def test_live_stays_on_one_line_when_the_text_is_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    err = _Terminal()

    Console(io.StringIO(), err).live("test", "a line of a suite that says much")

    assert err.getvalue() == "\r\x1b[2Ktest      a line of"


def test_progress_shares_one_line_when_blobs_move_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    err = _Terminal()
    console = Console(io.StringIO(), err)

    with console.progress("push", "model", 100) as model, console.progress("push", "app", 60) as app:
        model(50)
        app(30)

    first, second, *rest = err.getvalue().split("\r\x1b[2K")[1:]
    assert first == "push      ████████░░░░░░░░ model 50 B of 100 B"
    assert second == "push      ████████░░░░░░░░ model 50 B of 100 B, app 30 B of 60 B"
    assert rest == [""]


def test_progress_loses_no_byte_and_no_line_when_many_threads_tell() -> None:
    err = io.StringIO()
    console = Console(io.StringIO(), err)

    def move(number: int) -> None:
        with console.progress("push", f"layer {number}", 1000) as advance:
            for _ in range(1000):
                advance(1)
            console.say("push", f"layer {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(move, range(8)))

    assert sorted(err.getvalue().splitlines()) == [f"push      layer {number}" for number in range(8)]


def test_nothing_is_printed_where_there_is_nothing_to_print_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as Python has it when they were closed before it started
    monkeypatch.setattr("sys.stderr", None)
    console = Console()

    console.warn("careful")
    console.live("push", "half")
    console.result("done")
