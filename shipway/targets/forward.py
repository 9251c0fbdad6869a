"""A port of this machine that leads to one in the cluster, for as long as it is open.

Owns the `kubectl port-forward` behind it, which is cut whenever a connection breaks badly, the
API server restarts or the pod goes: it is started again on the same port until it is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from shipway.console import Tell
from shipway.errors import ClusterUnreachable, ToolMissing
from shipway.proc import Beside

_OPEN_S = 30.0
_PAUSE_S = 0.5


class Running(Protocol):
    """A program that was started: `proc.Beside`, or what stands for one in tests."""

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""

    def end(self) -> None:
        """End it."""


Start = Callable[[Sequence[str], Callable[[str], None]], Running]


def start_beside(argv: Sequence[str], on_line: Callable[[str], None]) -> Running:
    """Start a program beside this one."""
    return Beside(argv, on_line=on_line)


class Forward:
    """One forwarded port; `cuts` is how often its way was broken since it was opened."""

    def __init__(self, argv: Callable[[int], Sequence[str]], *, tell: Tell, start: Start = start_beside) -> None:
        """Forward a free port to what `argv` says for it."""
        self._port = _free_port()
        self._argv = argv(self._port)
        self._tell = tell
        self._start = start
        self.cuts = 0
        self._said = ""
        self._open = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="port-forward", daemon=True)

    @property
    def url(self) -> str:
        """Where it begins."""
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Return once it listens; raise `ClusterUnreachable` with kubectl's last line when it never does."""
        atexit.register(self.close)  # a program that it started would outlive whoever forgets it
        self._thread.start()
        if not self._open.wait(_OPEN_S):
            self.close()
            raise ClusterUnreachable(f"no port could be forwarded within {_OPEN_S:g} s", tail=self._said)

    def close(self) -> None:
        """End it."""
        atexit.unregister(self.close)
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        was_open = False
        while not self._closed.is_set():
            try:
                child = self._start(self._argv, self._hear)
            except ToolMissing as error:
                self._said = error.message
                return
            try:
                while child.runs and not self._closed.wait(_PAUSE_S):
                    was_open |= self._open.is_set()
            finally:
                child.end()
            if was_open and not self._closed.is_set():
                self.cuts += 1
                self._tell.warn(f"the port-forward was cut ({self._said}); starting it again")
                time.sleep(_PAUSE_S)

    def _hear(self, line: str) -> None:
        self._said = line
        if line.startswith("Forwarding from"):
            self._open.set()


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
