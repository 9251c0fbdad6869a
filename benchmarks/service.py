"""The service beside a loop over the same work in one process, and the memory of 1, 2 and 4 workers.

Runs what the release unpacked: the app, its locked dependencies, its model. The load is the
load check's own, on the golden exchanges; generator and service share this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import psutil

from benchmarks import Row, middle
from benchmarks.releases import free_port
from shipway.artifacts import LoadReport
from shipway.config import LoadCheckSettings
from shipway.proc import Proc
from shipway.site import Site
from shipway.stages import loadcheck

_ROUNDS = 3
_SECONDS = 4.0
_THREADS = 2
_MANY = 16
_WORKERS = (1, 2, 4)
_START_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A version as the local target runs it."""

    site: Site
    srv: Path
    model: Path

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its programs."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{self.srv / 'site-packages'}{os.pathsep}{self.srv}",
            "ORT_DISABLE_TELEMETRY": "1",
            "MODEL_DIR": str(self.model),
        }


def measure(repository: Path) -> Iterator[Row]:
    """Measure the version that was released last in `repository`."""
    version = _unpacked(repository)
    yield from _throughput(version)
    yield from _memory(version)


def _unpacked(repository: Path) -> Unpacked:
    site = Site.open(repository, environment=None, environ=os.environ)
    srv = site.unpacked(site.layout.tags()["tested"]) / "srv"
    (model,) = (srv / "models").iterdir()
    return Unpacked(site=site, srv=srv, model=model)


def _throughput(version: Unpacked) -> Iterator[Row]:
    """In turns: the loop; as many users as threads, for latency; many users, for throughput."""
    rates, latencies = [], []
    with _serving(version, workers=1) as (url, _):
        for _ in range(_ROUNDS):
            loop = _loop(version)
            latencies.append((_load(version, url, users=_THREADS).p95_ms, loop["p95_ms"]))
            rates.append((_load(version, url, users=_MANY).rate, loop["rate"]))
    rate, loop_rate = middle(rates)
    p95_ms, loop_p95_ms = middle(latencies)
    yield Row(
        what=f"requests per second, {_MANY} clients",
        value=rate,
        unit="/s",
        reference=loop_rate,
        against=f"{_THREADS} threads in process, {loop_rate:.1f}/s",
    )
    yield Row(
        what=f"p95, {_THREADS} clients",
        value=p95_ms,
        unit="ms",
        reference=loop_p95_ms,
        against=f"{_THREADS} threads in process, {loop_p95_ms:.1f} ms",
    )


def _memory(version: Unpacked) -> Iterator[Row]:
    """Sum the PSS (memory, shared pages divided among those who share them) of all processes, after load."""
    sums = {workers: _pss_bytes(version, workers) for workers in _WORKERS}
    for workers, size in sums.items():
        yield Row(
            what=f"memory, {workers} workers of {_THREADS} threads",
            value=size / 1e6,
            unit="MB",
            reference=sums[1] / 1e6,
            against="1 worker's",
        )


def _pss_bytes(version: Unpacked, workers: int) -> int:
    with _serving(version, workers=workers) as (url, process):
        _load(version, url, users=_MANY)
        everyone = (process, *process.children(recursive=True))
        return sum(each.memory_full_info().pss for each in everyone)


def _loop(version: Unpacked) -> dict[str, float]:
    program = Path(__file__).with_name("inprocess.py")
    argv = [sys.executable, "-P", str(program), str(version.model), str(_THREADS), str(_SECONDS)]
    ended = subprocess.run(argv, cwd=version.srv, env=version.environ, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def _load(version: Unpacked, url: str, *, users: int) -> LoadReport:
    report = loadcheck.run(
        LoadCheckSettings(users=users, warmup_seconds=1, max_p95_ms=60_000, min_requests=1),
        service=version.site.settings.service,
        url=url,
        exchanges=version.model,
        seconds=_SECONDS,
        allowed_builds=None,
        baseline_p95_ms=None,
        root=version.site.root,
        reports=version.site.state / "reports",
        environ=os.environ,
        proc=Proc(),
        tell=version.site.tell,
    )
    loadcheck.require_pass(report)
    return report


@contextlib.contextmanager
def _serving(version: Unpacked, *, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    environ = version.environ | {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": str(workers),
        "THREADS": str(_THREADS),
    }
    program, *words = version.site.settings.service.command
    python = sys.executable if program == "python" else program
    with subprocess.Popen([python, *words], cwd=version.srv, env=environ, stderr=subprocess.DEVNULL) as service:
        try:
            _wait_until_ready(port, version.site.settings.service.ready_path)
            yield f"http://127.0.0.1:{port}", psutil.Process(service.pid)
        finally:
            service.terminate()


def _wait_until_ready(port: int, path: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", path)
            if connection.getresponse().status == 200:  # noqa: PLR2004
                return
        time.sleep(0.1)
    message = f"the service did not get ready in {_START_S} s"
    raise TimeoutError(message)
