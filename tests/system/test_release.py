"""Whole releases of the smallest project: what is recorded, refused, interrupted, and gone back to."""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import model_folder
from tests.system import project as projects
from tests.system.project import Project, kill_at
from tests.system.referee import Referee


@pytest.fixture
def adder(tmp_path: Path) -> Iterator[Project]:
    yield from projects.adder(tmp_path)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Give one project of which nothing was ever released."""
    yield from projects.adder(tmp_path_factory.mktemp("idle"))


def test_release_serves_the_commit_and_records_it(adder: Project) -> None:
    digest = adder.invoke("image")[0].strip()

    released = adder.facts("release")

    status = adder.facts("status")
    assert (released["outcome"], released["current"]["digest"], released["previous"]) == ("released", digest, None)
    assert (status["digest"], status["healthy"], status["model"]["version"]) == (digest, True, 1)
    assert _version(adder)["build"] == status["build"]
    assert adder.outcomes() == [("release", "released")]


def test_release_restarts_nothing_when_nothing_changed(adder: Project) -> None:
    adder.invoke("release")
    before = _version(adder)["instance"]

    again = adder.facts("release")

    assert again["outcome"] == "unchanged"
    assert _version(adder)["instance"] == before
    assert adder.outcomes() == [("release", "released"), ("release", "unchanged")]


def test_release_loses_no_request_when_code_and_then_model_change(adder: Project) -> None:
    adder.invoke("release")
    with Referee(adder.url, rate=40) as referee:
        size = adder.layout_bytes()
        _touch(adder, "two")
        code = adder.facts("release")
        code_bytes = adder.layout_bytes() - size
        projects.publish(adder, weight=2)
        model = adder.facts("release")

    assert referee.failed() == []
    assert code_bytes < 20_000
    assert code["current"]["model"] == code["previous"]["model"]
    assert (model["current"]["model"]["version"], model["previous"]["model"]["version"]) == (2, 1)
    assert referee.builds() == [code["previous"]["build"], code["current"]["build"], model["current"]["build"]]


def test_release_mends_what_went_bad_while_it_served(adder: Project) -> None:
    adder.change("app/__init__.py", "def create_app", f"{_GOES_BAD}\n\n\ndef create_app")
    adder.change("app/__init__.py", 'path, status = environ["PATH_INFO"], "200 OK"', "path, status = grade(environ)")
    adder.commit("a bomb")
    bad = adder.facts("release")["current"]
    (adder.root.parent / "bomb").touch()
    adder.git("revert", "--no-edit", "HEAD")

    out, err = adder.invoke("release", "--json")

    mended = json.loads(out)
    assert f"what serves now, build {bad['build'][:12]}" in err
    assert (mended["outcome"], mended["previous"]["digest"]) == ("released", bad["digest"])
    assert _version(adder)["build"] == mended["current"]["build"]


def test_release_goes_on_when_the_new_version_is_asked_by_other_paths(adder: Project, tmp_path: Path) -> None:
    known = 'status = environ["PATH_INFO"], "200 OK" if environ["PATH_INFO"] in {} else "404 Not Found"'
    old = known.format('{"/score", "/version", "/readyz"}')
    adder.change("app/__init__.py", 'status = environ["PATH_INFO"], "200 OK"', old)
    adder.commit("some paths")
    adder.facts("release")
    moved = model_folder.make(tmp_path / "moved", weight=2)
    exchange = moved / "golden" / "exchanges" / "one.json"
    exchange.write_text(exchange.read_text().replace('"/score"', '"/v2/score"'))
    adder.invoke("model.publish", str(moved))
    adder.change("app/__init__.py", old, known.format('{"/v2/score", "/v2/version", "/v2/readyz"}'))
    adder.change("app/__init__.py", 'path == "/score"', 'path == "/v2/score"')
    adder.change("release.toml", "[service]", '[service]\nready_path = "/v2/readyz"\nversion_path = "/v2/version"')
    adder.commit("other paths")

    released = adder.facts("release")

    assert released["outcome"] == "released"
    assert adder.facts("status")["build"] == released["current"]["build"]


def test_rollback_does_not_wait_for_a_load_check_when_what_serves_is_bad(adder: Project) -> None:
    good = adder.facts("release")["current"]
    adder.change("app/__init__.py", "def create_app", f"{_GOES_BAD}\n\n\ndef create_app")
    adder.change("app/__init__.py", 'path, status = environ["PATH_INFO"], "200 OK"', "path, status = grade(environ)")
    adder.commit("a bomb")
    adder.invoke("release")
    (adder.root.parent / "bomb").touch()

    back, err = adder.invoke("rollback", "--json")

    assert json.loads(back)["current"] == good
    assert "loadcheck pass" not in err


def test_release_keeps_the_model_it_pinned_when_another_is_published_meanwhile(adder: Project) -> None:
    process = adder.start("release", "--json")
    kill_at(process, re.compile(r"^image"), signal.SIGCONT)
    projects.publish(adder, weight=2)
    out, err = process.communicate(timeout=120)

    assert process.returncode == 0, err
    assert json.loads(out)["current"]["model"]["version"] == 1
    assert adder.facts("release")["current"]["model"]["version"] == 2


def test_stages_alone_hand_the_pinned_model_on(adder: Project) -> None:
    adder.invoke("test")
    composed = adder.facts("image")
    projects.publish(adder, weight=2)

    pushed = adder.facts("push")
    deployed = adder.facts("deploy")

    assert (pushed["digest"], deployed["current"]["digest"]) == (composed["digest"], composed["digest"])
    assert deployed["current"]["model"]["version"] == 1


def test_release_refuses_another_address_while_one_is_served(adder: Project) -> None:
    adder.invoke("release")

    _, err = adder.invoke("release", exits=2, SHIPWAY_ROLLOUT_PORT=str(projects.free_port()))

    assert adder.url in err
    assert adder.facts("status")["healthy"]


def test_run_serves_the_checkout_as_it_stands_until_a_signal_comes(adder: Project) -> None:
    adder.change("app/__init__.py", 'facts["sum"] = sum(', 'facts["sum"] = 1 + sum(')
    port = projects.free_port()
    process = adder.start("run", "--port", str(port))
    kill_at(process, re.compile("Listening at"), signal.SIGCONT)

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("POST", "/score", "[1, 2]")
    answer = json.load(connection.getresponse())
    connection.close()
    _, taken = adder.invoke("run", "--port", str(port), exits=57)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)

    assert answer["sum"] == 4
    assert f"127.0.0.1:{port} is taken by" in taken
    assert process.returncode == 130
    assert adder.facts("status")["digest"] is None


def test_first_release_leaves_nothing_behind_when_it_fails(adder: Project) -> None:
    _break(adder, "crash")

    _, err = adder.invoke("release", exits=51)

    assert "no weights" in err
    assert "Nothing serves, as before." in err
    assert adder.facts("status")["digest"] is None
    with pytest.raises(OSError, match="refused"):
        _version(adder)
    assert adder.outcomes() == [("release", "undone")]


@pytest.mark.parametrize(
    ("fault", "code", "told"), [("crash", 51, "no weights"), ("errors", 60, "failures"), ("wrong", 53, "sum")]
)
def test_release_refuses_a_bad_version_and_users_never_meet_it(
    adder: Project, fault: str, code: int, told: str
) -> None:
    good = adder.facts("release")["current"]
    with Referee(adder.url, rate=40) as referee:
        _break(adder, fault)
        bad = adder.invoke("image")[0].strip()
        _, err = adder.invoke("release", exits=code)
        _, again = adder.invoke("release", exits=54)
        adder.git("revert", "--no-edit", "HEAD")
        fixed = adder.facts("release")

    assert told in err
    assert f"Serving, as before: build {good['build'][:12]}" in err
    assert "failed here before" in again
    assert fixed["outcome"] == "released"
    assert fixed["current"]["digest"] != bad
    assert referee.failed() == []
    assert set(referee.builds()) == {good["build"], fixed["current"]["build"]}
    assert [outcome for _, outcome in adder.outcomes()] == ["released", "undone", "failed", "released"]


def test_rollback_goes_back_whole_and_by_part_without_losing_a_request(adder: Project) -> None:
    first = adder.facts("release")["current"]
    _touch(adder, "two")
    projects.publish(adder, weight=2)
    second = adder.facts("release")["current"]
    with Referee(adder.url, rate=40) as referee:
        model = adder.facts("rollback", "--only", "model")["current"]
        _touch(adder, "three")
        third = adder.facts("release")["current"]
        code = adder.facts("rollback", "--only", "code")["current"]
        whole = adder.facts("rollback")["current"]
        live = _version(adder)

    assert (model["commit"], model["model"]) == (second["commit"], first["model"])
    assert (code["commit"], code["model"]) == (second["commit"], third["model"])
    assert whole["digest"] in {first["digest"], second["digest"], model["digest"]}
    assert live["build"] == whole["build"]
    assert referee.failed() == []


@pytest.mark.parametrize(
    "words",
    [
        *(["status"], ["history"], ["plan"], ["config"], ["doctor"], ["logs"], ["stop"]),
        *(["model.list"], ["model.show"], ["model.history"], ["model.promote", "1", "staging"]),
    ],
    ids=" ".join,
)
def test_task_answers_in_one_json_document_when_asked_for_it(idle: Project, words: list[str]) -> None:
    assert idle.facts(*words) is not None


def test_rollback_says_so_when_there_is_nothing_to_go_back_to(adder: Project) -> None:
    adder.invoke("rollback", exits=56)
    adder.invoke("release")

    _, err = adder.invoke("rollback", exits=56)

    assert "Next:" in err


def test_deploy_does_not_bring_back_what_was_rolled_back(adder: Project) -> None:
    adder.invoke("release")
    _touch(adder, "two")
    second = adder.facts("release")["current"]
    adder.invoke("rollback")

    _, err = adder.invoke("deploy", exits=54)

    assert "was rolled back here" in err
    assert adder.facts("deploy", "--force")["current"] == second


def test_deploy_takes_the_newest_commit_whatever_was_built_last_and_says_how_old_it_is(adder: Project) -> None:
    old = adder.git("rev-parse", "HEAD").strip()
    adder.invoke("build")
    adder.change("app/__init__.py", '"""Adds numbers."""', '"""Adds numbers, newer."""')
    new = adder.commit("Say newer")
    adder.invoke("build")
    adder.git("checkout", "--quiet", old)
    adder.invoke("build")  # what a slow CI system does
    adder.git("checkout", "--quiet", "-")

    _, said = adder.invoke("deploy")

    assert f"of commit {new[:12]}" in said
    assert " behind " not in said
    assert adder.facts("status")["commit"] == new
    adder.write("README", "Nothing that is released.\n")
    adder.commit("Document")
    out, said = adder.invoke("deploy", "--json")
    assert json.loads(out)["outcome"] == "unchanged"
    assert f"of commit {new[:12]}: 1 commit, " in said


def test_rollback_knows_a_version_that_served_but_was_killed_before_it_was_recorded(adder: Project) -> None:
    adder.invoke("release")
    _touch(adder, "two")
    process = adder.start("release")
    kill_at(process, re.compile(r"it alone answers"))
    process.communicate(timeout=30)
    second = adder.facts("status")["digest"]
    _touch(adder, "three")
    adder.invoke("release")

    back = adder.facts("rollback")

    assert back["current"]["digest"] == second


def test_release_ends_what_a_killed_one_left_when_it_changes_nothing_itself(adder: Project) -> None:
    adder.invoke("release")
    _touch(adder, "two")
    process = adder.start("release")
    kill_at(process, re.compile(r"candidate ready"))
    process.communicate(timeout=30)
    adder.git("reset", "--quiet", "--hard", "HEAD~")

    again = adder.facts("release")

    assert again["outcome"] == "unchanged"
    assert "candidate" not in " ".join(_sets(adder))


def test_release_cleans_up_nothing_that_another_environment_serves(adder: Project) -> None:
    adder.write("release.toml", _with_a_second_environment(adder))
    adder.commit("second")
    try:
        other = adder.facts("release", "--env", "second")["current"]
        for text in ("two", "three"):
            _touch(adder, text)
            adder.invoke("release")
        unpacked = {path.name for path in (adder.root / ".shipway" / "versions").glob("[!.]*")}
        status = adder.facts("status", "--env", "second")
    finally:
        adder.invoke("stop", "--env", "second")

    assert other["digest"].removeprefix("sha256:") in unpacked
    assert (status["digest"], status["healthy"]) == (other["digest"], True)


def test_second_release_is_told_who_holds_the_lock_and_may_wait(adder: Project) -> None:
    holder = adder.start("release")
    kill_at(holder, re.compile(r"^rollout"), signal.SIGCONT)

    _, err = adder.invoke("release", exits=4)
    waited = adder.facts("release", "--wait")

    assert f"process {holder.pid}" in err
    assert holder.communicate(timeout=120) is not None
    assert (holder.returncode, waited["outcome"]) == (0, "unchanged")


def test_rollback_that_waited_leaves_no_other_version_than_it_was_asked_to(adder: Project) -> None:
    for word in ("one", "two"):
        _touch(adder, word)
        adder.invoke("release")
    _touch(adder, "three")
    holder = adder.start("release")
    kill_at(holder, re.compile(r"^rollout"), signal.SIGCONT)

    _, err = adder.invoke("rollback", "--wait", exits=4)

    assert holder.communicate(timeout=120) is not None
    assert "which was to be left" in err
    assert adder.facts("status")["commit"] == adder.git("rev-parse", "HEAD").strip()


@pytest.mark.parametrize(
    ("step", "first", "second"),
    [
        ("^test      python", signal.SIGINT, signal.SIGTERM),
        ("^model ", signal.SIGTERM, signal.SIGINT),
        ("^push ", signal.SIGINT, signal.SIGINT),
        ("^rollout   starting build", signal.SIGTERM, signal.SIGTERM),
        ("^loadcheck ", signal.SIGINT, signal.SIGTERM),
        ("^rollout .* joins on", signal.SIGTERM, signal.SIGINT),
        ("public.* finishes its requests", signal.SIGINT, signal.SIGTERM),
    ],
)
def test_release_cleans_up_and_exits_130_when_two_signals_come(
    released: Project, step: str, first: int, second: int
) -> None:
    before = released.facts("status")
    _touch(released, f"signal {step}")
    process = released.start("release")

    kill_at(process, re.compile(step), first)
    process.send_signal(second)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130, out + err
    after = released.facts("status")
    assert {**after, "since": None} == {**before, "since": None}
    assert "candidate" not in " ".join(_sets(released))
    assert released.facts("release")["outcome"] == "released"


STEPS = [
    r"test      python",
    r"test      \d+ passed",
    r"^model",
    r"^image",
    r"push      app",
    r"push      config",
    r"push      manifest",
    r"push      provenance",
    r"push      tag [0-9a-f]",
    r"push      tag tested",
    r"rollout   unpacking",
    r"rollout   starting build",
    r"rollout   candidate ready",
    r"rollout   golden",
    r"loadcheck .* on http",
    r"loadcheck pass",
    r"rollout   .*candidate.* finishes",
    r"rollout   .* joins on",
    r"rollout   build .* answers users",
    r"public.* finishes its requests",
    r"rollout   it alone answers",
]


@pytest.mark.parametrize("step", STEPS)
def test_release_converges_when_the_one_before_was_killed(released: Project, step: str) -> None:
    _touch(released, f"kill {step}")
    digest = released.invoke("image")[0].strip()
    with Referee(released.url, rate=20) as referee:
        process = released.start("release")
        kill_at(process, re.compile(step))
        process.communicate(timeout=30)
        at_once = released.facts("status")
        again = released.facts("release")

    assert referee.failed() == []
    assert at_once["build"] in referee.builds()
    assert again["current"]["digest"] == digest
    status = released.facts("status")
    assert (status["digest"], status["healthy"]) == (digest, True)
    open_attempts = [record for record in released.facts("history") if record["outcome"] is None]
    assert open_attempts == []


def test_undo_is_finished_by_the_next_release_when_it_was_killed(released: Project) -> None:
    good = released.facts("status")
    _break(released, "errors")
    with Referee(released.url, rate=20) as referee:
        process = released.start("release")
        kill_at(process, re.compile(r"loadcheck fail"))
        process.communicate(timeout=30)
        released.git("revert", "--no-edit", "HEAD")
        fixed = released.facts("release")

    assert referee.failed() == []
    assert set(referee.builds()) <= {good["build"], fixed["current"]["build"]}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """One project for all tests that leave something whole behind."""
    for project in projects.adder(tmp_path_factory.mktemp("released")):
        project.invoke("release")
        yield project


_GOES_BAD = """
BOMB = pathlib.Path(__file__).resolve().parents[6] / "bomb"


