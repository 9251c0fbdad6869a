"""Stage `loadcheck`: put load on a service and hold what was measured against the limits.

Owns Locust's command, the figures and the gate. Locust runs headless in a process of its
own, or in several, with the repository's users and our `loadmeter`; its exit code says
nothing (one failed request makes it 1), the figures do. Knows nothing of targets: a URL is
all it needs. `run` never raises for a bad verdict; `require_pass` does.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from shipway import documents
from shipway.artifacts import LoadReport, Verdict
from shipway.config import LoadCheckSettings, ServiceSettings
from shipway.console import Tell
from shipway.errors import ConfigError, LoadCheckFailed, LoadCheckInconclusive, NotConfigured, ToolFailed
from shipway.proc import Run

STAGE = "loadcheck"
METER = Path(__file__).parents[1] / "loadmeter.py"
FIGURES, HTML = "figures.json", "report.html"
LIVE = "live "  # how the meter's lines for people begin
_FINISH_S = 15  # what requests under way get to finish when the time is over
_START_S = 60  # beyond this, a generator that neither starts nor ends is ended
_REPORTS_KEPT = 20
_DOUBT = 0.001  # figures that luck explains less often than this are proof


class Measured(Struct, frozen=True, kw_only=True):
    """What the meter counted while it measured.

    `latencies_ms` is the whole histogram: (milliseconds, requests), ascending. `answered`
    includes the warm-up. `errors` are failed requests and `user_errors` what went wrong in
    the load test itself: (text, times), the most frequent first. `parts` are the generators
    that measured to the end, of the `expected` ones.
    """

    seconds: float
    answered: int
    latencies_ms: tuple[tuple[float, int], ...]
    failures: int
    errors: tuple[tuple[str, int], ...] = ()
    user_errors: tuple[tuple[str, int], ...] = ()
    builds: Mapping[str, int]
    parts: int = 1
    expected: int = 1

    @property
    def requests(self) -> int:
        """All requests that count."""
        return sum(count for _, count in self.latencies_ms)

    @property
    def failure_ratio(self) -> float:
        """Failed requests as a share of all."""
        return self.failures / self.requests if self.requests else 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Return the least latency that `share` of the requests did not exceed (nearest rank); 0 for none."""
        rank, seen = math.ceil(round(share * self.requests, 6)), 0
        for milliseconds, count in self.latencies_ms:
            seen += count
            if seen >= rank:
                return milliseconds
        return 0.0

    def slower_than(self, limit_ms: float) -> int:
        """Return how many requests took longer."""
        return sum(count for milliseconds, count in self.latencies_ms if milliseconds > limit_ms)


Drive = Callable[[Path], str]  # puts the load on, leaves its files in the folder, says how it ended


def run(
    settings: LoadCheckSettings,
    *,
    service: ServiceSettings,
    url: str,
    exchanges: Path | None,
    seconds: float,
    allowed_builds: AbstractSet[str] | None,
    baseline_p95_ms: float | None,
    root: Path,
    reports: Path,
    environ: Mapping[str, str],
    proc: Run,
    tell: Tell,
    check_answers: bool = True,
    workers: int = 0,
) -> LoadReport:
    """Put load on `url` for `seconds` after the warm-up, and judge what was measured.

    `exchanges` is the folder of the model whose golden exchanges are asked; without one, or
    where it has none, the ready path is asked. With `allowed_builds`, only those may answer.
    Without `check_answers`, an answer's status alone counts: two models share the address.
    With `workers`, so many processes of this machine share the load.
    Raises `ConfigError` for a URL that is none, `NotConfigured` without a locustfile, and
    `ModelRefused` for exchanges that cannot be read, all before anything is started.
    """
    check_url(url)
    require_users(root / settings.locustfile)
    from shipway import exchanges as golden  # noqa: PLC0415 - not for a command that only builds

    cases = golden.load(exchanges) if exchanges else ()
    variables = user_variables(
        exchanges=str(exchanges / golden.FOLDER) if exchanges and cases else "",
        ready_path=service.ready_path,
        check_answers=check_answers,
    )

    def drive(folder: Path) -> str:
        load = options(settings, service, url=url, seconds=seconds, builds=allowed_builds is not None, workers=workers)
        return _drive(
            command(settings.locustfile, load, folder=folder, workers=workers),
            environ=child_environ(environ) | variables,
            root=root,
            log=folder / "locust.log",
            timeout_s=longest_s(settings, seconds),
            proc=proc,
            tell=tell,
        )

    return measure(
        drive,
        settings,
        url=url,
        seconds=seconds,
        allowed_builds=allowed_builds,
        baseline_p95_ms=baseline_p95_ms,
        reports=reports,
        tell=tell,
        workers=workers,
    )


