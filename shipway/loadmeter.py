"""The measuring half of the load check: it runs inside Locust, beside any locustfile.

Handed to Locust as one more locustfile, so it must not be imported by shipway (Locust
patches the standard library) and imports nothing of it. Owns the warm-up, the constant
rate, the exact latencies, which builds answer meanwhile, a line a second on stdout, and the
file of figures. Knows nothing of limits, nor of what the users do.

In one process, or as Locust's master and workers: then each worker measures on its own
clock from the moment the master says so, and sends all that it counted when its time is
over. The file holds every part as it was counted, and how many parts there should be.
Promises: what did not run to its end has no part in the file.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import sys
import time
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from locust import User, events, runners, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, Runner, WorkerRunner

_ERRORS_KEPT = 5
_ERROR_LENGTH = 300
_ASK_EVERY_S = 0.25
_ASK_TIMEOUT_S = 5
_BROKEN = 3  # the exit code of a generator that ends itself before its time
_BEGIN, _FIGURES, _LAST_SECOND = "meter-begin", "meter-figures", "meter"  # what master and workers tell each other
_SPAWNING_S = 60  # what users may take to be there once all workers are
_LOST_S = 5  # what Locust takes, at least, to miss a worker that is gone
_PARTS_S = 30  # what the workers' figures may take, beyond the requests under way
_HOME_LINE = 8000  # letters of a file on one line of a log; runtimes split longer ones than 16 KiB

runners.WORKER_REPORT_INTERVAL = 1.0  # as often as a line is told
stats.HISTORY_STATS_INTERVAL_SEC = 1  # a point a second in the plots; Locust's 5 s leave a short check two points


@events.init_command_line_parser.add_listener
def _arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--meter-figures", required=True, help="Where the figures go")
    parser.add_argument("--meter-warmup", type=float, required=True, help="Seconds of load that are not counted")
    parser.add_argument("--meter-seconds", type=float, required=True, help="Seconds of load that are counted")
    parser.add_argument("--meter-rate", type=float, help="Tasks per second of all users together")
    parser.add_argument("--meter-workers", type=int, default=0, help="How many workers share the load; 0: no workers")
    parser.add_argument("--meter-connect", type=float, default=60, help="Seconds until all workers must be there")
    parser.add_argument("--meter-home", default="", help="A folder whose files go to stdout in the end")
    parser.add_argument("--meter-version-path", default="", help="Asked now and then for the build id")
    parser.add_argument("--meter-build-field", default="build", help="The build id's field in that JSON")


@events.init.add_listener
def _start(environment: Environment, **_: Any) -> None:
    options, runner = environment.parsed_options, environment.runner
    if options is None or runner is None:  # pragma: no cover - Locust was not started by its command line
        raise AssertionError
    if options.meter_home:
        environment.events.quit.add_listener(lambda **_: _bring_home(options))
    if isinstance(runner, MasterRunner):
        _go(_conduct, environment, runner, options)
        return
    if options.meter_rate:
        pace = _pace(options.meter_rate / max(1, options.meter_workers))
        for users in environment.user_classes:
            users.wait_time = pace
    meter = Meter()
    environment.events.request.add_listener(meter.on_request)
    environment.events.user_error.add_listener(meter.on_user_error)
    if isinstance(runner, WorkerRunner):
        _work(environment, runner, meter, options)
    else:
        _go(_measure, environment, runner, meter, options)
    if options.meter_version_path:
        gevent.spawn(_ask_builds, environment.host, meter, options)


def _go(function: Callable[..., None], *args: Any) -> None:
    """Let it run beside the users; if it breaks, end Locust, which else would run for ever."""
    gevent.spawn(function, *args).link_exception(lambda _: os._exit(_BROKEN))  # gevent has printed the traceback


class Meter:
    """What was seen so far. Only requests that began in the measured time count."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self.began = self.ends = float("inf")
        self.answered = 0
        self.latencies: Counter[float] = Counter()
        self.failures: Counter[str] = Counter()
        self.user_errors: Counter[str] = Counter()
        self.builds: Counter[str] = Counter()
        self.recent: deque[tuple[float, float, bool]] = deque()

    def on_request(
        self,
        *,
        request_type: str,
        name: str,
        response_time: float,
        response: Any = None,
        exception: object = None,
        **_: Any,
    ) -> None:
        """Take one finished request, as Locust's `request` event tells it; milliseconds."""
        now = time.monotonic()
        self.recent.append((now, response_time, exception is not None))
        if exception is None or getattr(response, "status_code", 0) > 0:
            self.answered += 1
        if self.began <= now - response_time / 1000 < self.ends:
            self.latencies[round(response_time, 1)] += 1
            if exception is not None:
                self.failures[f"{request_type} {name}: {exception}"[:_ERROR_LENGTH]] += 1

    def on_user_error(self, *, exception: object, **_: Any) -> None:
        """Take an exception that left a user's task: the load test itself is broken."""
        self.user_errors[repr(exception)[:_ERROR_LENGTH]] += 1

    def last_second(self) -> tuple[Counter[float], int]:
        """Return the last second's latencies and failures."""
        now = time.monotonic()
        while self.recent and self.recent[0][0] < now - 1:
            self.recent.popleft()
        times = Counter(round(milliseconds) for _, milliseconds, _ in self.recent)
        return Counter({float(ms): count for ms, count in times.items()}), sum(failed for _, _, failed in self.recent)

    def figures(self) -> dict[str, Any]:
        """Return all that was counted, for the file."""
        return {
            "seconds": self.ends - self.began,
            "answered": self.answered,
            "latencies_ms": sorted(self.latencies.items()),
            "failures": self.failures.total(),
            "errors": self.failures.most_common(_ERRORS_KEPT),
            "user_errors": self.user_errors.most_common(_ERRORS_KEPT),
            "builds": dict(self.builds),
        }


