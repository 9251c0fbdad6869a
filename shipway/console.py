"""What people and machines read: the one module that prints.

The result alone goes to stdout; steps, progress and warnings go to stderr: bars on a
terminal, plain lines elsewhere. Each line of progress begins with its stage's word.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TextIO

from msgspec import Struct

_PLAIN_EVERY_S = 5.0
_NOBODY_READS = frozenset(
    {errno.EPIPE, errno.EIO}
)  # `| head` has read enough, the terminal is gone: what was done is done


class Tell(Protocol):
    """What the stages need of the console."""

    def say(self, stage: str, text: str) -> None:
        """Tell one fact of a stage: a step that begins, or what came out."""

    def warn(self, text: str) -> None:
        """Tell what is not good, but no reason to stop."""

    def live(self, stage: str, text: str) -> None:
        """Tell how a long step is going; the next call replaces it on a terminal."""

    def progress(
        self, stage: str, label: str, total_bytes: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Show bytes moving: gives a function that takes how many more have moved."""


class Console:
    """The terminal, or a log."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        """Write results to `out` and all else to `err` (default: this process's)."""
        self._out = out or sys.stdout or io.StringIO()  # whoever starts us may have closed it
        if isinstance(self._out, io.TextIOWrapper):
            self._out.reconfigure(errors="backslashreplace")  # not every terminal can show every path
        self._err = err or sys.stderr or io.StringIO()
        self._terminal = self._err.isatty()
        self._live_at = 0.0
        self._live_open = False
        self._lock = threading.RLock()  # blobs move in several threads at once
        self._moving: dict[int, _Moving] = {}

    def say(self, stage: str, text: str) -> None:
        """See `Tell.say`."""
        self._line(f"{stage:<10}{text}")

    def warn(self, text: str) -> None:
        """See `Tell.warn`."""
        self._line(f"warning   {text}")

    def live(self, stage: str, text: str) -> None:
        """See `Tell.live`; a log gets a line every five seconds."""
        now = time.monotonic()
        with self._lock:
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be taken back
                self._write(f"\r\x1b[2K{stage:<10}{text}"[: width + len("\r\x1b[2K")])
                self._live_open = True
            elif now - self._live_at >= _PLAIN_EVERY_S:
                self._line(f"{stage:<10}{text}")
            else:
                return
            self._live_at = now

    @contextlib.contextmanager
    def progress(self, stage: str, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """See `Tell.progress`; what moves at the same time shares the line."""
        moving, shown_at = _Moving(label=label, total_bytes=total_bytes), 0.0

        def advance(count: int) -> None:
            nonlocal shown_at
            now = time.monotonic()
            with self._lock:
                moving.done_bytes += count
                self._moving[id(moving)] = moving
                if now - shown_at >= 0.1:  # noqa: PLR2004 - ten times a second is all that eyes can use
                    shown_at = now
                    self.live(stage, _together(list(self._moving.values())))

        with self._lock:
            if not self._moving:
                self._live_at = time.monotonic()
        try:
            yield advance
        finally:
            with self._lock:
                self._moving.pop(id(moving), None)
                self._clear()

    def fail(self, text: str) -> None:
        """Tell why the command failed, its last words."""
        self._line(f"error: {text}")

    def result(self, text: str) -> None:
        """Print the command's result, the only thing on stdout."""
        self._clear()
        try:
            self._out.write(text + "\n")
            self._out.flush()
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())

    def result_json(self, value: Any) -> None:
        """Print the command's result for machines: one JSON document."""
        self.result(json.dumps(value, indent=2, sort_keys=True))

    def _line(self, text: str) -> None:
        with self._lock:
            self._clear()
            self._write(text + "\n")

    def _clear(self) -> None:
        if self._live_open:
            self._write("\r\x1b[2K")
            self._live_open = False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone: cleaning up must go on all the same
            self._err.write(text)
            self._err.flush()


def size(count: float) -> str:
    """Return a number of bytes for people, in powers of 1000: `18.6 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class _Moving(Struct, kw_only=True):
    label: str
    total_bytes: int
    done_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.label} {size(self.done_bytes)} of {size(self.total_bytes)}"


def _together(moving: Sequence[_Moving]) -> str:
    done, total = sum(each.done_bytes for each in moving), sum(each.total_bytes for each in moving)
    return f"{_bar(done, total)} {', '.join(map(str, moving))}"


def _bar(done: int, total: int) -> str:
    filled = round(16 * min(1.0, done / total)) if total else 16
    return "█" * filled + "░" * (16 - filled)
