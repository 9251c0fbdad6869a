"""A forwarded port, with programs that stand for kubectl: kept open until it is closed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import pytest

from shipway.console import Console
from shipway.errors import ClusterUnreachable
from shipway.targets import forward
from shipway.targets.forward import Forward

FORWARDS = "print('Forwarding from 127.0.0.1', flush=True); import time; time.sleep({seconds})"


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def test_port_is_forwarded_again_on_the_same_port_when_it_was_cut(capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Sequence[str]] = []

    def start(words: Sequence[str], on_line: Callable[[str], None]) -> forward.Running:
        started.append(words)
        return forward.start_beside(words, on_line)

    def argv(port: int) -> tuple[str, ...]:
        return (sys.executable, "-c", FORWARDS.format(seconds=0.2), str(port))

    opened = Forward(argv, tell=Console(), start=start)
    opened.open()
    _until(lambda: len(started) > 1)
    opened.close()

    assert opened.url == f"http://127.0.0.1:{started[0][-1]}"
    assert started[0] == started[1]
    assert "the port-forward was cut (Forwarding from 127.0.0.1); starting it again" in capsys.readouterr().err


def test_program_is_ended_when_the_port_is_closed() -> None:
    children: list[forward.Running] = []

    def start(words: Sequence[str], on_line: Callable[[str], None]) -> forward.Running:
        children.append(forward.start_beside(words, on_line))
        return children[-1]

    opened = Forward(lambda _port: (sys.executable, "-c", FORWARDS.format(seconds=60)), tell=Console(), start=start)
    opened.open()

    opened.close()

    assert [child.runs for child in children] == [False]


def test_last_words_are_told_when_no_port_is_ever_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_OPEN_S", 1.5)
    refused = "print('error: unable to forward port because pod is not running')"

    with pytest.raises(ClusterUnreachable) as failed:
        Forward(lambda _port: (sys.executable, "-c", refused), tell=Console()).open()

    assert failed.value.tail == "error: unable to forward port because pod is not running"


def test_missing_program_is_told_when_there_is_no_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_OPEN_S", 1.5)

    with pytest.raises(ClusterUnreachable) as failed:
        Forward(lambda _port: ("no-such-kubectl",), tell=Console()).open()

    assert "no-such-kubectl" in failed.value.tail