# -- in one process ------------------------------------------------------------------------


def _measure(environment: Environment, runner: Runner, meter: Meter, options: Namespace) -> None:
    """Warm up, measure, let the requests under way finish, write the figures, end Locust."""
    _tell_each_second(meter.last_second, "warm-up", time.monotonic() + options.meter_warmup)
    environment.stats.reset_all()
    meter.began = time.monotonic()
    meter.ends = meter.began + options.meter_seconds
    _tell_each_second(meter.last_second, "measuring", meter.ends)
    runner.stop()
    _write(options, [meter.figures()])
    runner.quit()


# -- in several: a worker ------------------------------------------------------------------


def _work(environment: Environment, runner: WorkerRunner, meter: Meter, options: Namespace) -> None:
    def tell(client_id: str, data: dict[str, Any]) -> None:  # noqa: ARG001 - Locust passes it by name
        latencies, failures = meter.last_second()
        data[_LAST_SECOND] = {"latencies_ms": list(latencies.items()), "failures": failures}

    def measure(**_: Any) -> None:
        environment.stats.reset_all()
        meter.began = time.monotonic()
        meter.ends = meter.began + options.meter_seconds
        gevent.sleep(options.meter_seconds)
        runner.stop()
        runner.send_message(_FIGURES, meter.figures())

    def end_with_the_starter() -> None:
        starter = os.getppid()
        while os.getppid() == starter:
            gevent.sleep(1)
        os._exit(_BROKEN)

    environment.events.report_to_master.add_listener(tell)
    runner.register_message(_BEGIN, measure, concurrent=True)
    _go(end_with_the_starter)


# -- in several: the master ----------------------------------------------------------------


def _conduct(environment: Environment, runner: MasterRunner, options: Namespace) -> None:
    """Wait for the workers, let them warm up and measure at once, write what each counted, end Locust."""
    parts: dict[str, Any] = {}
    seconds: dict[str, tuple[Counter[float], int]] = {}

    def take(msg: Any, **_: Any) -> None:
        parts[msg.node_id] = msg.data

    def hear(client_id: str, data: dict[str, Any]) -> None:
        if told := data.get(_LAST_SECOND):
            seconds[client_id] = Counter(dict(map(tuple, told["latencies_ms"]))), told["failures"]

    def last_second() -> tuple[Counter[float], int]:
        return sum((each for each, _ in seconds.values()), Counter()), sum(failures for _, failures in seconds.values())

    def is_going() -> bool:
        return bool(runner.spawning_completed)

    runner.register_message(_FIGURES, take)
    environment.events.worker_report.add_listener(hear)
    environment.events.quitting.add_listener(lambda **_: _write(options, list(parts.values())))
    if not _wait_for(lambda: is_going() or len(runner.clients.ready) >= options.meter_workers, options.meter_connect):
        _give_up(options, f"{len(runner.clients.ready)} of {options.meter_workers} workers came")
    if not _wait_for(is_going, _SPAWNING_S):
        _give_up(options, "the workers did not start their users")
    _tell_each_second(last_second, "warm-up", time.monotonic() + options.meter_warmup)
    environment.stats.reset_all()
    runner.send_message(_BEGIN)
    _tell_each_second(last_second, "measuring", time.monotonic() + options.meter_seconds)
    over = time.monotonic()

    def is_over() -> bool:
        lost = time.monotonic() > over + _LOST_S and len(parts) >= runner.worker_count
        return len(parts) >= options.meter_workers or lost

    _wait_for(is_over, environment.stop_timeout + _PARTS_S)
    runner.quit()