def measure(
    drive: Drive,
    settings: LoadCheckSettings,
    *,
    url: str,
    seconds: float,
    allowed_builds: AbstractSet[str] | None,
    baseline_p95_ms: float | None,
    reports: Path,
    tell: Tell,
    workers: int = 0,
) -> LoadReport:
    """Let `drive` put load on `url` from wherever it does, and judge what it leaves in its folder."""
    folder = _report_folder(reports)
    tell.say(STAGE, f"{_load(settings, seconds, workers)} on {url}")
    end = drive(folder)
    measured = _read(folder / FIGURES)
    verdict, reasons = judge(measured, settings, allowed_builds=allowed_builds, baseline_p95_ms=baseline_p95_ms)
    if measured is None or measured.parts < measured.expected:
        reasons = (*reasons, end)
    if verdict == "inconclusive":
        reasons = (*reasons, f"the generator's log: {folder / 'locust.log'}")
    report = _report(measured, verdict, reasons, folder / HTML)
    tell.say(STAGE, f"{verdict}: {figures(report)}")
    return report


def require_pass(report: LoadReport) -> None:
    """Raise `LoadCheckFailed` or `LoadCheckInconclusive`, with every figure, unless it passed."""
    if report.verdict == "pass":
        return
    tail = figures(report) + (f"\nreport: {report.html}" if report.html else "")
    if report.verdict == "fail":
        raise LoadCheckFailed(f"the load check failed: {'; '.join(report.reasons)}", tail=tail)
    raise LoadCheckInconclusive(f"the load check is inconclusive: {'; '.join(report.reasons)}", tail=tail)


def figures(report: LoadReport) -> str:
    """Return the figures on one line, for people."""
    return (
        f"{report.requests} requests, {report.rate:.1f}/s, failures {report.failure_ratio:.2%}, "
        f"p50 {report.p50_ms:g} ms, p95 {report.p95_ms:g} ms, p99 {report.p99_ms:g} ms"
    )


