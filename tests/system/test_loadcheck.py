"""Real Locust against small real servers: good, bad, slow, wrong, gone, and another build."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from msgspec.structs import replace

from shipway.artifacts import LoadReport
from shipway.config import LoadCheckSettings, ServiceSettings
from shipway.errors import ConfigError, ModelRefused, NotConfigured
from shipway.exchanges import load, play
from shipway.proc import Proc
from shipway.stages import loadcheck

ROOT = Path(__file__).parents[2]
SETTINGS = LoadCheckSettings(users=4, rate=100, warmup_seconds=0.3, min_requests=10, max_p95_ms=5000)
SERVICE = ServiceSettings(command=("serve",))
CAT: dict[str, Any] = {"predictions": [{"label": "tiger cat", "probability": 0.61}]}

Answer = tuple[int, object]


class Served:
    """A server on a free port; `score` gives the answer to each `POST /score`."""

    def __init__(self, score: Callable[[], Answer] = lambda: (200, CAT), build: str = "new") -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._send(*outer.score())

            def do_GET(self) -> None:
                self._send(200, {"build": build} if self.path == "/version" else {})

            def _send(self, status: int, document: object) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if self.close_connection:  # the client wants it; one that is not told would ask here once more
                    self.send_header("Connection", "close")
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.score = score
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


class Told:
    """A console that remembers; asked for bytes moving, it refuses."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.lived: list[str] = []

    def say(self, stage: str, text: str) -> None:
        self.said.append(f"{stage}: {text}")

    def warn(self, text: str) -> NoReturn:
        raise AssertionError(text)

    def live(self, stage: str, text: str) -> None:
        self.lived.append(f"{stage}: {text}")

    def progress(self, *args: object) -> NoReturn:
        raise AssertionError(args)


@contextlib.contextmanager
def serving(served: Served) -> Iterator[Served]:
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        thread.join()
        served.server.server_close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "golden/exchanges").mkdir(parents=True)
    (folder / "golden/cat.jpg").write_bytes(b"\xff\xd8 a cat")
    exchange = {
        "request": {"method": "POST", "path": "/score", "body_file": "../cat.jpg"},
        "response": {"json": CAT, "tolerance": 0.02},
    }
    (folder / "golden/exchanges/cat.json").write_text(json.dumps(exchange))
    return folder


@pytest.fixture
def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def check(
    url: str,
    reports: Path,
    *,
    model: Path | None = None,
    settings: LoadCheckSettings = SETTINGS,
    seconds: float = 1,
    builds: set[str] | None = None,
    baseline: float | None = None,
    root: Path = ROOT,
    told: Told | None = None,
    workers: int = 0,
) -> LoadReport:
    return loadcheck.run(
        settings,
        service=SERVICE,
        url=url,
        exchanges=model,
        seconds=seconds,
        allowed_builds=builds,
        baseline_p95_ms=baseline,
        root=root,
        reports=reports,
        environ=os.environ | {"PYTHONPATH": str(ROOT), "LOCUST_USERS": "999"},
        proc=Proc(),
        tell=told or Told(),
        workers=workers,
    )


def every(count: int, bad: Answer) -> Callable[[], Answer]:
    """Return a score that is `bad` once in `count` times."""
    numbers = itertools.count(1)
    return lambda: bad if next(numbers) % count == 0 else (200, CAT)


# -- the service -------------------------------------------------------------------------


def test_loadcheck_passes_and_leaves_a_report_when_the_service_is_good(tmp_path: Path, model: Path) -> None:
    told = Told()
    with serving(Served()) as served:
        report = check(
            served.url, tmp_path / "reports", model=model, seconds=1.5, builds={"new"}, baseline=2500, told=told
        )

    assert (report.verdict, report.reasons, report.failure_ratio) == ("pass", (), 0.0)
    assert 0 < report.p50_ms <= report.p95_ms <= report.p99_ms
    assert report.html is not None
    assert "/score (cat)" in report.html.read_text("utf-8")
    assert all(line.startswith("loadcheck: ") and " req/s  p95 " in line for line in told.lived)
    assert len(told.lived) >= 2
    assert told.said[-1].startswith(f"loadcheck: pass: {report.requests} requests")


def test_loadcheck_keeps_a_constant_rate_when_one_is_set(tmp_path: Path, model: Path) -> None:
    settings = replace(SETTINGS, rate=40)

    with serving(Served()) as served:
        report = check(served.url, tmp_path, model=model, settings=settings, seconds=2)

    assert 30 < report.rate <= 42


def test_loadcheck_does_not_count_the_warm_up(tmp_path: Path, model: Path) -> None:
    asked: list[float] = []

    def cold() -> Answer:
        asked.append(time.monotonic())
        return (500, {}) if asked[-1] - asked[0] < 0.5 else (200, CAT)

    settings = replace(SETTINGS, warmup_seconds=1.0)
    with serving(Served(cold)) as served:
        report = check(served.url, tmp_path, model=model, settings=settings)

    assert (report.verdict, report.failure_ratio) == ("pass", 0.0)
    assert report.requests < len(asked)


