"""Whole releases of the smallest project, with a fault in each: the rows of faults.md that need all of it.

One project serves from the first test to the last. After each test the fixture looks again:
status tells the truth, nobody holds the lock, every attempt has its closing record, and no
half of anything lies about.
"""

from __future__ import annotations

import fcntl
import gzip
import http.client
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import model_folder
from tests.system import project as projects
from tests.system.project import Project, kill_at, wait_until
from tests.system.referee import Referee, Request

SCORE = Request(method="POST", path="/score", body=b"[1, 2]", headers={"Content-Type": "application/json"})
SECRET = "correct-horse-battery-staple"  # noqa: S105 - what the search must not find
BIG_BYTES = 6_000_000

_FAULTY = '''

def create_app():
    """Be faulty where it is served, and whole in its suite."""
    if "SHIPWAY_BUILD" not in os.environ:
        return answer
    import signal, sys, time
    public = "fd://" in " ".join(sys.argv)
    {fault}
    return answer


SCORED = []


def errors(environ, start_response):
    if environ["PATH_INFO"] != "/score":
        return answer(environ, start_response)
    SCORED.append(1)
    if len(SCORED) == 1:  # the golden exchange
        return answer(environ, start_response)
    return answer(environ, lambda status, headers: start_response("500 Internal Server Error", headers))


def ends(environ, start_response):
    if environ["PATH_INFO"] == "/score":
        SCORED.append(1)
        if len(SCORED) == 2:
            import threading
            threading.Timer(2, end).start()
    return answer(environ, start_response)


def end():
    for pid in (os.getppid(), os.getpid()):
        os.kill(pid, 9)
'''
CRASH = "raise RuntimeError('no weights')"
ERRORS = "return errors"
ERRORS_IN_PUBLIC = "return errors if public else answer"
ENDS_AFTER_2_S = "return answer if public else ends"
STARTS_IN_8_S = "public or time.sleep(8)"
ANOTHER_BUILD = "os.environ['SHIPWAY_BUILD'] = 'another'"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    for project in projects.adder(tmp_path_factory.mktemp("faults")):
        project.invoke("release")
        yield project


@pytest.fixture
def adder(released: Project) -> Iterator[Project]:
    """The project, serving a good version; looked at again afterwards."""
    good = released.git("rev-parse", "HEAD").strip()
    try:
        yield released
    finally:
        for child in psutil.Process().children():  # those of a test that failed in the middle
            child.kill()
        released.git("reset", "--quiet", "--hard", good)
    told, build = released.invoke("status")[0], _version(released)["build"]
    assert f"build {build[:12]}" in told
    assert ", healthy" in told
    assert "changing it now" not in told
    assert [record["number"] for record in _records(released) if record["outcome"] is None] == []
    assert [path.name for path in _home(released).glob("target/daemon/sets/*candidate*")] == []
    assert _halves(released) == []


# -- the candidate ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        pytest.param(ENDS_AFTER_2_S, 60, "failures", id="ends after 2 s of load"),
        pytest.param(ANOTHER_BUILD, 52, "build another answered", id="says another build"),
    ],
)
def test_candidate_is_refused_and_users_never_meet_it_when_it(adder: Project, fault: str, code: int, told: str) -> None:
    before = _version(adder)
    _break(adder, fault)
    with Referee(adder.url) as referee:
        _, err = adder.invoke("release", exits=code, SHIPWAY_LOADCHECK_SECONDS="4")

    assert told in err
    assert f"Serving, as before: build {before['build'][:12]}" in err
    assert (referee.failed(), referee.builds()) == ([], [before["build"]])
    assert _version(adder)["instance"] == before["instance"]


def test_slow_start_of_8_seconds_is_waited_for(adder: Project) -> None:
    _break(adder, STARTS_IN_8_S)
    with Referee(adder.url) as referee:
        released = adder.facts("release")

    assert (released["outcome"], released["seconds"] > 8) == ("released", True)
    assert referee.failed() == []