def judge(
    measured: Measured | None,
    limits: LoadCheckSettings,
    *,
    allowed_builds: AbstractSet[str] | None,
    baseline_p95_ms: float | None,
) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict, and each figure beyond its limit: the gate, a pure function.

    Figures that say nothing about the version are inconclusive whatever they are. Too few
    samples cannot prove it good, but they can prove it bad.
    """
    if measured is None:
        return "inconclusive", ("the load generator ended before it had measured",)
    if reasons := _unusable(measured, allowed_builds):
        return "inconclusive", reasons
    few = measured.requests < limits.min_requests
    if reasons := _beyond(measured, limits, baseline_p95_ms, proven=few):
        return "fail", reasons
    if few:
        return "inconclusive", (f"only {measured.requests} requests, fewer than {limits.min_requests}",)
    return "pass", ()


def _unusable(measured: Measured, allowed_builds: AbstractSet[str] | None) -> tuple[str, ...]:
    reasons = []
    if measured.parts < measured.expected:
        reasons.append(f"{measured.parts} of {measured.expected} load generators measured to the end")
        if not measured.parts:
            return tuple(reasons)
    if measured.user_errors:
        reasons.append(f"the load test itself is broken: {_most(measured.user_errors)}")
    if not measured.answered:
        reasons.append("nobody answered" + (f": {_most(measured.errors)}" if measured.errors else ""))
    elif allowed_builds is not None:
        if not measured.builds:
            reasons.append("nobody said which build it is")
        if wrong := sorted(measured.builds.keys() - allowed_builds):
            reasons.append(f"another build answered: {', '.join(wrong)}, not {', '.join(sorted(allowed_builds))}")
    return tuple(reasons)


def _beyond(
    measured: Measured, limits: LoadCheckSettings, baseline_p95_ms: float | None, *, proven: bool
) -> tuple[str, ...]:
    """Return each figure beyond its limit; with `proven`, only those that chance does not explain."""
    reasons = []
    if measured.failure_ratio > limits.max_failure_ratio and not (
        proven and _by_chance(measured.failures, measured.requests, limits.max_failure_ratio)
    ):
        reasons.append(
            f"failures {measured.failure_ratio:.2%} ({measured.failures} of {measured.requests}), "
            f"limit {limits.max_failure_ratio:.2%}; most often {_most(measured.errors)}"
        )
    p95_ms = measured.percentile_ms(0.95)
    for limit_ms, whose in _p95_limits(limits, baseline_p95_ms):
        if p95_ms > limit_ms and not (proven and _by_chance(measured.slower_than(limit_ms), measured.requests, 0.05)):
            reasons.append(f"p95 {p95_ms:g} ms, limit {limit_ms:g} ms{whose}")
    if measured.rate < limits.min_rate:
        reasons.append(f"rate {measured.rate:.1f}/s, limit {limits.min_rate:g}/s")
    return tuple(reasons)


def _p95_limits(limits: LoadCheckSettings, baseline_p95_ms: float | None) -> Iterator[tuple[float, str]]:
    yield limits.max_p95_ms, ""
    if baseline_p95_ms is not None and limits.max_p95_growth is not None:
        limit_ms = round(limits.max_p95_growth * baseline_p95_ms, 1)
        yield limit_ms, f": {limits.max_p95_growth:g} times the last release's {baseline_p95_ms:g} ms"


def _by_chance(count: int, total: int, share: float) -> bool:
    """Return whether `count` or more of `total` may be luck where each is one by `share`.

    By Chernoff's bound for the binomial distribution, which errs towards luck.
    """
    if share == 0:
        return False
    seen = count / total
    rest = (1 - seen) * math.log((1 - seen) / (1 - share)) if seen < 1 else 0.0
    return math.exp(-total * (seen * math.log(seen / share) + rest)) > _DOUBT


def _most(errors: tuple[tuple[str, int], ...]) -> str:
    return f"{errors[0][0]} ({errors[0][1]} times)" if errors else "not said"


def options(
    settings: LoadCheckSettings, service: ServiceSettings, *, url: str, seconds: float, builds: bool, workers: int
) -> tuple[str, ...]:
    """Return the options that say how much load goes where; master and workers take the same."""
    return (
        *("--host", url.rstrip("/")),
        *("--users", str(settings.users), "--spawn-rate", str(settings.users)),
        *("--stop-timeout", str(_FINISH_S)),
        *("--meter-warmup", f"{settings.warmup_seconds:g}", "--meter-seconds", f"{seconds:g}"),
        *(("--meter-workers", str(workers)) if workers else ()),
        *(("--meter-rate", f"{settings.rate:g}") if settings.rate else ()),
        *(("--meter-version-path", service.version_path, "--meter-build-field", service.build_field) if builds else ()),
    )


def command(locustfile: str, load: Sequence[str], *, folder: Path, workers: int) -> tuple[str, ...]:
    """Return the command that starts Locust here with the repository's users and our meter."""
    port = str(_free_port()) if workers else ""
    several = ("--processes", str(workers), "--master-bind-host", "127.0.0.1", "--meter-connect", "30")
    return (
        *(sys.executable, "-m", "locust", "--headless", "--only-summary"),
        *("--locustfile", f"{locustfile},{METER}"),
        *((*several, "--master-bind-port", port, "--master-port", port) if workers else ()),
        *load,
        *("--html", str(folder / HTML)),
        *("--meter-figures", str(folder / FIGURES)),
    )


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the generator's environment: ours, without what would change Locust's own settings."""
    return {key: value for key, value in environ.items() if not key.startswith("LOCUST_")}


def user_variables(*, exchanges: str, ready_path: str, check_answers: bool) -> dict[str, str]:
    """Return what the users are told: the folder of the exchanges (may be empty), and what to do without."""
    return {"EXCHANGES": exchanges, "READY_PATH": ready_path, "CHECK_ANSWERS": "1" if check_answers else "0"}


def longest_s(settings: LoadCheckSettings, seconds: float) -> float:
    """Return after how many seconds a generator that has not ended is hung."""
    return settings.warmup_seconds + seconds + _FINISH_S + _START_S


def require_users(locustfile: Path) -> None:
    """Raise `NotConfigured` unless the file is there."""
    if not locustfile.is_file():
        raise NotConfigured(f"there is no {locustfile}; [loadcheck] locustfile in release.toml names it")


def check_url(url: str) -> None:
    """Raise `ConfigError` for what is no URL."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return
    raise ConfigError(f"{url!r} is not a URL", advice="for example --url http://127.0.0.1:8080")


