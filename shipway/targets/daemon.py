"""The background process that holds the public socket and keeps the workers alive: Circus.

Owns everything about Circus: its configuration, its control socket, its quirks. Knows sets
of workers by name only, nothing of versions. Its own section is written when it starts and
never while it runs, because Circus restarts everything when that changes; each set is a
file beside it. Whether it works is found out by asking it, never believed of a file; what
fails is a `RolloutError` with the last lines of its log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from shipway import proc
from shipway.errors import AddressTaken, RolloutError
from shipway.ledger import write

_START_S = 20.0
_ANSWER_S = 5.0
_SOCKET_BYTES = 100
_BUSY_S = 300.0  # it takes no second command while a set drains
_ORPHANS_S = 60.0
_POLL_S = 0.05
_TAIL_LINES = 25

_DAEMON = """\
[circus]
check_delay = 1
endpoint = ipc://control
pubsub_endpoint = ipc://events
multicast_endpoint =
include = sets/*.ini
pidfile = pid
logoutput = log
"""

_SOCKET = """
[socket:public]
host = {host}
port = {port}
family = {family}
"""

_SET = """\
[watcher:{name}]
cmd = {command}
working_dir = .
use_sockets = {public}
respawn = {public}
graceful_timeout = {drain_s:g}
stdout_stream.class = FileStream
stdout_stream.filename = {log}
stdout_stream.max_bytes = 10000000
stdout_stream.backup_count = 3
"""


class Address(Struct, frozen=True, kw_only=True):
    """Where users are served."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """How this machine reaches it; one that stands for all interfaces is reached on the loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - asked, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        """IPv6 for an address in that notation, otherwise IPv4."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


class _Refused(RolloutError):
    """The daemon answered that it will not do it."""


class Daemon:
    """One Circus daemon, whose files are all in one folder."""

    def __init__(self, folder: Path, *, mark: str) -> None:
        """Use `folder`; `mark` is a variable of every worker whose value begins with the folder's parent."""
        self._folder = folder
        self._mark = mark

    def address(self) -> Address | None:
        """Return where the daemon serves; `None` when there is none that answers."""
        try:
            sockets = self._ask("listsockets")["sockets"]
        except RolloutError:
            return None
        return Address(host=sockets[0]["host"], port=sockets[0]["port"])

    def serves(self, address: Address) -> bool:
        """Say whether the daemon was started for this address."""
        try:
            return (self._folder / "circus.ini").read_text("utf-8").endswith(_socket(address))
        except OSError:
            return False

    def start(self, address: Address) -> None:
        """Start the daemon on `address`, with the sets that were added and not removed.

        Workers whose daemon was killed still hold the address: they are told to finish, and
        new connections wait in the new daemon's queue. Raises `AddressTaken` when it is
        somebody else's.
        """
        if self._process():
            raise self._silent()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)  # whoever can write to the control socket can run anything
        _await_free(address, self._end_orphans())
        (self._folder / "pid").unlink(missing_ok=True)  # Circus would believe a number that was given again
        write(self._folder / "circus.ini", _DAEMON + _socket(address))
        pid = proc.start_daemon(
            [sys.executable, "-m", "circus.circusd", "circus.ini"],
            cwd=self._folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            log=self._folder / "log",
        )
        deadline = time.monotonic() + _START_S
        while self.address() is None:
            if proc.identity(pid) is None or time.monotonic() > deadline:
                raise RolloutError("the local daemon did not start", tail=tail(self._folder / "log"))
            time.sleep(_POLL_S)

    def sets(self) -> dict[str, tuple[int, ...]]:
        """Return the sets that are there, each with its main processes: none once it has ended."""
        sets = {}
        for name in self._ask("status")["statuses"]:
            with contextlib.suppress(_Refused):  # removed by somebody else meanwhile
                sets[name] = tuple(self._ask("list", name=name)["pids"])
        return sets

    def add(self, name: str, *, start: Path, log: Path, public: bool, drain_s: float, python: str) -> None:
        """Start a set from the facts in `start`; a `public` one has the shared socket, and is replaced if it ends."""
        entry = Path(__file__).with_name("entry.py")
        words = shlex.join([python, "-I", "-S", str(entry), os.path.relpath(start, self._folder)])
        text = _SET.format(
            name=name,
            command=f"{words} $(circus.sockets.public)" if public else words,
            public=public,
            drain_s=drain_s,
            log=os.path.relpath(log, self._folder),
        )
        write(self._file(name), text)
        self._ask("reloadconfig", waiting=True)  # `add` would refuse the shared socket

    def added(self) -> tuple[str, ...]:
        """Return the sets that a daemon that starts now would start."""
        return tuple(sorted(path.stem for path in self._folder.glob("sets/*.ini")))

    def forget(self, name: str) -> None:
        """Let no daemon start this set again; one that runs goes on."""
        self._file(name).unlink(missing_ok=True)

    def remove(self, name: str, *, drain_s: float) -> None:
        """Let a set finish its requests, and return when it has ended."""
        self.forget(name)
        if name in self.sets():
            self._ask("rm", timeout_s=drain_s + _ANSWER_S, name=name, waiting=True)

    def stop(self, *, drain_s: float) -> None:
        """End all sets and the daemon, whatever state they are in."""
        for name in self.added():
            self.forget(name)
        pid = self._process()
        if pid or self.address():
            self._ask("quit")
        deadline = time.monotonic() + drain_s + _ANSWER_S
        while (pid and proc.identity(pid)) or self.address():
            if time.monotonic() > deadline:
                raise self._silent()
            time.sleep(_POLL_S)
        _await_end(self._end_orphans())

    def _file(self, name: str) -> Path:
        return self._folder / "sets" / f"{name}.ini"

    def _process(self) -> int | None:
        """Return the daemon's process, if its number is not somebody else's by now."""
        import psutil  # noqa: PLC0415 - heavy

        with contextlib.suppress(OSError, ValueError, psutil.Error):
            pid = int((self._folder / "pid").read_text("ascii"))
            process = psutil.Process(pid)
            if "circus.circusd" in process.cmdline() and Path(process.cwd()) == self._folder:
                return pid
        return None

    def _silent(self) -> RolloutError:
        pid = self._process()
        return RolloutError(
            f"the local daemon (process {pid}) runs but does not do what it is asked",
            tail=tail(self._folder / "log"),
            advice=f"kill -9 {pid}, then run the same command again",
        )

    def _end_orphans(self) -> list[int]:
        """Tell the workers of a daemon that was killed to finish and end; return their processes."""
        import psutil  # noqa: PLC0415 - heavy

        ours = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(self._mark, "").startswith(f"{self._folder.parent}/"):
                    ours[process.pid] = process
        for process in ours.values():
            with contextlib.suppress(psutil.Error):
                if process.ppid() not in ours:  # its own children end with it
                    process.terminate()
        return list(ours)

    def _ask(self, command: str, *, timeout_s: float = _ANSWER_S, **properties: Any) -> dict[str, Any]:
        """Ask until the daemon is not busy with something else."""
        from circus.client import CircusClient  # noqa: PLC0415 - heavy: zmq and tornado
        from circus.exc import CallError  # noqa: PLC0415 - as above

        busy_until = time.monotonic() + _BUSY_S
        with _short(self._folder) as folder:
            if not _listens(folder / "control"):
                raise RolloutError("the local daemon does not run")
            client = CircusClient(endpoint=f"ipc://{folder}/control", timeout=timeout_s)
            try:
                while True:
                    answer: dict[str, Any] = client.send_message(command, **properties)
                    if answer["status"] != "error":
                        return answer
                    if "already running" not in answer["reason"] or time.monotonic() > busy_until:
                        raise _Refused(f"the local daemon refused {command}: {answer['reason']}")
                    time.sleep(_POLL_S)
            except CallError as error:
                raise self._silent() from error
            finally:
                client.stop()


def _socket(address: Address) -> str:
    return _SOCKET.format(host=address.host, port=address.port, family=address.family.name)


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """Give a short path to `folder`: a socket's path may have 108 bytes only. One that is short needs no disk."""
    if len(os.fsencode(folder / "control")) < _SOCKET_BYTES:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="shipway-", dir="/tmp") as short:  # $TMPDIR may be long
        link = Path(short) / "d"
        link.symlink_to(folder)
        yield link


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _await_free(address: Address, ours: list[int]) -> None:
    """Return once the address can be listened on, which our own processes that end may still do."""
    deadline = time.monotonic() + _ORPHANS_S
    while True:
        try:
            return require_free(address)
        except AddressTaken:
            if time.monotonic() > deadline or not any(map(proc.identity, ours)):
                raise
        time.sleep(_POLL_S)


def require_free(address: Address) -> None:
    """Raise `AddressTaken`, which names who listens, unless the address can be listened on."""
    with socket.socket(address.family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            where = f"{address.host}:{address.port}"
            if error.errno == errno.EADDRINUSE:
                raise AddressTaken(f"{where} is taken by {_holder(address.port)}") from error
            raise RolloutError(
                f"cannot listen on {where}: {error.strerror}", advice="look at [rollout] host and port"
            ) from error


def _holder(port: int) -> str:
    """Name the process that listens on a port, as far as this user may know."""
    import psutil  # noqa: PLC0415 - heavy

    with contextlib.suppress(psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return "another program"


def _await_end(pids: list[int]) -> None:
    deadline = time.monotonic() + _ORPHANS_S
    while alive := [pid for pid in pids if proc.identity(pid)]:
        if time.monotonic() > deadline:
            raise RolloutError(f"these processes do not end: {', '.join(map(str, alive))}", advice="kill -9 them")
        time.sleep(_POLL_S)


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:])
    except OSError:
        return ""