def test_bad_versions_need_no_hand_work_and_force_tries_again(adder: Project) -> None:
    good = _version(adder)
    with Referee(adder.url) as referee:
        _break(adder, CRASH)
        adder.invoke("release", exits=51)
        adder.invoke("release", exits=54)
        _, forced = adder.invoke("release", "--force", exits=51)
        adder.git("commit", "--quiet", "--allow-empty", "--message", "just as bad")
        adder.invoke("release", exits=51)
        live = _version(adder)
        adder.git("revert", "--no-edit", "HEAD~1")
        fixed = adder.facts("release")

    assert "no weights" in forced
    assert live == good
    assert (fixed["outcome"], fixed["previous"]["build"]) == ("released", good["build"])
    assert referee.failed() == []
    assert set(referee.builds()) == {good["build"], fixed["current"]["build"]}
    assert _outcomes(adder, 5) == ["undone", "failed", "undone", "undone", "released"]


def test_inconclusive_check_undoes_without_condemning_the_digest_when_the_generator_crashes(adder: Project) -> None:
    adder.write("broken.py", "raise RuntimeError('the generator is broken')\n")
    _touch(adder, "inconclusive")
    before = _version(adder)

    _, err = adder.invoke("release", exits=61, SHIPWAY_LOADCHECK_LOCUSTFILE="broken.py")
    undone = _version(adder)
    released = adder.facts("release")

    assert "the generator is broken" in err
    assert "locust.log" in err
    assert undone == before
    assert released["outcome"] == "released"


def test_release_is_undone_when_its_version_turns_bad_after_promotion(adder: Project) -> None:
    """Until the undo, both versions answer users: that much cannot be prevented by beginning with a candidate."""
    before = _version(adder)
    _break(adder, ERRORS_IN_PUBLIC)
    with Referee(adder.url, request=SCORE) as referee:
        process = adder.start("release")
        kill_at(process, re.compile(r"^rollout .* joins on"), signal.SIGCONT)
        joined = time.time()
        _, err = process.communicate(timeout=60)
        undone = time.time()
        time.sleep(0.5)

    failed = referee.failed()
    assert process.returncode == 60
    assert "failures" in err
    assert f"Serving, as before: build {before['build'][:12]}" in err
    assert {(answer.status, answer.build == before["build"]) for answer in failed} == {(500, False)}
    assert joined <= min(answer.at for answer in failed) <= max(answer.at for answer in failed) <= undone
    assert {answer.status for answer in referee.answers if answer.build == before["build"]} == {200}
    assert _version(adder)["instance"] == before["instance"]


def test_undo_that_fails_exits_70_and_stops_nothing_when_the_daemon_hangs(adder: Project) -> None:
    before = _version(adder)
    _break(adder, ERRORS)
    daemon = psutil.Process(int((_home(adder) / "target/daemon/pid").read_text("ascii")))
    with Referee(adder.url) as referee:
        process = adder.start("release")
        kill_at(process, re.compile(r"^loadcheck .* on http"), signal.SIGCONT)
        daemon.suspend()
        try:
            _, err = process.communicate(timeout=120)
            hung = _version(adder)
        finally:
            daemon.resume()
        adder.git("revert", "--no-edit", "HEAD")
        fixed = adder.facts("release")

    assert process.returncode == 70
    assert f"process {daemon.pid}" in err
    assert f"Now serving: build {before['build']}" in err
    assert "undo by hand" in err
    assert hung == before
    assert fixed["outcome"] == "released"
    assert referee.failed() == []
    assert set(referee.builds()) == {before["build"], fixed["current"]["build"]}


# -- the lock --------------------------------------------------------------------------------


def _lock(project: Project) -> Path:
    """Return the file that says who holds it."""
    (file,) = (_home(project) / "lock").glob("*.json")
    return file


