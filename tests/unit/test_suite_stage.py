"""Stage test: when the suite runs, with what, and what counts as passed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Snapshot, SuiteRun
from shipway.config import Settings
from shipway.console import Console
from shipway.errors import SuiteEmpty, SuiteFailed
from shipway.proc import Completed
from shipway.stages import test as stage

SNAPSHOT = Snapshot(commit="c" * 40, tree="t" * 40, dirty=False, time_s=0)
REPORT = '<testsuites><testsuite tests="5" skipped="1" failures="0" errors="0"/></testsuites>'


class ScriptedProc:
    """Answers uv's calls with success and the suite's with what the test scripts."""

    def __init__(self, *, code: int = 0, report: str | None = REPORT) -> None:
        self.code = code
        self.report = report
        self.suites: list[tuple[str, ...]] = []

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
        del cwd, stdin, on_line, timeout_s
        words = tuple(str(word) for word in argv)
        if words[1:2] == ("venv",):
            Path(words[-1]).mkdir(parents=True)
        if words[0] != "pytest":
            return Completed(argv=words, code=0, stdout=b"", tail="")
        assert env is not None
        self.suites.append(words)
        if self.report is not None:
            Path(env["JUNIT_XML"]).write_text(self.report)
        return Completed(argv=words, code=self.code, stdout=b"", tail="1 failed")


def _run(root: Path, proc: ScriptedProc, **more: Any) -> SuiteRun:
    (root / "reqs.txt").touch()
    settings = Settings.model_validate(
        {
            "project": {"name": "thing"},
            "model": {"name": "net", "store": "store"},
            "image": {"requirements": "reqs.txt"},
            "service": {"command": ["serve"]},
        }
    )
    return stage.run(
        settings,
        more.pop("snapshot", SNAPSHOT),
        root=root,
        state=root / ".shipway",
        environ={},
        proc=proc,
        tell=Console(io.StringIO(), io.StringIO()),
        **more,
    )


def test_run_counts_what_passed(tmp_path: Path) -> None:
    proc = ScriptedProc()

    suite = _run(tmp_path, proc)

    assert (suite.passed, suite.tree, proc.suites) == (4, SNAPSHOT.tree, [("pytest", "tests/app")])


def test_run_tests_nothing_when_the_tree_passed_before(tmp_path: Path) -> None:
    proc = ScriptedProc()
    first = _run(tmp_path, proc)

    second = _run(tmp_path, proc)

    assert (second, len(proc.suites)) == (first, 1)


def test_run_tests_again_when_the_tree_is_another_or_the_user_says_so(tmp_path: Path) -> None:
    proc = ScriptedProc()
    _run(tmp_path, proc)

    _run(tmp_path, proc, again=True)
    _run(tmp_path, proc, snapshot=Snapshot(commit="c" * 40, tree="u" * 40, dirty=True, time_s=0))

    assert len(proc.suites) == 3


def test_run_leaves_no_receipt_when_the_suite_fails(tmp_path: Path) -> None:
    with pytest.raises(SuiteFailed, match="1 failed"):
        _run(tmp_path, ScriptedProc(code=1))

    assert stage.passed_before(tmp_path / ".shipway", SNAPSHOT) is None


@pytest.mark.parametrize("report", [None, "", "<testsuite tests='2' skipped='2'/>", "<testsuite tests='0'/>"])
def test_run_raises_when_nothing_proves_that_a_test_ran(tmp_path: Path, report: str | None) -> None:
    with pytest.raises(SuiteEmpty):
        _run(tmp_path, ScriptedProc(report=report))
