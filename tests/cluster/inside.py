"""The first process of a cluster, and of each of its nodes: process 1 of its own PID namespace.

It starts what belongs there, starts it again when it ends, and takes the bodies of orphans.
When it is killed, the kernel ends all that ran there, and its mounts and networks go with it.
The cluster's takes orders on a socket: see `Order`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from tests.cluster import cgroups
from tests.cluster.api import Api, Refused
from tests.cluster.cloud import Cloud
from tests.cluster.plan import CONTROL, NODES, Plan, entering, python
from tests.docker.tools import GO_GENEROUS

_TICK_S, _AGAIN_S, _CLOUD_S, _OBEY_S = 0.1, 0.5, 0.4, 60.0
_NICE = -10  # a cluster has its machines to itself: tests that run beside this one are not to delay it


class Order(TypedDict, total=False):
    """What can be asked of a cluster: `name` is a process, a node, or what the cloud holds back."""

    do: Literal["stop", "start", "cut", "join", "hold", "free", "status"]
    name: str


def ask(folder: Path, order: Order) -> dict[str, Any]:
    """Give an order to the cluster in this folder, and return the answer once it is done."""
    with socket.socket(socket.AF_UNIX) as there:
        there.settimeout(_OBEY_S)
        there.connect(str(folder / "orders"))
        with there.makefile("rwb") as stream:
            stream.write(json.dumps(order).encode() + b"\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
            return answer


class Processes:
    """Named processes that are to run; `log` is the folder of what they say."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._wanted: dict[str, list[str]] = {}
        self._running: dict[int, str] = {}
        self._again: dict[str, float] = {}
        self.starts: dict[str, int] = {}

    def start(self, processes: Mapping[str, Sequence[str]]) -> None:
        for name, argv in processes.items():
            if name not in self._wanted:
                self._wanted[name] = list(argv)
                self._spawn(name)

    def stop(self, name: str) -> None:
        """Kill a process, and let it be gone before this returns."""
        self._wanted.pop(name, None)
        self._again.pop(name, None)
        for pid in [pid for pid, running in self._running.items() if running == name]:
            # Where it is a node's, its child is process 1 of all others there, and the last to be gone.
            children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
            os.kill(pid, signal.SIGKILL)
            for each in (pid, *children):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(each, 0)
            del self._running[pid]

    def tick(self) -> None:
        """Take the bodies of what ended, and start again what should run."""
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if (name := self._running.pop(pid, None)) in self._wanted:
                    self._again[str(name)] = time.monotonic() + _AGAIN_S
        for name in [name for name, when in self._again.items() if when < time.monotonic()]:
            del self._again[name]
            self._spawn(name)

    def _spawn(self, name: str) -> None:
        argv = self._wanted[name]
        self.starts[name] = self.starts.get(name, 0) + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawnp(
            argv[0],
            argv,
            {**os.environ, **GO_GENEROUS},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self._log / f"{name}.log"), flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        with contextlib.suppress(OSError):  # where each session has a share of its own, it is that which counts
            Path(f"/proc/{pid}/autogroup").write_text(str(_NICE), "ascii")
        self._running[pid] = name


# -- a node --------------------------------------------------------------------------------


def node(plan: Plan, name: str) -> None:
    """Be a node until killed; what it has on disk is there again the next time."""
    files = plan.folder / name
    socket.sethostname(name)
    _run([["mount", "-t", "tmpfs", "tmpfs", "/run"]])
    _run([["mount", "--bind", str(files / each), f"/var/{each}"] for each in ("lib", "log")])
    processes = Processes(files)
    processes.start(plan.processes(name))
    while True:
        processes.tick()
        time.sleep(_TICK_S)


# -- the cluster -----------------------------------------------------------------------------


def machine(plan: Plan) -> None:
    """Make the nodes' disks, and the control plane's network from the machine's own, and go there."""
    with contextlib.suppress(PermissionError):  # in a container that may not, it is one among others
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    disks = [str(plan.folder / node / "lib") for node in NODES]  # in memory: gone at once, where files are not
    _run([["mount", "-t", "tmpfs", "tmpfs", place] for place in ("/run", *disks)])
    _run(plan.wires())
    argv = [*entering(CONTROL), *python("control", str(plan.folder))]
    os.execvp(argv[0], argv)  # noqa: S606 - stay process 1


def control(plan: Plan) -> None:
    """Be the control plane, and hold the nodes, until killed."""
    _run(plan.switch())
    cluster = _Cluster(plan)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(plan.folder / "orders"))
        listener.listen()
        listener.settimeout(_TICK_S)
        while True:
            cluster.tick()
            with contextlib.suppress(TimeoutError):
                cluster.serve(listener.accept()[0])


class _Cluster:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._processes = Processes(plan.folder / "log")
        self._processes.start(plan.first())
        self._api = Api(plan.control, authority=plan.authority, issued=plan.issued("admin"))
        self._cloud = Cloud(plan, self._api)
        self._complete, self._next_s = False, 0.0

    def tick(self) -> None:
        self._processes.tick()
        if self._complete:
            if time.monotonic() > self._next_s:
                self._cloud.tick()
                self._next_s = time.monotonic() + _CLOUD_S
        elif self._api.ready():
            self._complete = self._completed()

    def _completed(self) -> bool:
        """Start the rest; false when it is too early for that."""
        namespace = "namespaces/kube-system"
        try:
            self._api.post(f"/api/v1/{namespace}/services", self._plan.dns_service())
            self._api.post(f"/apis/discovery.k8s.io/v1/{namespace}/endpointslices", self._plan.dns_endpoints())
        except (OSError, Refused, http.client.HTTPException):
            return False
        self._processes.start(self._plan.rest())
        for name in NODES:
            self._boot(name)
        return True

    def serve(self, connection: socket.socket) -> None:
        """Take one order; the answer comes when it is done."""
        with connection, connection.makefile("rwb") as stream:
            order: Order = json.loads(stream.readline())
            stream.write(json.dumps(self._obey(order)).encode() + b"\n")

    def _obey(self, order: Order) -> dict[str, Any]:
        obey: dict[str, Callable[[str], None]] = {
            "stop": self._stop,
            "start": self._start,
            "cut": lambda node: _run([["ip", "link", "set", node, "down"]]),
            "join": lambda node: _run([["ip", "link", "set", node, "up"]]),
            "hold": self._cloud.held.add,
            "free": self._cloud.held.discard,
            "status": lambda _: None,
        }
        obey[order["do"]](order.get("name", ""))
        return {"starts": self._processes.starts, "held": sorted(self._cloud.held)}

    def _stop(self, name: str) -> None:
        self._processes.stop(name)
        if name in NODES:
            _run(self._plan.unplug(name))
            cgroups.remove(self._plan.context, name)  # a kubelet waits for each that it does not know
            cgroups.make(self._plan.context, name)

    def _start(self, name: str) -> None:
        if name in NODES:
            self._boot(name)
        else:
            self._processes.start({name: (self._plan.first() | self._plan.rest())[name]})

    def _boot(self, name: str) -> None:
        if not Path(f"/run/netns/{name}").exists():
            _run(self._plan.plug(name))
            self._processes.start({name: self._plan.boot(name)})


def _run(commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        subprocess.run(command, check=True)


if __name__ == "__main__":
    word, folder, *names = sys.argv[1:]
    {"machine": machine, "control": control, "node": node}[word](Plan.read(Path(folder)), *names)  # type: ignore[operator]