@pytest.mark.parametrize("step", ["candidate ready", "answers users"])
def test_revived_holder_stops_before_its_next_change_when_another_took_over(adder: Project, step: str) -> None:
    with Referee(adder.url) as referee:
        _touch(adder, f"asleep at {step}")
        asleep = adder.start("release", SHIPWAY_ROLLOUT_LOCK_S="2")
        kill_at(asleep, re.compile(rf"^rollout .*{step}"), signal.SIGSTOP)
        _touch(adder, f"awake at {step}")
        waited = adder.invoke("release", "--json", "--wait", SHIPWAY_ROLLOUT_LOCK_S="2")
        awake = json.loads(waited[0])
        serving = _version(adder)
        asleep.send_signal(signal.SIGCONT)
        _, err = asleep.communicate(timeout=60)

    assert "taking over a lock whose holder is gone" in waited[1]
    assert (awake["outcome"], awake["current"]["build"]) == ("released", serving["build"])
    assert asleep.returncode == 4, err
    assert "the lock" in err
    assert _version(adder) == serving
    assert _outcomes(adder, 2) == ["failed", "released"]
    assert referee.failed() == []


def test_lease_of_a_holder_on_another_host_is_waited_out(adder: Project) -> None:
    live, now = adder.facts("status")["digest"], time.time()
    facts = {"owner": "ann@elsewhere", "what": "release of abc", "host": "elsewhere", "pid": 1, "process": None}
    _lock(adder).write_text(json.dumps(facts | {"since": now, "expires": now + 4, "fence": int(now) + 9}))

    _, told = adder.invoke("deploy", "--digest", live, exits=4)
    _, waited = adder.invoke("deploy", "--digest", live, "--wait", SHIPWAY_ROLLOUT_LOCK_S="4")

    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    assert f"ann@elsewhere on elsewhere (process 1), since {since}: release of abc" in told
    assert "waiting for ann@elsewhere" in waited
    assert time.time() > now + 4
    assert json.loads(_lock(adder).read_text())["fence"] > int(now) + 9


# -- the disk --------------------------------------------------------------------------------
#
# No root, so no small file system: the kernel is told to refuse to let any file of the release
# grow beyond a size, and answers EFBIG where it would answer ENOSPC.