def test_loadcheck_asks_the_ready_path_when_there_is_no_model(tmp_path: Path) -> None:
    with serving(Served()) as served:
        report = check(f"{served.url}/", tmp_path)

    assert report.verdict == "pass"
    assert report.html is not None
    assert "/readyz (ready)" in report.html.read_text("utf-8")


def test_loadcheck_fails_naming_the_share_when_five_percent_are_errors(tmp_path: Path, model: Path) -> None:
    with serving(Served(every(20, (500, {})))) as served:
        report = check(served.url, tmp_path, model=model, builds={"new"})

    (reason,) = report.reasons
    assert report.verdict == "fail"
    assert report.failure_ratio == pytest.approx(0.05, abs=0.01)
    assert reason.startswith("failures ")
    assert "limit 0.00%; most often POST /score (cat): status 500, not 200 (" in reason


def test_loadcheck_fails_naming_case_and_field_when_answers_are_wrong_with_status_200(
    tmp_path: Path, model: Path
) -> None:
    wrong = {"predictions": [{"label": "lynx", "probability": 0.61}]}
    with serving(Served(lambda: (200, wrong))) as served:
        report = check(served.url, tmp_path, model=model)

    (reason,) = report.reasons
    assert (report.verdict, report.failure_ratio) == ("fail", 1.0)
    assert 'POST /score (cat): $.predictions[0].label is "lynx", not "tiger cat"' in reason


def test_loadcheck_fails_naming_p95_when_the_service_is_slow(tmp_path: Path, model: Path) -> None:
    def slow() -> Answer:
        time.sleep(0.15)
        return 200, CAT

    settings = replace(SETTINGS, max_p95_ms=80)
    with serving(Served(slow)) as served:
        report = check(served.url, tmp_path, model=model, settings=settings, baseline=60)

    assert report.verdict == "fail"
    assert report.reasons == (
        f"p95 {report.p95_ms:g} ms, limit 80 ms",
        f"p95 {report.p95_ms:g} ms, limit 120 ms: 2 times the last release's 60 ms",
    )


# -- no data is not a pass ---------------------------------------------------------------


def test_loadcheck_is_inconclusive_when_nobody_answers(tmp_path: Path, model: Path, free_url: str) -> None:
    report = check(free_url, tmp_path, model=model, builds={"new"})

    first, log = report.reasons
    assert report.verdict == "inconclusive"
    assert first.startswith("nobody answered: POST /score (cat): [Errno 111] Connection refused")
    assert log.startswith("the generator's log: ")


def test_loadcheck_is_inconclusive_when_another_build_answers(tmp_path: Path, model: Path) -> None:
    with serving(Served(build="old")) as served:
        report = check(served.url, tmp_path, model=model, builds={"new"})

    assert report.verdict == "inconclusive"
    assert report.reasons[0] == "another build answered: old, not new"


KILLED = """
import os, locust
class Killed(locust.User):
    @locust.task
    def end(self):
        os.kill(os.getpid(), 9)
"""
RAISES = """
import locust
class Raises(locust.User):
    @locust.task
    def end(self):
        raise KeyError("predictions")
"""


@pytest.mark.parametrize(
    ("locustfile", "told"),
    [
        ("raise RuntimeError('broken on purpose')", "it ended with 1; its last line: RuntimeError: broken on purpose"),
        ("", "it ended with 1; its last line: "),
        (KILLED, "it was ended by SIGKILL; its last line: "),
        (RAISES, "the load test itself is broken: KeyError('predictions') ("),
    ],
    ids=["raises", "empty", "killed", "task raises"],
)
def test_loadcheck_is_inconclusive_and_names_the_log_when_the_generator_breaks(
    tmp_path: Path, locustfile: str, told: str
) -> None:
    (tmp_path / "users.py").write_text(locustfile)
    settings = replace(SETTINGS, locustfile="users.py", rate=20)

    with serving(Served()) as served:
        report = check(served.url, tmp_path / "reports", settings=settings, root=tmp_path, seconds=1)

    log = Path(report.reasons[-1].removeprefix("the generator's log: "))
    assert report.verdict == "inconclusive"
    assert any(reason.startswith(told) for reason in report.reasons), report.reasons
    assert log.is_file()


# -- several generators ------------------------------------------------------------------


def test_loadcheck_merges_what_every_worker_counted(tmp_path: Path, model: Path) -> None:
    told, settings = Told(), replace(SETTINGS, users=6, rate=60)

    with serving(Served()) as served:
        report = check(
            served.url, tmp_path, model=model, settings=settings, seconds=2, builds={"new"}, told=told, workers=3
        )

    assert report.html is not None
    assert "/score (cat)" in report.html.read_text("utf-8")
    parts = json.loads((report.html.parent / "figures.json").read_bytes())["parts"]
    counted = [sum(count for _, count in part["latencies_ms"]) for part in parts]
    assert (report.verdict, report.requests, len(counted)) == ("pass", sum(counted), 3)
    assert min(counted) > 0
    assert 40 < report.rate <= 63  # in all, not of each
    assert told.said[0].startswith("loadcheck: 6 users on 3 generators at 60 requests/s")