def _wait_for(is_so: Callable[[], bool], timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    starter = os.getppid()
    while not is_so() and time.monotonic() < until:
        if os.getppid() != starter:
            os._exit(_BROKEN)
        gevent.sleep(0.1)
    return is_so()


def _give_up(options: Namespace, why: str) -> None:
    """End without having measured: the file says that nobody took part."""
    sys.stdout.write(f"{why}\n")
    _write(options, [])
    if options.meter_home:
        _bring_home(options)
    sys.stdout.flush()
    os._exit(_BROKEN)  # Locust's main loop waits for the workers for ever


# -- what is told --------------------------------------------------------------------------


def _write(options: Namespace, parts: list[dict[str, Any]]) -> None:
    told = {"expected": max(1, options.meter_workers), "parts": parts}
    Path(options.meter_figures).write_text(json.dumps(told), "utf-8")


def _bring_home(options: Namespace) -> None:
    """Print the report's files, so that whoever can read this process's log has them, whole or not at all."""
    for file in sorted(Path(options.meter_home).iterdir()):
        data = file.read_bytes()
        text = base64.b64encode(gzip.compress(data)).decode("ascii")
        for start in range(0, len(text), _HOME_LINE):
            sys.stdout.write(f"home {file.name} {text[start : start + _HOME_LINE]}\n")
        sys.stdout.write(f"home-end {file.name} {hashlib.sha256(data).hexdigest()}\n")
    sys.stdout.flush()


def _tell_each_second(last_second: Callable[[], tuple[Counter[float], int]], what: str, until: float) -> None:
    """Wait, with a line a second; end Locust when whoever started it is gone."""
    starter = os.getppid()
    while (left := until - time.monotonic()) > 0:
        gevent.sleep(min(1.0, left))
        if os.getppid() != starter:
            os._exit(_BROKEN)
        told = _line(*last_second())
        sys.stdout.write(f"live {told}  {what}, {max(0, until - time.monotonic()):.0f} s left\n")
        sys.stdout.flush()


def _line(latencies: Counter[float], failures: int) -> str:
    """Return a second's rate, 95th percentile and failures, for people."""
    times = sorted(latencies.elements())
    p95 = f"{times[int(0.95 * (len(times) - 1))]:.0f} ms" if times else "-"
    return f"{len(times)} req/s  p95 {p95}  failures {failures}"


def _pace(rate: float) -> Callable[[User], float]:
    """Return a wait time that hands out moments `1 / rate` apart to all users together.

    Moments that nobody was free to take are not made up for: that would be a burst.
    """
    moment = time.monotonic()

    def wait(_: User) -> float:
        nonlocal moment
        now = time.monotonic()
        moment = max(moment + 1 / rate, now)
        return moment - now

    return wait


def _ask_builds(url: str, meter: Meter, options: Namespace) -> None:
    """Count the build ids that answer, each on a connection of its own; those who do not are not counted."""
    base = urlsplit(url)
    kind = HTTPSConnection if base.scheme == "https" else HTTPConnection
    while True:
        connection = kind(base.netloc.rpartition("@")[2], timeout=_ASK_TIMEOUT_S)
        try:
            connection.request("GET", base.path.rstrip("/") + options.meter_version_path)
            meter.builds[str(json.loads(connection.getresponse().read())[options.meter_build_field])] += 1
        except (OSError, HTTPException, ValueError, LookupError, TypeError):
            pass
        finally:
            connection.close()
        gevent.sleep(_ASK_EVERY_S)