@pytest.mark.parametrize(
    ("step", "code", "where"),
    [
        pytest.param(r"^model", 40, "images/blobs/sha256", id="the model's layer"),
        pytest.param(r"^push .*manifest", 40, "layers", id="unpacking"),
    ],
)
def test_full_disk_is_told_with_path_and_bytes_when_it_is_full_of(
    big: Project, step: str, code: int, where: str
) -> None:
    before = _version(big)
    _touch(big, f"full at {step}")
    process = big.start("release")
    kill_at(process, re.compile(step), signal.SIGSTOP)
    _limit(process.pid, BIG_BYTES // 2)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    halves, live = _halves(big), _version(big)

    assert process.returncode == code, err
    assert f"cannot write {big.root}/.shipway/{where}" in err
    assert re.search(r"\(6\d{6} bytes\)", err)
    assert "make room" in err
    assert (halves, live) == ([], before)


def test_release_goes_on_when_there_is_room_again(big: Project) -> None:
    assert big.facts("release")["current"]["model"]["version"] == 2


def test_full_disk_is_told_before_anything_is_touched_when_an_attempt_cannot_be_recorded(adder: Project) -> None:
    before = _version(adder)
    _touch(adder, "no room for a record")
    digest = adder.invoke("push")[0].strip().rpartition("@")[2]
    lock, last = _lock(adder), _records(adder)[-1]["number"]

    _, unlocked = adder.invoke("deploy", "--digest", digest, exits=3, limit_bytes=100)
    _, unrecorded = adder.invoke("deploy", "--digest", digest, exits=3, limit_bytes=lock.stat().st_size + 200)

    assert re.search(rf"{lock.parent}/\d+\.json cannot be written \(\d+ bytes\): File too large", unlocked)
    assert re.search(rf"{last + 1:04}\.json cannot be written \(\d+ bytes\): File too large", unrecorded)
    assert _version(adder) == before
    assert adder.facts("deploy", "--digest", digest)["outcome"] == "released"


def test_release_is_undone_when_the_disk_gets_full_after_promotion(adder: Project) -> None:
    before = _version(adder)
    _touch(adder, "no room for figures")
    with Referee(adder.url) as referee:
        process = adder.start("release")
        kill_at(process, re.compile(r"^loadcheck .* on http"), signal.SIGCONT)
        kill_at(process, re.compile(r"^loadcheck .* on http"), signal.SIGCONT)
        wait_until(lambda: any("locust" in child.cmdline() for child in psutil.Process(process.pid).children()))
        record = max((_home(adder) / "history").glob("*.json"))
        _limit(process.pid, 1000)
        _, err = process.communicate(timeout=60)
        undone = _version(adder)
        again = adder.facts("release")

    assert process.returncode == 61
    assert re.search(r"cannot write \S+/locust\.log: File too large", err)
    assert re.search(rf"left open: {record} cannot be written \(\d+ bytes\): File too large", err)
    assert f"Serving, as before: build {before['build'][:12]}" in err
    assert undone == before
    assert again["outcome"] == "released"
    assert referee.failed() == []
    assert _outcomes(adder, 2) == ["killed", "released"]


# -- afterwards ------------------------------------------------------------------------------


def test_release_is_good_with_a_warning_when_cleaning_up_fails(adder: Project) -> None:
    earlier = _blob(adder, adder.facts("status")["digest"])
    whole = earlier.read_bytes()
    _touch(adder, "clean-up fails")
    process = adder.start("release", "--json")
    kill_at(process, re.compile(r"^rollout .* answers users"), signal.SIGCONT)
    earlier.chmod(0o644)
    earlier.write_bytes(b"rotten")
    out, err = process.communicate(timeout=60)
    earlier.write_bytes(whole)

    assert process.returncode == 0, err
    assert "warning   old images could not be cleaned up" in err
    assert json.loads(out)["outcome"] == "released"


def test_version_can_be_gone_back_to_when_its_release_was_killed_before_its_record_was_closed(adder: Project) -> None:
    _touch(adder, "killed at the very end")
    process = adder.start("release")
    kill_at(process, re.compile(r"public.* finishes its requests"), signal.SIGSTOP)
    _limit(process.pid, 500)  # what was settled is written down; the attempt will not be
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    out, told = adder.invoke("release", "--json")
    finished = json.loads(out)
    _touch(adder, "the one after it")
    adder.invoke("release")

    assert (process.returncode, finished["outcome"]) == (3, "released")
    assert "golden exchanges answered right" in told  # nobody lived to ask them in public
    assert adder.facts("rollback")["current"] == finished["current"]


def test_nothing_but_git_is_started_when_nothing_changed(adder: Project, tmp_path: Path) -> None:
    adder.invoke("release")
    log = tmp_path / "started"
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def hear(event, given):\n"
        "    if event in {'subprocess.Popen', 'os.posix_spawn', 'os.exec', 'os.fork', 'os.system'}:\n"
        f"        open({str(log)!r}, 'a').write(f'{{event}} {{given[1:2]}}\\n')\n"
        "sys.addaudithook(hear)\n"
    )
    before = _version(adder), _processes(adder)

    again = adder.invoke("release", PYTHONPATH=str(tmp_path))

    assert "nothing to do" in again[0]
    started = log.read_text().splitlines()
    assert started
    assert [line for line in started if not line.startswith("subprocess.Popen (['git', ")] == []
    assert (_version(adder), _processes(adder)) == before


@pytest.mark.parametrize("step", ["^loadcheck .* on http", "^rollout .* answers users"])
def test_release_cleans_up_when_its_terminal_goes_away(adder: Project, step: str) -> None:
    before = _version(adder)
    _touch(adder, f"the terminal goes at {step}")

    code = _release_until_the_terminal_goes(adder, step, on_hangup=signal.SIG_DFL)

    assert code == 130
    assert _outcomes(adder, 1) == ["interrupted"]
    assert _version(adder) == before


def test_release_goes_on_without_its_terminal_when_nohup_says_so(adder: Project) -> None:
    _touch(adder, "nohup")

    code = _release_until_the_terminal_goes(adder, "^loadcheck .* on http", on_hangup=signal.SIG_IGN)

    assert code == 0
    assert _outcomes(adder, 1) == ["released"]


