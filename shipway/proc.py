"""Start processes: the one module that does.

A child runs in a process group of its own. When the caller is interrupted, or time runs
out, the whole group is ended (SIGTERM, then SIGKILL) before the exception goes on, so that
no child outlives the command that started it. Nothing is ever passed through a shell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import IO, Protocol

from msgspec import Struct

from shipway.errors import Interrupted, ToolFailed, ToolMissing

_GRACE_S = 5.0
_TAIL_LINES = 40

_beside: set[subprocess.Popen[bytes]] = set()  # those that other threads than the main one wait for


class Completed(Struct, frozen=True, kw_only=True):
    """A process that ended: its exit code (negative for a signal), stdout, and last lines of stderr."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    tail: str

    def check(self) -> Completed:
        """Return self, or raise `ToolFailed` when the exit code is not 0."""
        if self.code != 0:
            raise ToolFailed(argv=self.argv, code=self.code, tail=self.tail)
        return self


class Run(Protocol):
    """What the rest of shipway needs of processes: `Proc`, or a script of answers in tests."""

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> Completed:
        """Run `argv` to its end; see `Proc.run`."""


class Proc:
    """The real thing."""

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> Completed:
        """Run a program to its end and return what it said, whatever its exit code.

        With `on_line`, stdout and stderr are joined, each line is handed over as it comes,
        and `stdout` stays empty. `env` replaces the whole environment; `None` inherits it.
        Raises `ToolMissing` when there is no such program and `ToolFailed` on a time-out.
        """
        words = tuple(str(word) for word in argv)
        try:
            child = subprocess.Popen(  # noqa: S603 - a list, never a shell; this module is the boundary
                words,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if on_line else subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ToolMissing(program=words[0]) from error
        with _ended(child):
            try:
                if on_line:
                    return _stream(child, words, on_line, timeout_s)
                stdout, stderr = child.communicate(stdin, timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                raise ToolFailed(argv=words, code=-signal.SIGTERM, tail=f"no end after {timeout_s:g} s") from error
        return Completed(argv=words, code=child.returncode, stdout=stdout, tail=_last_lines(stderr))


class Beside:
    """A program that runs beside this one until it is told to end, as `kubectl port-forward` does."""

    def __init__(self, argv: Sequence[str | Path], *, on_line: Callable[[str], None]) -> None:
        """Start it; stdout and stderr are joined, each line is handed over as it comes, in another thread."""
        words = [str(word) for word in argv]
        try:
            self._child = subprocess.Popen(  # noqa: S603 - as in Proc.run
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ToolMissing(program=words[0]) from error
        self._reader = Thread(target=self._read, args=(on_line,), daemon=True)
        self._reader.start()

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._child.poll() is None

    def end(self) -> None:
        """End it and all that it started."""
        _end(self._child)
        self._reader.join(_GRACE_S)

    def _read(self, on_line: Callable[[str], None]) -> None:
        if self._child.stdout is None:  # pragma: no cover - always a pipe, see __init__
            raise AssertionError
        with self._child.stdout:
            for raw in self._child.stdout:
                on_line(raw.decode("utf-8", "replace").rstrip())


@contextlib.contextmanager
def signals_as_errors() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `Interrupted`, in the main thread.

    Later ones are ignored: by then the command is cleaning up, and a clean-up that is cut
    short is what would need mending by hand. What other threads wait for is told to end, since
    they hear of no signal.
    """

    def interrupt(number: int, _frame: object) -> None:
        for each in numbers:
            signal.signal(each, _ignore)
        for child in tuple(_beside):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGTERM)
        raise Interrupted(f"interrupted by {signal.Signals(number).name}")

    numbers = _interrupting()
    with _handled(numbers, interrupt):
        yield


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Let the body come to its end whatever signal comes: it puts things right."""
    with _handled(_interrupting(), _ignore):
        yield


def _interrupting() -> list[signal.Signals]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's wish
        numbers.append(signal.SIGHUP)
    return numbers


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing: `SIG_IGN` would be inherited by what cleaning up starts."""


@contextlib.contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def start_daemon(argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], log: Path) -> int:
    """Start a program that outlives this one and its terminal; return its process number.

    It gets a session of its own, and its first words go to the end of `log`.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603 - as in Proc.run
            [str(word) for word in argv],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    Thread(target=child.wait, daemon=True).start()  # so that it is no zombie, should it end before us
    return child.pid


def identity(pid: int) -> str | None:
    """Return what tells this process from all others that ever had its number; `None` once it ended."""
    if sys.platform != "linux":
        import psutil  # noqa: PLC0415 - heavy, and needed only where there is no /proc

        try:
            return f"{psutil.Process(pid).create_time():.0f}"
        except psutil.NoSuchProcess:
            return None
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        space = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return None if state in "ZX" else f"{boot}/{space}/{rest[18]}"


def is_of_this_boot(known: str | None) -> bool:
    """Say whether this very machine, since it was started last, gave a process this identity."""
    here, there = identity(os.getpid()) or "", known or ""
    return "/" in there and here.partition("/")[0] == there.partition("/")[0]


def gone(pid: int, known: str | None) -> bool:
    """Say whether the process that once had this number and identity has surely ended.

    One in another PID namespace of this machine cannot be seen from here, so it is not gone.
    """
    here, there = (identity(os.getpid()) or "").split("/"), (known or "").split("/")
    elsewhere = here[0] == there[0] and here[1:2] != there[1:2]
    return not elsewhere and identity(pid) != known


def _stream(
    child: subprocess.Popen[bytes], words: tuple[str, ...], on_line: Callable[[str], None], timeout_s: float | None
) -> Completed:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def read(stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                tail.append(line)
                on_line(line)

    if child.stdout is None:  # pragma: no cover - always a pipe, see run()
        raise AssertionError
    reader = Thread(target=read, args=(child.stdout,), daemon=True)
    child.stdout = None  # the reader's to close: closing waits for whoever reads
    reader.start()
    child.wait(timeout_s)
    reader.join(_GRACE_S)  # a grandchild may hold the pipe open for ever
    return Completed(argv=words, code=child.returncode, stdout=b"", tail="\n".join(tail))


@contextlib.contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    if current_thread() is not main_thread():
        _beside.add(child)
    try:
        yield
    except BaseException:
        _end(child)
        raise
    finally:
        _beside.discard(child)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child's whole group; its members may outlive it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_S)


def _last_lines(stderr: bytes) -> str:
    return "\n".join(stderr.decode("utf-8", "replace").rstrip().splitlines()[-_TAIL_LINES:])
