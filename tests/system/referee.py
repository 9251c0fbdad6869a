"""The referee: a constant-rate client that runs from before to after, and counts every answer.

Half of its requests go over kept-alive connections, half open a new one each. It is strict:
nothing is sent twice, so a connection that breaks is a failed request, whosever fault it
was. A request that waits for its answer delays no other; the rate is kept.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_CLIENTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one request. `status` is 0 when there was no answer; `error` says why."""

    at: float
    kept_alive: bool
    status: int
    build: str | None
    latency_ms: float
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked, and where in the JSON answer the build id stands."""

    method: str = "GET"
    path: str = "/version"
    body: bytes | None = None
    headers: Mapping[str, str] | None = None
    build_field: str = "build"


class Referee:
    """Ask `url` at `rate` requests a second for as long as the `with` block lasts."""

    def __init__(self, url: str, *, rate: float = 40, request: Request | None = None, timeout_s: float = 30) -> None:
        """Ask for `request` (default: `/version`), and wait at most `timeout_s` for each answer."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._interval_s = _CLIENTS / rate
        self._request = request or Request()
        self._timeout_s = timeout_s
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(_CLIENTS)]
        self._answers: list[Answer] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def answers(self) -> list[Answer]:
        """All answers so far, in the order in which they came."""
        return list(self._answers)

    def failed(self) -> list[Answer]:
        """Return the requests that were not answered 200."""
        return [answer for answer in self.answers if answer.status != http.client.OK]

    def builds(self) -> list[str]:
        """Return the builds that answered, in the order of their first answer."""
        return list(dict.fromkeys(answer.build for answer in self.answers if answer.build))

    def summary(self) -> str:
        """Return the figures on one line."""
        answers = self.answers
        latencies = sorted(answer.latency_ms for answer in answers) or [0.0]
        p99 = latencies[int(len(latencies) * 0.99)]
        kept = sum(answer.kept_alive for answer in answers)
        return (
            f"{len(answers)} requests ({kept} kept-alive), {len(self.failed())} failed, "
            f"by build {dict(Counter(answer.build for answer in answers))}, "
            f"p50 {latencies[len(latencies) // 2]:.1f} p99 {p99:.1f} max {latencies[-1]:.1f} ms"
        )

    def _ask(self, number: int) -> None:
        kept_alive = number % 2 == 0
        connection = self._connection()
        due = time.monotonic() + self._interval_s * number / _CLIENTS
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            self._answers.append(self._one(connection, kept_alive=kept_alive))
            if not kept_alive:
                connection.close()
            due += self._interval_s
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, *, kept_alive: bool) -> Answer:
        at, began = time.time(), time.monotonic()
        status, build, error = 0, None, ""
        try:
            headers = dict(self._request.headers or {}) | ({} if kept_alive else {"Connection": "close"})
            connection.request(self._request.method, self._request.path, self._request.body, headers)
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
            found = json.loads(body)
            build = found.get(self._request.build_field) if isinstance(found, dict) else None
        except (OSError, http.client.HTTPException, ValueError) as problem:
            error = repr(problem)
            connection.close()
        return Answer(
            at=at,
            kept_alive=kept_alive,
            status=status,
            build=build,
            latency_ms=(time.monotonic() - began) * 1000,
            error=error,
        )

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