def _free_port() -> int:
    """Return a port on which Locust's master can meet its workers; only this machine can reach it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _load(settings: LoadCheckSettings, seconds: float, workers: int) -> str:
    pace = f" at {settings.rate:g} requests/s" if settings.rate else ""
    spread = f" on {workers} generators" if workers else ""
    return f"{settings.users} users{spread}{pace}, {settings.warmup_seconds:g} s warm-up and {seconds:g} s measured,"


def _report_folder(reports: Path) -> Path:
    """Return a new folder for this check; of the older ones, the newest stay."""
    reports.mkdir(parents=True, exist_ok=True)
    for old in sorted(reports.glob(f"{STAGE}-*"))[: 1 - _REPORTS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return Path(tempfile.mkdtemp(prefix=f"{STAGE}-{stamp}-", dir=reports))


def _drive(
    argv: tuple[str, ...],
    *,
    environ: Mapping[str, str],
    root: Path,
    log: Path,
    timeout_s: float,
    proc: Run,
    tell: Tell,
) -> str:
    """Run Locust to its end, and return how it ended."""
    with _writing(log), log.open("w", encoding="utf-8") as lines:

        def take(line: str) -> None:
            if line.startswith(LIVE):
                tell.live(STAGE, line.removeprefix(LIVE))
            else:
                lines.write(line + "\n")

        try:
            ended = proc.run(argv, cwd=root, env=environ, on_line=take, timeout_s=timeout_s)
        except ToolFailed as error:
            return f"{error.message}: {error.tail}"
    how = f"was ended by {signal.Signals(-ended.code).name}" if ended.code < 0 else f"ended with {ended.code}"
    last = ended.tail.rstrip().rpartition("\n")[2]
    return f"it {how}; its last line: {last or '(none)'}"


@contextlib.contextmanager
def _writing(log: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot write {log}: {error.strerror}; nothing more was measured"
        raise LoadCheckInconclusive(message, advice="make room on that disk, then run again") from error


def _read(path: Path) -> Measured | None:
    try:
        found = documents.decoded(path.read_bytes())
        return merged(found["parts"], expected=found["expected"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def merged(parts: Sequence[Mapping[str, Any]], *, expected: int) -> Measured:
    """Return what several generators counted at the same time, as if one had: every request counts the same.

    Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` for what no meter wrote.
    """
    return Measured(
        seconds=max((float(part["seconds"]) for part in parts), default=1.0),
        answered=sum(part["answered"] for part in parts),
        latencies_ms=tuple(sorted(_sum(dict(part["latencies_ms"]) for part in parts).items())),
        failures=sum(part["failures"] for part in parts),
        errors=_most_frequent(dict(part["errors"]) for part in parts),
        user_errors=_most_frequent(dict(part["user_errors"]) for part in parts),
        builds=dict(_sum(part["builds"] for part in parts)),
        parts=len(parts),
        expected=expected,
    )


def _sum(counts: Iterable[Mapping[Any, int]]) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for each in counts:
        total.update(each)
    return total


def _most_frequent(counts: Iterable[Mapping[str, int]]) -> tuple[tuple[str, int], ...]:
    return tuple(_sum(counts).most_common())


def _report(measured: Measured | None, verdict: Verdict, reasons: tuple[str, ...], html: Path) -> LoadReport:
    known = measured or Measured(seconds=1, answered=0, latencies_ms=(), failures=0, builds={})
    return LoadReport(
        requests=known.requests,
        failure_ratio=known.failure_ratio,
        p50_ms=known.percentile_ms(0.50),
        p95_ms=known.percentile_ms(0.95),
        p99_ms=known.percentile_ms(0.99),
        rate=known.rate,
        verdict=verdict,
        reasons=reasons,
        html=html if html.is_file() else None,
    )
