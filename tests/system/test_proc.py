"""Processes end with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from shipway.errors import Interrupted, ToolFailed, ToolMissing
from shipway.proc import Proc, signals_as_errors, signals_ignored

SLEEPER = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)', sys.argv[1]])"


def test_run_returns_what_the_program_said_when_it_fails() -> None:
    program = "import sys; print('out'); print('oops', file=sys.stderr); sys.exit(3)"

    ended = Proc().run([sys.executable, "-c", program])

    assert (ended.code, ended.stdout, ended.tail) == (3, b"out\n", "oops")
    with pytest.raises(ToolFailed, match="ended with 3"):
        ended.check()


def test_run_hands_lines_over_as_they_come() -> None:
    lines: list[str] = []
    program = "import sys; print('one'); print('two', file=sys.stderr, flush=True); print('three')"

    ended = Proc().run([sys.executable, "-u", "-c", program], on_line=lines.append)

    assert (lines, ended.tail) == (["one", "two", "three"], "one\ntwo\nthree")


def test_run_ends_with_the_program_when_a_process_that_it_left_holds_the_pipe() -> None:
    lines: list[str] = []
    program = (
        "import subprocess, sys; print('done', flush=True); "
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True).pid)"
    )

    began = time.monotonic()
    ended = Proc().run([sys.executable, "-c", program], on_line=lines.append)
    seconds = time.monotonic() - began

    os.kill(int(lines[1]), signal.SIGKILL)
    assert (ended.code, lines[0]) == (0, "done")
    assert seconds < 30


def test_run_raises_when_there_is_no_such_program() -> None:
    with pytest.raises(ToolMissing, match="no-such-program"):
        Proc().run(["no-such-program"])


def test_run_ends_grandchildren_too_when_time_runs_out() -> None:
    mark = uuid.uuid4().hex

    with pytest.raises(ToolFailed, match="SIGTERM"):
        Proc().run([sys.executable, "-c", SLEEPER, mark], timeout_s=1)

    assert _running(mark) == []


def test_run_ends_grandchildren_too_when_a_signal_comes() -> None:
    mark = uuid.uuid4().hex
    interrupter = threading.Thread(target=_signal_when_running, args=(mark,))
    interrupter.start()

    with pytest.raises(Interrupted, match="SIGTERM"), signals_as_errors():
        Proc().run([sys.executable, "-c", SLEEPER, mark])

    interrupter.join()
    assert _running(mark) == []


def test_signal_ends_what_another_thread_waits_for() -> None:
    codes: list[int] = []
    waits = threading.Thread(target=lambda: codes.append(Proc().run([sys.executable, "-c", SLEEPER, "x"]).code))

    signaller = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    waits.start()
    signaller.start()
    with pytest.raises(Interrupted), signals_as_errors():
        time.sleep(20)
    waits.join(20)

    assert codes == [-signal.SIGTERM]


def test_signals_as_errors_ignores_the_second_signal_while_cleaning_up() -> None:
    cleaned: list[bool] = []

    with pytest.raises(Interrupted):
        _interrupt_twice(cleaned)

    assert cleaned == [True]


def test_body_comes_to_its_end_when_signals_are_ignored_and_then_they_count_again() -> None:
    done: list[bool] = []

    with pytest.raises(Interrupted), signals_as_errors():
        _put_right_then_interrupt(done)

    assert done == [True]


def _put_right_then_interrupt(done: list[bool]) -> None:
    with signals_ignored():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(True)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def _interrupt_twice(cleaned: list[bool]) -> None:
    with signals_as_errors():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append(True)


def _signal_when_running(mark: str) -> None:
    deadline = time.monotonic() + 10
    while len(_running(mark)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def _running(mark: str) -> list[str]:
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if mark in line]