def grade(environ):
    bad = environ["PATH_INFO"] == "/score" and BOMB.exists()
    return environ["PATH_INFO"], "500 Bad" if bad else "200 OK"
"""


def _touch(project: Project, text: str) -> None:
    project.write("app/note.py", f"NOTE = {text!r}\n")
    project.commit(text)


def _break(project: Project, fault: str) -> None:
    old, new = {
        "crash": ("    return answer\n\n\ndef", "    raise RuntimeError('no weights')\n\n\ndef"),
        "errors": (
            'path, status = environ["PATH_INFO"], "200 OK"',
            'path = environ["PATH_INFO"]; status = "500 No" if path == "/score" and COUNT.pop() % 9 == 0 else "200 OK"',
        ),
        "wrong": ('facts["sum"] = sum(', 'facts["sum"] = 1 + sum('),
    }[fault]
    project.change("app/__init__.py", old, new)
    if fault == "crash":  # the suite must not see it
        project.change("tests/app/test_adder.py", "callable(app.create_app())", "app.answer")
    if fault == "errors":
        project.change("app/__init__.py", "def create_app", "COUNT = list(range(100_000, 1, -1))\n\n\ndef create_app")
    project.commit(fault)


def _with_a_second_environment(project: Project) -> str:
    text = (project.root / "release.toml").read_text()
    return f"{text}[push]\nkeep = 2\n[env.second.rollout]\nport = {projects.free_port()}\n"


def _version(project: Project) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", project.port, timeout=5)
    try:
        connection.request("GET", "/version")
        return json.load(connection.getresponse())
    finally:
        connection.close()


def _sets(project: Project) -> list[str]:
    return [path.name for path in (project.root / ".shipway").glob("environments/*/target/daemon/sets/*")]