def _release_until_the_terminal_goes(adder: Project, step: str, *, on_hangup: signal.Handlers) -> int:
    """Start a release on a terminal, close it at a line that is told, and return the exit code."""

    def begin() -> None:
        signal.signal(signal.SIGHUP, on_hangup)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "invoke", "release"],
        cwd=adder.root,
        env=projects.plain(os.environ),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=begin,  # noqa: PLW1509 - no threads run here
    ) as process:
        os.close(theirs)
        try:
            _read_until(ours, re.compile(step, re.MULTILINE))
        finally:
            os.close(ours)  # the kernel sends SIGHUP, and nothing can be told any more
        return process.wait(timeout=60)


# -- models and images -----------------------------------------------------------------------


def test_bad_models_never_reach_an_image(adder: Project, tmp_path: Path) -> None:
    pickle = model_folder.make(tmp_path / "pickle", weight=5)
    (pickle / "model.onnx").write_bytes(b"\x80\x04\x95" + b"cos\nsystem\n")
    wrong = model_folder.make(tmp_path / "wrong", weight=5, answer=7)
    images = _blobs(adder)

    _, refused = adder.invoke("model.publish", str(pickle), exits=22)
    _, unproven = adder.invoke("model.publish", str(wrong), exits=24)
    unchanged = adder.facts("release")["current"]["model"]["version"]
    number = projects.publish(adder, weight=5)
    file = next(file for file in adder.facts("model.show")["files"] if file["path"] == "model.onnx")
    stored = adder.root.parent / "store/adds/blobs/sha256" / file["digest"].removeprefix("sha256:")
    whole = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(whole[:-1] + b"\0")
    _, flipped = adder.invoke("release", exits=23)
    stored.unlink()
    _, missing = adder.invoke("release", exits=23)
    after = _blobs(adder)
    stored.write_bytes(whole)
    mended = adder.facts("release")["current"]["model"]["version"]

    assert "model.onnx" in refused
    assert "values are off" in unproven
    assert "model.onnx" in flipped
    assert "model.onnx" in missing
    assert unchanged < number == mended
    assert after == images


def test_damaged_image_is_refused_and_mended_as_advised(adder: Project) -> None:
    before = _version(adder)
    _touch(adder, "damaged")
    digest = adder.invoke("push")[0].strip().rpartition("@")[2]
    layers = json.loads(_blob(adder, digest).read_text())["layers"]
    blob = _blob(adder, layers[-1]["digest"])
    blob.chmod(0o644)
    data = blob.read_bytes()
    blob.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])

    _, err = adder.invoke("release", exits=42)
    live = _version(adder)
    blob.unlink()
    released = adder.facts("release")["current"]

    assert f"{blob} (app, app) is damaged" in err
    assert "Next: delete the file that is named, then invoke release" in err
    assert live == before
    assert released["digest"] == digest


