"""The measuring half of the load check: it runs inside Locust, beside any locustfile.

Handed to Locust as one more locustfile, so it must not be imported by shipway (Locust
patches the standard library) and imports nothing of it. Owns the warm-up, the constant
rate, the exact latencies, which builds answer meanwhile, a line a second on stdout, and the
file of figures. Knows nothing of limits, nor of what the users do. Promises: a measurement
that did not run to its end leaves no file of figures.
"""

from __future__ import annotations

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
from locust import User, events, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

_ERRORS_KEPT = 5
_ERROR_LENGTH = 300
_ASK_EVERY_S = 0.25
_ASK_TIMEOUT_S = 5

stats.HISTORY_STATS_INTERVAL_SEC = 1  # a point a second in the plots; Locust's 5 s leave a short check two points


@events.init_command_line_parser.add_listener
def _arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--meter-figures", required=True, help="Where the figures go")
    parser.add_argument("--meter-warmup", type=float, required=True, help="Seconds of load that are not counted")
    parser.add_argument("--meter-seconds", type=float, required=True, help="Seconds of load that are counted")
    parser.add_argument("--meter-rate", type=float, help="Tasks per second of all users together")
    parser.add_argument("--meter-version-path", default="", help="Asked now and then for the build id")
    parser.add_argument("--meter-build-field", default="build", help="The build id's field in that JSON")


@events.init.add_listener
def _start(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    if options is None:  # pragma: no cover - Locust was not started by its command line
        raise AssertionError
    if options.meter_rate:
        pace = _pace(options.meter_rate)
        for users in environment.user_classes:
            users.wait_time = pace
    meter = Meter()
    environment.events.request.add_listener(meter.on_request)
    environment.events.user_error.add_listener(meter.on_user_error)
    measuring = gevent.spawn(_measure, environment, meter, options)
    measuring.link_exception(lambda _: os._exit(3))  # gevent has printed the traceback; else Locust would run for ever
    if options.meter_version_path:
        gevent.spawn(_ask_builds, environment.host, meter, options)


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

    def last_second(self) -> str:
        """Return the last second's rate, 95th percentile and failures, for people."""
        now = time.monotonic()
        while self.recent and self.recent[0][0] < now - 1:
            self.recent.popleft()
        times = sorted(milliseconds for _, milliseconds, _ in self.recent)
        p95 = f"{times[int(0.95 * (len(times) - 1))]:.0f} ms" if times else "-"
        return f"{len(times)} req/s  p95 {p95}  failures {sum(failed for _, _, failed in self.recent)}"

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


def _measure(environment: Environment, meter: Meter, options: Namespace) -> None:
    """Warm up, measure, let the requests under way finish, write the figures, end Locust."""
    runner = environment.runner
    if runner is None:  # pragma: no cover - the init event comes after the runner
        raise AssertionError
    _tell_each_second(meter, "warm-up", time.monotonic() + options.meter_warmup)
    environment.stats.reset_all()
    meter.began = time.monotonic()
    meter.ends = meter.began + options.meter_seconds
    _tell_each_second(meter, "measuring", meter.ends)
    runner.stop()
    Path(options.meter_figures).write_text(json.dumps(meter.figures()), "utf-8")
    runner.quit()


def _tell_each_second(meter: Meter, what: str, until: float) -> None:
    """Wait, with a line a second; end Locust when whoever started it is gone."""
    starter = os.getppid()
    while (left := until - time.monotonic()) > 0:
        gevent.sleep(min(1.0, left))
        if os.getppid() != starter:
            os._exit(3)
        sys.stdout.write(f"live {meter.last_second()}  {what}, {max(0, until - time.monotonic()):.0f} s left\n")
        sys.stdout.flush()


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
