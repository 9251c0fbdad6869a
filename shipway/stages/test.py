"""Stage `test`: the suite must pass, with the very dependencies that the image will hold.

Runs the suite in an environment made of the service's locked requirements and the suite's
own, never in the developer's. A tree that passed before is not tested again. One suite at a
time runs in a checkout, since its environment and its report are shared. Knows nothing of
pytest but its JUnit report; another runner writes one to `$JUNIT_XML`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from shipway import documents, receipts
from shipway.artifacts import Snapshot, SuiteRun
from shipway.config import Settings
from shipway.console import Tell
from shipway.errors import DependenciesFailed, NotConfigured, SuiteEmpty, SuiteFailed, ToolFailed
from shipway.oci.staging import locked
from shipway.oci.wheels import without_secrets
from shipway.proc import Run

STAGE = "test"
_MADE = ".complete"  # the last file of an environment to be made, and the first to go


def run(
    settings: Settings,
    snapshot: Snapshot,
    *,
    root: Path,
    state: Path,
    environ: Mapping[str, str],
    proc: Run,
    tell: Tell,
    again: bool = False,
) -> SuiteRun:
    """Run the suite on the checkout, unless its tree passed before; `again` runs it anyway.

    Raises `SuiteFailed` with the suite's last lines, and `SuiteEmpty` when no test ran.
    """
    requirements = _requirements(settings, root)
    if not again and (passed := passed_before(state, snapshot)):
        tell.say(STAGE, f"{passed.passed} passed on this tree before; nothing to test")
        return passed
    with _alone(state / "reports", tell):
        suite = _run(settings, snapshot, requirements, root=root, state=state, environ=environ, proc=proc, tell=tell)
    receipts.save(state, STAGE, tree=snapshot.tree, facts=documents.plain(suite))
    tell.say(STAGE, f"{suite.passed} passed in {suite.seconds:g} s")
    return suite


def passed_before(state: Path, snapshot: Snapshot) -> SuiteRun | None:
    """Return the passing run of this very tree, if there was one on this machine."""
    facts = receipts.load(state, STAGE, tree=snapshot.tree)
    with contextlib.suppress(TypeError):  # another version of shipway wrote it
        return SuiteRun(**facts) if facts else None
    return None


def _requirements(settings: Settings, root: Path) -> tuple[Path, ...]:
    names = [name for name in (settings.image.requirements, settings.test.requirements) if name]
    for name in names:
        if not (root / name).is_file():
            raise NotConfigured(f"there is no {name}; [image] or [test] requirements in release.toml names it")
    return tuple(root / name for name in names)


@contextlib.contextmanager
def _alone(reports: Path, tell: Tell) -> Iterator[None]:
    """Wait until no other suite runs in this checkout."""
    reports.mkdir(parents=True, exist_ok=True)
    lock = reports / "test.lock"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            tell.say(STAGE, "waiting for another suite in this checkout")
            held.enter_context(locked(lock))
        yield


def _run(
    settings: Settings,
    snapshot: Snapshot,
    requirements: tuple[Path, ...],
    *,
    root: Path,
    state: Path,
    environ: Mapping[str, str],
    proc: Run,
    tell: Tell,
) -> SuiteRun:
    tell.say(STAGE, " ".join(settings.test.command))
    python = _environment(requirements, state / "cache" / "suites", environ, proc, tell)
    junit = state / "reports" / "test.xml"
    junit.unlink(missing_ok=True)
    started = time.monotonic()
    try:
        ended = proc.run(
            _command(settings, python),
            cwd=root,
            env=_suite_environ(environ, python, junit),
            on_line=lambda line: tell.live(STAGE, line[:100]) if line else None,
            timeout_s=settings.test.timeout_s,
        )
    except ToolFailed as error:
        raise SuiteFailed(
            f"the test suite did not end within {settings.test.timeout_s:g} s",
            advice="mend the test that hangs, or raise [test] timeout_s in release.toml",
            serving="Nothing was built.",
        ) from error
    if ended.code != 0:
        raise SuiteFailed(f"the test suite ended with {ended.code}", tail=ended.tail, serving="Nothing was built.")
    return SuiteRun(
        commit=snapshot.commit,
        tree=snapshot.tree,
        dirty=snapshot.dirty,
        passed=_count_passed(junit),
        seconds=round(time.monotonic() - started, 1),
    )


def _environment(
    requirements: tuple[Path, ...], folder: Path, environ: Mapping[str, str], proc: Run, tell: Tell
) -> Path:
    """Return the interpreter of an environment with exactly `requirements`; made once."""
    from uv import find_uv_bin  # noqa: PLC0415 - not needed to list the tasks

    uv = find_uv_bin()
    lock = hashlib.sha256(sys.version.encode())
    for path in requirements:
        lock.update(path.read_bytes())
    home = folder / lock.hexdigest()[:16]
    python = home / "bin" / "python"
    if (home / _MADE).exists():
        return python
    tell.say(STAGE, "making the suite's environment from its locked requirements")
    for other in folder.glob("*"):
        (other / _MADE).unlink(missing_ok=True)
        shutil.rmtree(other, ignore_errors=True)
    files = [word for path in requirements for word in ("--requirements", path)]
    try:
        proc.run([uv, "venv", "--quiet", "--python", sys.executable, home], env=environ).check()
        proc.run(
            [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "--no-deps", *files],
            env=environ,
        ).check()
    except ToolFailed as error:
        raise DependenciesFailed("the suite's environment cannot be made", tail=without_secrets(error.tail)) from error
    (home / _MADE).touch()
    return python


def _command(settings: Settings, python: Path) -> tuple[str, ...]:
    program, *words = settings.test.command
    own = python.with_name(program)
    return (str(own) if own.exists() else program, *words)


def _suite_environ(environ: Mapping[str, str], python: Path, junit: Path) -> dict[str, str]:
    report = shlex.quote(f"--junitxml={junit}")  # pytest splits the options as a shell does
    options = f"{environ.get('PYTEST_ADDOPTS', '')} {report}".strip()
    return {
        **environ,
        "PATH": f"{python.parent}{os.pathsep}{environ.get('PATH', os.defpath)}",
        "PYTEST_ADDOPTS": options,
        "JUNIT_XML": str(junit),
    }


def _count_passed(junit: Path) -> int:
    import xml.etree.ElementTree as ET  # noqa: PLC0415 - not for a suite that passed before

    try:
        suites = ET.parse(junit).getroot().iter("testsuite")  # noqa: S314 - our own suite wrote it
        counts = [[int(suite.get(key, 0)) for key in ("tests", "skipped", "failures", "errors")] for suite in suites]
    except (OSError, ET.ParseError, ValueError) as error:
        raise SuiteEmpty(
            "the suite wrote no JUnit report, so nobody knows what ran",
            advice="use pytest, or let the command write a JUnit report to $JUNIT_XML",
        ) from error
    passed = sum(tests - skipped - failures - errors for tests, skipped, failures, errors in counts)
    if passed == 0:
        raise SuiteEmpty("the suite passed, but ran no test")
    return passed