def test_digest_is_the_same_when_clone_user_umask_zone_and_locale_differ(adder: Project) -> None:
    here = adder.invoke("image", umask=0o022, TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1")[0]

    with tempfile.TemporaryDirectory(prefix="another machine ") as folder:  # pytest's own is closed to other users
        home = Path(folder)
        shutil.copytree(adder.root.parent / "store", home / "store")
        subprocess.run(["git", "clone", "--quiet", adder.root, home / "clone"], check=True, umask=0o077)
        for file in (home / "clone/app").rglob("*"):
            os.utime(file, (0, 2_000_000_000))
        there = subprocess.run(
            [sys.executable, "-m", "invoke", "image"],
            cwd=home / "clone",
            env={
                **os.environ,
                "HOME": folder,
                "SHIPWAY_MODEL_STORE": str(home / "store"),
                "TZ": "Asia/Kathmandu",
                "LC_ALL": "tr_TR.UTF-8",
                "PYTHONHASHSEED": "2",
            },
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            umask=0o077,
            **_another_user(home),
        ).stdout

    assert there == here


def test_secrets_are_nowhere_in_what_a_release_leaves(adder: Project, tmp_path: Path) -> None:
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text(f"[global]\nindex-url = https://user:{SECRET}@example.org/simple\n")
    (tmp_path / ".netrc").write_text(f"machine example.org login user password {SECRET}\n")
    adder.write("app/.env", f"TOKEN={SECRET}\n")
    adder.write(".env", f"TOKEN={SECRET}\n")
    adder.git("config", "remote.origin.url", f"https://user:{SECRET}@example.org/adder.git")
    adder.write("app/note.py", "NOTE = 'planted'\n")
    adder.git("add", "app/note.py")
    adder.git("commit", "--quiet", "--message", f"the password is {SECRET}")

    told = adder.invoke(
        "release", HOME=str(tmp_path), DATABASE_PASSWORD=SECRET, AWS_SECRET_ACCESS_KEY=SECRET, LOCUST_PASSWORD=SECRET
    )
    for name in ("app/.env", ".env"):
        (adder.root / name).unlink()

    everything = {path: _plain(path) for path in (adder.root / ".shipway").rglob("*") if path.is_file()}
    assert any(b"NOTE = 'planted'" in data for data in everything.values()), "the search finds what is there"
    assert [path for path, data in everything.items() if SECRET.encode() in data] == []
    assert SECRET not in "".join(told)


# -- the project -----------------------------------------------------------------------------


@pytest.fixture
def big(adder: Project, tmp_path: Path) -> Project:
    """The project, with a model of six megabytes as its newest."""
    folder = model_folder.make(tmp_path / "big", weight=3)
    (folder / "labels.txt").write_text("a label\n" * (BIG_BYTES // 8))
    adder.invoke("model.publish", str(folder))
    return adder


def _touch(project: Project, text: str) -> None:
    project.write("app/note.py", f"NOTE = {text!r}\n")
    project.commit(text)


def _break(project: Project, fault: str) -> None:
    source = project.root / "app/__init__.py"
    project.write("app/__init__.py", source.read_text() + _FAULTY.format(fault=fault))
    project.commit(fault)


def _version(project: Project) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", project.port, timeout=5)
    try:
        connection.request("GET", "/version")
        return json.load(connection.getresponse())
    finally:
        connection.close()


def _home(project: Project) -> Path:
    return project.root / ".shipway/environments/local"


def _records(project: Project) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted((_home(project) / "history").glob("*.json"))]


def _outcomes(project: Project, last: int) -> list[str | None]:
    return [record["outcome"] for record in _records(project)[-last:]]


def _blob(project: Project, digest: str) -> Path:
    return project.images / "blobs/sha256" / digest.removeprefix("sha256:")


def _blobs(project: Project) -> list[str]:
    return sorted(path.name for path in (project.images / "blobs/sha256").iterdir())


def _processes(project: Project) -> list[int]:
    daemon = psutil.Process(int((_home(project) / "target/daemon/pid").read_text("ascii")))
    return [daemon.pid, *sorted(child.pid for child in daemon.children(recursive=True))]


def _halves(project: Project) -> list[Path]:
    """Return what a write that was cut short would leave behind."""
    state = project.root / ".shipway"
    staged = [path for place in state.rglob(".staging") for path in place.glob("tmp*")]
    return [*staged, *state.rglob("*.part"), *state.rglob(".new-*"), *state.rglob(".*.json.*")]


def _limit(pid: int, size_bytes: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def _read_until(terminal: int, line: re.Pattern[str]) -> None:
    text = ""
    while not line.search(text):
        text += os.read(terminal, 4096).decode().replace("\r", "\n")


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _another_user(home: Path) -> dict[str, Any]:
    """Give `home` to another user, where we are root and this interpreter is not root's alone."""
    user: dict[str, Any] = {"user": 12345, "group": 12345, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import shipway.flow"], check=True, capture_output=True, **user)
    except (PermissionError, subprocess.CalledProcessError):
        return {}
    subprocess.run(["chown", "--recursive", "12345:12345", home], check=True)
    return user
