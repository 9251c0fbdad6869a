"""The gate: a pure function from figures and limits to a verdict."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shipway import exchanges as golden
from shipway.artifacts import LoadReport
from shipway.config import LoadCheckSettings, ServiceSettings
from shipway.errors import LoadCheckFailed, LoadCheckInconclusive, ToolFailed
from shipway.proc import Completed
from shipway.stages.loadcheck import (
    Measured,
    child_environ,
    command,
    judge,
    measure,
    merged,
    options,
    require_pass,
    run,
    user_variables,
)

LIMITS = LoadCheckSettings(max_p95_ms=100, max_p95_growth=2.0, min_requests=50, min_rate=5)
GOOD = Measured(seconds=10, answered=120, latencies_ms=((20.0, 96), (50.0, 4)), failures=0, builds={"new": 9})
HISTOGRAMS = st.dictionaries(st.floats(0, 5000).map(lambda ms: round(ms, 1)), st.integers(1, 200), max_size=20).map(
    lambda counts: tuple(sorted(counts.items()))
)


def verdict(measured: Measured | None, limits: LoadCheckSettings = LIMITS, baseline: float | None = None) -> str:
    return judge(measured, limits, allowed_builds={"new"}, baseline_p95_ms=baseline)[0]


def reasons(measured: Measured | None, limits: LoadCheckSettings = LIMITS, baseline: float | None = None) -> str:
    return "; ".join(judge(measured, limits, allowed_builds={"new"}, baseline_p95_ms=baseline)[1])


def test_gate_passes_when_every_figure_is_within_its_limit() -> None:
    assert judge(GOOD, LIMITS, allowed_builds={"new"}, baseline_p95_ms=20) == ("pass", ())


@pytest.mark.parametrize(
    ("measured", "baseline", "told"),
    [
        (
            replace(GOOD, failures=5, errors=(("POST /score (cat): status 500, not 200", 5),)),
            None,
            "failures 5.00% (5 of 100), limit 0.00%; most often POST /score (cat): status 500, not 200 (5 times)",
        ),
        (replace(GOOD, latencies_ms=((20.0, 94), (200.0, 6))), None, "p95 200 ms, limit 100 ms"),
        (
            replace(GOOD, latencies_ms=((90.0, 100),)),
            40.0,
            "p95 90 ms, limit 80 ms: 2 times the last release's 40 ms",
        ),
        (replace(GOOD, seconds=50), None, "rate 2.0/s, limit 5/s"),
    ],
)
def test_gate_fails_naming_figure_and_limit_when_one_is_beyond(
    measured: Measured, baseline: float | None, told: str
) -> None:
    assert judge(measured, LIMITS, allowed_builds={"new"}, baseline_p95_ms=baseline) == ("fail", (told,))


def test_gate_tells_every_figure_beyond_its_limit() -> None:
    measured = replace(GOOD, latencies_ms=((200.0, 60),), failures=60, seconds=60)

    assert judge(measured, LIMITS, allowed_builds=None, baseline_p95_ms=50) == (
        "fail",
        (
            "failures 100.00% (60 of 60), limit 0.00%; most often not said",
            "p95 200 ms, limit 100 ms",
            "p95 200 ms, limit 100 ms: 2 times the last release's 50 ms",
            "rate 1.0/s, limit 5/s",
        ),
    )


def test_gate_ignores_the_last_release_when_growth_is_not_limited() -> None:
    assert verdict(GOOD, replace(LIMITS, max_p95_growth=None), baseline=0.1) == "pass"


@pytest.mark.parametrize(
    ("measured", "told"),
    [
        (None, "the load generator ended before it had measured"),
        (replace(GOOD, answered=0), "nobody answered"),
        (replace(GOOD, builds={}), "nobody said which build it is"),
        (replace(GOOD, builds={"new": 8, "old": 1}), "another build answered: old, not new"),
        (replace(GOOD, user_errors=(("KeyError('a')", 3),)), "the load test itself is broken: KeyError('a') (3 times)"),
        (replace(GOOD, latencies_ms=((20.0, 49),), seconds=1), "only 49 requests, fewer than 50"),
        (replace(GOOD, latencies_ms=()), "rate 0.0/s, limit 5/s"),
    ],
)
def test_gate_does_not_pass_when_the_figures_say_nothing(measured: Measured | None, told: str) -> None:
    assert verdict(measured) != "pass"
    assert told in reasons(measured)


def test_gate_is_inconclusive_when_another_build_answered_however_bad_the_figures() -> None:
    measured = replace(GOOD, latencies_ms=((900.0, 100),), failures=100, builds={"old": 9})

    assert verdict(measured) == "inconclusive"


def test_gate_asks_for_no_build_when_none_is_named() -> None:
    measured = replace(GOOD, builds={})

    assert judge(measured, LIMITS, allowed_builds=None, baseline_p95_ms=None) == ("pass", ())


@pytest.mark.parametrize(
    ("latencies_ms", "failures", "expected"),
    [
        (((500.0, 20),), 0, "fail"),  # every one of 20 is too slow: no luck explains that
        (((20.0, 18), (500.0, 2)), 0, "inconclusive"),  # 2 of 20 may be luck
        (((500.0, 1),), 0, "inconclusive"),
        (((20.0, 3),), 1, "fail"),  # no failure is allowed, and there is one
    ],
)
def test_gate_fails_on_few_samples_only_when_luck_does_not_explain_them(
    latencies_ms: tuple[tuple[float, int], ...], failures: int, expected: str
) -> None:
    measured = replace(GOOD, seconds=1, latencies_ms=latencies_ms, failures=failures)

    assert verdict(measured, replace(LIMITS, min_rate=0)) == expected


def test_gate_stays_quick_when_very_many_samples_are_too_few() -> None:
    limits = replace(LIMITS, min_requests=10**7)

    assert verdict(replace(GOOD, latencies_ms=((500.0, 10**6),)), limits) == "fail"
    assert verdict(replace(GOOD, latencies_ms=((50.0, 10**6),)), limits) == "inconclusive"


@given(HISTOGRAMS, st.sampled_from([0.5, 0.95, 0.99]))
def test_percentile_is_the_nearest_rank_of_all_requests(histogram: tuple[tuple[float, int], ...], share: float) -> None:
    measured = replace(GOOD, latencies_ms=histogram)
    every = sorted(milliseconds for milliseconds, count in histogram for _ in range(count))

    found = measured.percentile_ms(share)

    assert found == (every[math.ceil(round(share * len(every), 6)) - 1] if every else 0.0)


@given(HISTOGRAMS, st.integers(0, 50), st.none() | st.floats(1, 500), st.floats(0.1, 100))
def test_gate_passes_only_when_every_limit_is_kept(
    histogram: tuple[tuple[float, int], ...], failures: int, baseline: float | None, seconds: float
) -> None:
    limits = replace(LIMITS, max_failure_ratio=0.1)
    measured = replace(GOOD, latencies_ms=histogram, failures=failures, seconds=seconds)

    passed = verdict(measured, limits, baseline) == "pass"

    assert passed == (
        measured.requests >= limits.min_requests
        and failures <= 0.1 * measured.requests
        and measured.percentile_ms(0.95) <= 100
        and (baseline is None or measured.percentile_ms(0.95) <= round(2 * baseline, 1))
        and measured.rate >= 5
    )


@given(HISTOGRAMS, st.integers(0, 20), st.integers(1, 20))
def test_gate_never_passes_what_it_did_not_when_more_requests_fail(
    histogram: tuple[tuple[float, int], ...], failures: int, more: int
) -> None:
    limits = replace(LIMITS, max_failure_ratio=0.1)
    measured = replace(GOOD, latencies_ms=histogram, failures=failures)

    assert (verdict(measured, limits), verdict(replace(measured, failures=failures + more), limits)) not in {
        ("fail", "pass"),
        ("inconclusive", "pass"),
    }


# -- what the user reads -----------------------------------------------------------------

REPORT = LoadReport(
    requests=100,
    failure_ratio=0.05,
    p50_ms=20,
    p95_ms=50.5,
    p99_ms=60,
    rate=10,
    verdict="fail",
    reasons=("failures 5.00% (5 of 100), limit 0.00%; most often x",),
    html=Path("reports/report.html"),
)


def test_require_pass_is_silent_when_it_passed() -> None:
    require_pass(replace(REPORT, verdict="pass"))


def test_require_pass_tells_figures_limits_and_report_when_it_failed() -> None:
    with pytest.raises(LoadCheckFailed) as caught:
        require_pass(REPORT)

    assert str(caught.value).splitlines()[:3] == [
        "the load check failed: failures 5.00% (5 of 100), limit 0.00%; most often x",
        "  | 100 requests, 10.0/s, failures 5.00%, p50 20 ms, p95 50.5 ms, p99 60 ms",
        "  | report: reports/report.html",
    ]


def test_require_pass_tells_why_when_it_is_inconclusive() -> None:
    with pytest.raises(LoadCheckInconclusive, match="the load check is inconclusive: nobody answered"):
        require_pass(replace(REPORT, verdict="inconclusive", reasons=("nobody answered",), html=None))


# -- the generator's command and environment ---------------------------------------------


def test_options_name_rate_version_path_and_workers_only_when_they_are_wanted() -> None:
    service = ServiceSettings(command=("serve",), build_field="id")
    settings = LoadCheckSettings(users=3, rate=20, warmup_seconds=1.5)

    plain = options(LoadCheckSettings(), service, url="http://h/", seconds=2, builds=False, workers=0)
    full = options(settings, service, url="http://h/", seconds=2, builds=True, workers=4)

    assert plain == (
        *("--host", "http://h", "--users", "4", "--spawn-rate", "4", "--stop-timeout", "15"),
        *("--meter-warmup", "2", "--meter-seconds", "2"),
    )
    assert full[full.index("--meter-warmup") :] == (
        *("--meter-warmup", "1.5", "--meter-seconds", "2", "--meter-workers", "4", "--meter-rate", "20"),
        *("--meter-version-path", "/version", "--meter-build-field", "id"),
    )


def test_command_starts_one_process_when_there_are_no_workers(tmp_path: Path) -> None:
    argv = command("users.py", ("--users", "3"), folder=tmp_path, workers=0)

    meter = Path(golden.__file__).with_name("loadmeter.py")
    assert argv == (
        *(sys.executable, "-m", "locust", "--headless", "--only-summary", "--locustfile", f"users.py,{meter}"),
        *("--users", "3", "--html", str(tmp_path / "report.html")),
        *("--meter-figures", str(tmp_path / "figures.json")),
    )


def test_child_environ_drops_what_would_change_locusts_own_settings() -> None:
    environ = {"PATH": "/bin", "LOCUST_USERS": "9"}

    assert child_environ(environ) == {"PATH": "/bin"}


def test_users_are_told_the_exchanges_and_what_counts() -> None:
    assert user_variables(exchanges="/m/golden/exchanges", ready_path="/r", check_answers=True) == {
        "EXCHANGES": "/m/golden/exchanges",
        "READY_PATH": "/r",
        "CHECK_ANSWERS": "1",
    }
    assert user_variables(exchanges="", ready_path="/r", check_answers=False) == {
        "EXCHANGES": "",
        "READY_PATH": "/r",
        "CHECK_ANSWERS": "0",
    }


# -- what several generators counted -----------------------------------------------------

PART = {
    "seconds": 10.0,
    "answered": 60,
    "latencies_ms": [[20.0, 50]],
    "failures": 2,
    "errors": [["POST /score: 500", 2]],
    "user_errors": [],
    "builds": {"new": 4},
}


def test_merged_counts_every_request_of_every_generator() -> None:
    other = {**PART, "latencies_ms": [[20.0, 1], [90.0, 9]], "errors": [["GET /: 500", 1], ["POST /score: 500", 3]]}

    assert merged([PART, other], expected=3) == Measured(
        seconds=10.0,
        answered=120,
        latencies_ms=((20.0, 51), (90.0, 9)),
        failures=4,
        errors=(("POST /score: 500", 5), ("GET /: 500", 1)),
        builds={"new": 8},
        parts=2,
        expected=3,
    )


@given(st.lists(HISTOGRAMS, min_size=1, max_size=5), st.sampled_from([0.5, 0.95, 0.99]))
def test_percentile_of_merged_figures_is_that_of_all_requests_together(
    histograms: list[tuple[tuple[float, int], ...]], share: float
) -> None:
    parts = [{**PART, "latencies_ms": histogram} for histogram in histograms]
    every = sorted(ms for histogram in histograms for ms, count in histogram for _ in range(count))

    found = merged(parts, expected=len(parts)).percentile_ms(share)

    assert found == (every[math.ceil(round(share * len(every), 6)) - 1] if every else 0.0)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (0, ("0 of 4 load generators measured to the end",)),
        (3, ("3 of 4 load generators measured to the end",)),
    ],
)
def test_gate_is_inconclusive_when_a_generator_is_missing(parts: int, told: tuple[str, ...]) -> None:
    measured = merged([PART] * parts, expected=4)

    assert judge(measured, LIMITS, allowed_builds={"new"}, baseline_p95_ms=None) == ("inconclusive", told)


# -- a run, with a generator that is scripted --------------------------------------------

FIGURES = {
    "expected": 1,
    "parts": [
        {
            "seconds": 10.0,
            "answered": 120,
            "latencies_ms": [[20.0, 96], [50.0, 4]],
            "failures": 0,
            "errors": [],
            "user_errors": [],
            "builds": {"new": 9},
        }
    ],
}


@dataclass
class Generator:
    """Stands for Locust: says its lines, leaves its figures, ends with its code, or never does."""

    lines: tuple[str, ...] = ()
    figures: str | None = field(default_factory=lambda: json.dumps(FIGURES))
    code: int = 0
    hangs: bool = False

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
        words = tuple(map(str, argv))
        assert "locust" in words
        assert (cwd is None, env is None, stdin, on_line is None) == (False, False, None, False)
        assert on_line
        for line in self.lines:
            on_line(line)
        if self.hangs:
            raise ToolFailed(argv=words, code=-15, tail=f"no end after {timeout_s:g} s")
        if self.figures is not None:
            Path(words[words.index("--meter-figures") + 1]).write_text(self.figures)
        return Completed(argv=words, code=self.code, stdout=b"", tail="\n".join(self.lines))


@dataclass
class Told:
    lines: list[str] = field(default_factory=list)

    def say(self, _: str, text: str) -> None:
        self.lines.append(f"say {text}")

    def live(self, _: str, text: str) -> None:
        self.lines.append(f"live {text}")

    def warn(self, text: str) -> NoReturn:
        raise AssertionError(text)

    def progress(self, *args: object) -> NoReturn:
        raise AssertionError(args)


def ran(folder: Path, generator: Generator, told: Told | None = None) -> LoadReport:
    (folder / "users.py").touch()
    return run(
        replace(LIMITS, locustfile="users.py"),
        service=ServiceSettings(command=("serve",)),
        url="http://127.0.0.1:1",
        exchanges=None,
        seconds=2,
        allowed_builds={"new"},
        baseline_p95_ms=None,
        root=folder,
        reports=folder / "reports",
        environ={},
        proc=generator,
        tell=told or Told(),
    )


def test_run_tells_figures_and_keeps_other_lines_for_the_log(tmp_path: Path) -> None:
    told = Told()

    report = ran(tmp_path, Generator(lines=("live 10 req/s", "a warning"), code=1), told)

    assert report == LoadReport(
        requests=100, failure_ratio=0.0, p50_ms=20.0, p95_ms=20.0, p99_ms=50.0, rate=10.0, verdict="pass"
    )
    assert told.lines == [
        "say 4 users, 2 s warm-up and 2 s measured, on http://127.0.0.1:1",
        "live 10 req/s",
        "say pass: 100 requests, 10.0/s, failures 0.00%, p50 20 ms, p95 20 ms, p99 50 ms",
    ]
    (log,) = (tmp_path / "reports").glob("loadcheck-*/locust.log")
    assert log.read_text() == "a warning\n"


@pytest.mark.parametrize(
    ("generator", "told"),
    [
        (Generator(figures=None, code=2, lines=("no users",)), "it ended with 2; its last line: no users"),
        (Generator(figures=None, code=-9), "it was ended by SIGKILL; its last line: (none)"),
        (Generator(figures='{"parts"', code=0), "it ended with 0; its last line: (none)"),
        (Generator(figures='{"parts": [{}], "expected": 1}', code=0), "it ended with 0; its last line: (none)"),
        (Generator(figures='{"parts": [1], "expected": 1}', code=0), "it ended with 0; its last line: (none)"),
        (Generator(hangs=True), "was ended by SIGTERM: no end after 79 s"),
    ],
)
def test_run_is_inconclusive_when_the_generator_left_no_figures(
    tmp_path: Path, generator: Generator, told: str
) -> None:
    report = ran(tmp_path, generator)

    first, how, log = report.reasons
    assert (report.verdict, report.requests, report.html) == ("inconclusive", 0, None)
    assert first == "the load generator ended before it had measured"
    assert how.endswith(told)
    assert log.startswith("the generator's log: ")


def test_run_keeps_the_newest_reports_and_nothing_else_is_touched(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    for number in range(30):
        (reports / f"loadcheck-2026010{number // 10}T00000{number % 10}Z-x").mkdir(parents=True)
    (reports / "test.xml").touch()

    ran(tmp_path, Generator())

    kept = sorted(path.name for path in reports.glob("loadcheck-*"))
    assert len(kept) == 20
    assert kept[0] == "loadcheck-20260101T000001Z-x"
    assert (reports / "test.xml").exists()


def test_measure_is_inconclusive_and_says_how_it_ended_when_the_generators_left_nothing(tmp_path: Path) -> None:
    report = measure(
        lambda _: "the master ended with 137 (OOMKilled)",
        LIMITS,
        url="http://web.shop.svc",
        seconds=2,
        allowed_builds={"new"},
        baseline_p95_ms=None,
        reports=tmp_path,
        tell=Told(),
        workers=4,
    )

    assert report.verdict == "inconclusive"
    assert report.reasons[:2] == (
        "the load generator ended before it had measured",
        "the master ended with 137 (OOMKilled)",
    )


def test_measure_is_inconclusive_when_fewer_generators_came_than_were_asked_for(tmp_path: Path) -> None:
    def drive(folder: Path) -> str:
        (folder / "figures.json").write_text(json.dumps({"expected": 4, "parts": [PART] * 3}))
        return "the master ended with 0"

    report = measure(
        drive,
        LIMITS,
        url="http://web.shop.svc",
        seconds=2,
        allowed_builds={"new"},
        baseline_p95_ms=None,
        reports=tmp_path,
        tell=Told(),
        workers=4,
    )

    assert (report.verdict, report.requests) == ("inconclusive", 150)
    assert report.reasons[0] == "3 of 4 load generators measured to the end"
