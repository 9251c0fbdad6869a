"""Stage test: when the suite runs, with what, and what counts as passed."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shipway import documents, receipts
from shipway.artifacts import Snapshot, SuiteRun
from shipway.config import Settings
from shipway.console import Console
from shipway.errors import DependenciesFailed, SuiteEmpty, SuiteFailed
from shipway.oci.staging import locked
from shipway.proc import Completed
from shipway.stages import test as stage

SNAPSHOT = Snapshot(commit="c" * 40, tree="t" * 40, dirty=False, time_s=0)
REPORT = '<testsuites><testsuite tests="5" skipped="1" failures="0" errors="0"/></testsuites>'


class ScriptedProc:
    """Answers uv's calls with success and the suite's with what the test scripts."""

    def __init__(self, *, code: int = 0, report: str | None = REPORT, uv_says: str = "") -> None:
        self.code = code
        self.report = report
        self.uv_says = uv_says
        self.made: list[str] = []
        self.suites: list[tuple[str, ...]] = []
        self.options: list[str] = []

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
            Path(words[-1]).mkdir(parents=True, exist_ok=True)
            self.made.append(words[-1])
        if words[0] != "pytest":
            return Completed(argv=words, code=1 if self.uv_says else 0, stdout=b"", tail=self.uv_says)
        assert env is not None
        self.suites.append(words)
        self.options = shlex.split(env["PYTEST_ADDOPTS"])  # as pytest does
        if self.report is not None:
            Path(env["JUNIT_XML"]).write_text(self.report)
        return Completed(argv=words, code=self.code, stdout=b"", tail="1 failed")


def _run(root: Path, proc: ScriptedProc, **more: Any) -> SuiteRun:
    (root / "reqs.txt").write_text(more.pop("requirements", ""))
    settings = documents.convert(
        Settings,
        {
            "project": {"name": "thing"},
            "model": {"name": "net", "store": "store"},
            "image": {"requirements": "reqs.txt"},
            "service": {"command": ["serve"]},
        },
    )
    return stage.run(
        settings,
        more.pop("snapshot", SNAPSHOT),
        root=root,
        state=root / ".shipway",
        environ={},
        proc=proc,
        tell=more.pop("tell", Console(io.StringIO(), io.StringIO())),
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


def test_run_waits_when_another_suite_runs_in_the_checkout(tmp_path: Path) -> None:
    (tmp_path / ".shipway" / "reports").mkdir(parents=True)
    told = io.StringIO()

    class Waited(Exception):
        pass

    class Impatient(Console):
        def say(self, stage: str, text: str) -> None:
            if text.startswith("waiting"):
                raise Waited(stage)
            super().say(stage, text)

    with locked(tmp_path / ".shipway" / "reports" / "test.lock"), pytest.raises(Waited):
        _run(tmp_path, ScriptedProc(), tell=Impatient(told, told))


def test_run_makes_the_environment_anew_when_deleting_it_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = ScriptedProc()
    _run(tmp_path, proc)
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *_, **__: None)
        _run(tmp_path, proc, requirements="flask==3", again=True)
    made = len(proc.made)

    _run(tmp_path, proc, again=True)

    assert (made, len(proc.made)) == (2, 3)


def test_run_leaves_no_password_in_the_error_when_the_environment_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(DependenciesFailed) as failed:
        _run(tmp_path, ScriptedProc(uv_says="error: 401 from https://ann:secret@index.test/simple/"))

    assert failed.value.tail == "error: 401 from https://***@index.test/simple/"


def test_receipt_is_none_when_another_version_of_shipway_wrote_it(tmp_path: Path) -> None:
    receipts.save(tmp_path, stage.STAGE, tree=SNAPSHOT.tree, facts={"passed": 4})

    assert stage.passed_before(tmp_path, SNAPSHOT) is None


@pytest.mark.parametrize("held", ["", "{", "[]", "[" * 100_000, "\0" * 50])
def test_receipt_is_none_when_it_is_damaged(tmp_path: Path, held: str) -> None:
    receipts.save(tmp_path, stage.STAGE, tree=SNAPSHOT.tree, facts={})
    (tmp_path / "receipts" / f"{stage.STAGE}.json").write_text(held)

    assert receipts.load(tmp_path, stage.STAGE, tree=SNAPSHOT.tree) is None


def test_report_is_one_option_when_the_checkout_has_a_space_in_its_name(tmp_path: Path) -> None:
    root = tmp_path / "my service"
    root.mkdir()
    proc = ScriptedProc()

    _run(root, proc)

    assert proc.options == [f"--junitxml={root}/.shipway/reports/test.xml"]