ONE_DIES = """
import os, sys, time, locust
class Mortal(locust.User):
    wait_time = locust.constant(0.05)
    began = time.monotonic()
    @locust.task
    def live(self):
        if time.monotonic() > self.began + 1.0:
            try:
                os.close(os.open("dead", os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), 9)
            except FileExistsError:
                pass
        self.environment.events.request.fire(
            request_type="GET", name="x", response_time=5, response_length=0, exception=None, context={}
        )
"""


def test_loadcheck_is_inconclusive_when_one_of_its_workers_dies(tmp_path: Path) -> None:
    (tmp_path / "users.py").write_text(ONE_DIES)
    settings = replace(SETTINGS, locustfile="users.py", rate=None)

    with serving(Served()) as served:
        report = check(served.url, tmp_path / "reports", settings=settings, root=tmp_path, seconds=1.5, workers=2)

    assert report.verdict == "inconclusive"
    assert report.reasons[0] == "1 of 2 load generators measured to the end"
    assert report.requests > 0


# -- before anything is started ----------------------------------------------------------


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://host/", "http://", "http://[::1", "http://host:99999"])
def test_loadcheck_refuses_the_url_when_it_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="is not a URL"):
        check(url, tmp_path)


def test_loadcheck_names_the_setting_when_there_is_no_locustfile(tmp_path: Path, free_url: str) -> None:
    with pytest.raises(NotConfigured, match=r"there is no .*users\.py; \[loadcheck\] locustfile"):
        check(free_url, tmp_path, settings=replace(SETTINGS, locustfile="users.py"))


def test_loadcheck_refuses_exchanges_that_cannot_be_read(tmp_path: Path, model: Path, free_url: str) -> None:
    (model / "golden/exchanges/cat.json").write_text("{}")

    with pytest.raises(ModelRefused, match=r"golden/exchanges/cat\.json: request: is missing"):
        check(free_url, tmp_path, model=model)


# -- ends --------------------------------------------------------------------------------

STARTER = """
import os, sys
from pathlib import Path
from shipway.config import LoadCheckSettings, ServiceSettings
from shipway.console import Console
from shipway.proc import Proc, signals_as_errors
from shipway.stages import loadcheck
root, reports, url, workers = map(str, sys.argv[1:])
with signals_as_errors():
    loadcheck.run(
        LoadCheckSettings(warmup_seconds=0), service=ServiceSettings(command=("serve",)), url=url, exchanges=None,
        seconds=120, allowed_builds=None, baseline_p95_ms=None, root=Path(root), reports=Path(reports),
        environ=os.environ, proc=Proc(), tell=Console(), workers=int(workers),
    )
"""


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, 0), (signal.SIGKILL, 2)],
)
def test_loadcheck_leaves_no_generator_behind_when_it_is_ended(
    tmp_path: Path, free_url: str, number: signal.Signals, workers: int
) -> None:
    argv = [sys.executable, "-c", STARTER, str(ROOT), str(tmp_path), free_url, str(workers)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True) as starter:
        assert starter.stderr is not None
        while "measuring" not in starter.stderr.readline():
            assert starter.poll() is None
        generators = psutil.Process(starter.pid).children(recursive=True)
        starter.send_signal(number)
        starter.wait(20)

    _, alive = psutil.wait_procs(generators, timeout=10)

    assert (len(generators), alive) == (1 + workers, [])


# -- golden exchanges, played ------------------------------------------------------------


def test_play_finds_no_difference_when_answers_are_right(model: Path) -> None:
    with serving(Served()) as served:
        assert play(served.url, load(model), timeout_s=5) == ()


def test_play_names_case_and_field_when_an_answer_is_wrong(model: Path) -> None:
    with serving(Served(lambda: (200, {"predictions": [{"label": "lynx"}]}))) as served:
        found = play(served.url, load(model), timeout_s=5)

    assert found == (
        'cat: $.predictions[0].label: expected "tiger cat", got "lynx"',
        "cat: $.predictions[0].probability: expected 0.61, got nothing",
    )


def test_play_tells_who_did_not_answer_when_the_connection_is_refused(model: Path, free_url: str) -> None:
    assert play(free_url, load(model), timeout_s=5) == (
        f"cat: no answer from {free_url}: [Errno 111] Connection refused",
    )


def test_play_tells_who_did_not_answer_when_time_is_over(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"

        assert play(url, load(model), timeout_s=0.2) == (f"cat: no answer from {url}: timed out",)


def test_play_tells_who_did_not_answer_when_it_is_not_http(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd:
        url = f"http://127.0.0.1:{odd.getsockname()[1]}"

        def answer() -> None:
            with odd.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = play(url, load(model), timeout_s=5)
        thread.join()

    assert found == (f"cat: no answer from {url}: SSH-2.0-OpenSSH_9.9",)
