"""The local target with real parts: Circus, gunicorn, sockets, signals; the referee counts every answer."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shipway.config import RolloutSettings
from shipway.console import Console
from shipway.errors import (
    AddressTaken,
    CandidateFailed,
    ConfigError,
    GoldenAnswersWrong,
    PromotionFailed,
    RolloutError,
    UndoFailed,
    WrongBuild,
)
from shipway.stages import rollout
from shipway.targets.local import Local
from shipway.targets.workers import free_ports
from tests.system.referee import Referee
from tests.system.standin import StandIn, make

LOG = logging.getLogger("referee")  # seen with --log-cli-level=INFO


class Host:
    """A folder, a port and a target, as one checkout has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.target = self.another(self.port)

    def another(self, port: int) -> Local:
        """Return the target as another command would make it."""
        return Local(
            self.folder / "target",
            settings=RolloutSettings(port=port),
            tell=Console(),
            python=Path(sys.executable),
            folder_of=lambda digest: self.folder / "versions" / digest.hex,
        )

    def make(self, build: str, **plan: Any) -> StandIn:
        """Make a version."""
        return make(self.folder / "versions", build, **plan)

    def start(self, made: StandIn) -> Any:
        """Start it as a candidate."""
        return self.target.start(made.version, made.image, as_before=False)

    def release(self, made: StandIn) -> StandIn:
        """Release it."""
        self.target.promote(self.start(made))
        self.target.settle()
        return made

    def ask(self, path: str = "/version") -> Any:
        """Ask on the public address."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310 - http, see url
            return json.load(answer)

    def daemon(self) -> psutil.Process:
        """Return the daemon."""
        return psutil.Process(int((self.folder / "target" / "daemon" / "pid").read_text("ascii")))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.target.stop()


def until(condition: Callable[[], object], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


def answered(ask: Callable[[], object]) -> object:
    with contextlib.suppress(OSError):
        return ask()
    return None


# -- good releases -------------------------------------------------------------------------


def test_releases_lose_no_request_when_users_ask_all_the_time(host: Host) -> None:
    old, new = host.release(host.make("old")), host.make("new")
    with Referee(host.url, rate=50) as referee:
        for made in (new, old, new):
            host.release(made)
            time.sleep(0.5)
    LOG.info(referee.summary())
    assert referee.failed() == []
    assert referee.builds() == ["old", "new"]
    live = host.target.current()
    assert live
    assert (live.version, live.url, live.builds, live.healthy) == (new.version, host.url, ("new",), True)


def test_queued_slow_requests_are_all_answered_when_their_version_is_replaced(host: Host) -> None:
    host.release(host.make("old", score_s=2))
    builds: list[str] = []
    askers = [threading.Thread(target=lambda: builds.append(host.ask("/score")["build"])) for _ in range(14)]
    candidate = host.start(host.make("new"))
    for asker in askers:
        asker.start()
    host.target.promote(candidate)
    host.target.settle()
    for asker in askers:
        asker.join()
    assert len(builds) == len(askers)
    assert builds.count("old") >= 8
    assert host.ask()["build"] == "new"


def test_slow_start_is_waited_for(host: Host) -> None:
    host.release(host.make("slow", slow_start_s=2))
    assert host.ask()["build"] == "slow"


def test_nothing_restarts_when_another_image_has_the_same_parts(host: Host) -> None:
    old = host.release(host.make("same"))
    before = host.ask()["instance"]
    other = host.make("same", name="other commit")
    host.release(other)
    live = host.target.current()
    assert live
    assert (live.version, live.healthy) == (other.version, True)
    assert live.version != old.version
    assert host.ask()["instance"] == before


def test_service_sees_its_own_world_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    made = host.release(host.make("clean"))
    answer = host.ask("/environment")
    own = {
        "PATH",
        "LANG",
        "HOME",
        "HOST",
        "TMPDIR",
        "PORT",
        "METRICS_PORT",
        "PYTHONPATH",
        "SHIPWAY_BUILD",
        "SHIPWAY_SET",
        "PLAN",
    }
    assert answer["environment"].keys() - {"SERVER_SOFTWARE", "LC_CTYPE"} == own
    packages = [Path(place) for place in answer["path"] if "packages" in place]
    assert packages == [made.root / "srv" / "site-packages"]


# -- bad candidates ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "error", "said"),
    [
        ({"crash_at_start": True, "start_timeout_s": 60}, CandidateFailed, "no such thing as a model"),
        ({"never_ready": True, "start_timeout_s": 1.5}, CandidateFailed, "was not ready within 1.5 s"),
        ({"says": "another"}, WrongBuild, "but build another answered"),
    ],
)
def test_users_never_meet_a_candidate_that_is_refused(
    host: Host, plan: dict[str, Any], error: type[RolloutError], said: str
) -> None:
    old = host.release(host.make("old"))
    before = host.ask()["instance"]
    with Referee(host.url) as referee:
        with pytest.raises(error, match=said):
            host.start(host.make("bad", **plan))
        host.target.undo(old.version)
    assert referee.failed() == []
    assert referee.builds() == ["old"]
    assert host.ask()["instance"] == before
    assert len(host.daemon().children()) == 1


def test_candidate_that_ends_after_it_was_ready_stays_down(host: Host) -> None:
    old = host.release(host.make("old"))
    candidate = host.start(host.make("bad", end_after_s=1.5))
    until(lambda: not port_answers(candidate.url))
    time.sleep(1.2)  # the daemon looks once a second
    assert not port_answers(candidate.url)
    host.target.undo(old.version)
    assert host.ask()["build"] == "old"


def port_answers(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=1).close()
    except OSError:
        return False
    return True


def test_release_goes_on_when_a_candidate_failed_before(host: Host) -> None:
    host.release(host.make("good"))
    with pytest.raises(CandidateFailed):
        host.start(host.make("bad", crash_at_start=True))
    host.release(host.make("mended"))
    assert host.ask()["build"] == "mended"


@pytest.mark.parametrize(("service", "said"), [("standin", None), ("another", r"what: \$\.service: .*standin")])
def test_golden_exchanges_are_asked_of_the_candidate(host: Host, service: str, said: str | None) -> None:
    made = host.make("new")
    folder = made.root / "srv" / "models" / made.version.model.digest.hex / "golden" / "exchanges"
    folder.mkdir(parents=True)
    response = {"status": 200, "json": {"service": service}}
    case = {"request": {"method": "GET", "path": "/version"}, "response": response}
    (folder / "what.json").write_text(json.dumps(case), "utf-8")
    candidate = host.start(made)
    with pytest.raises(GoldenAnswersWrong, match=said) if said else contextlib.nullcontext():
        rollout.ask_golden(candidate.url, made.version, made.root / made.version.model.folder, Console())


# -- going back ------------------------------------------------------------------------------


def test_undo_loses_no_request_when_the_version_turns_bad_after_promotion(host: Host) -> None:
    old = host.release(host.make("old"))
    before = host.ask()["instance"]
    with Referee(host.url, rate=50) as referee:
        host.target.promote(host.start(host.make("new", bad_after_s=0)))
        time.sleep(1)
        both = host.target.current()
        host.target.undo(old.version)
        undone = time.time()
        time.sleep(1)
    LOG.info(referee.summary())
    assert both
    assert (both.version, both.builds, both.healthy) == (old.version, ("old", "new"), False)
    assert referee.failed() == []
    assert {answer.build for answer in referee.answers if answer.at > undone} == {"old"}
    assert host.ask()["instance"] == before


def test_promotion_fails_at_once_when_the_version_crashes_on_the_public_address(host: Host) -> None:
    old = host.release(host.make("old"))
    with Referee(host.url) as referee:
        candidate = host.start(host.make("new", crash_in_public=True, start_timeout_s=60))
        began = time.monotonic()
        with pytest.raises(PromotionFailed, match="no such thing as a model"):
            host.target.promote(candidate)
        host.target.undo(old.version)
    assert time.monotonic() - began < 15
    assert referee.failed() == []
    assert referee.builds() == ["old"]


def test_nothing_is_left_when_the_first_release_is_undone(host: Host) -> None:
    host.target.promote(host.start(host.make("first")))
    daemon = host.daemon()
    everything = [daemon, *daemon.children(recursive=True)]
    host.target.undo(None)
    assert psutil.wait_procs(everything, timeout=2)[1] == []
    assert not port_answers(host.url)
    assert host.target.current() is None


def test_undo_starts_the_version_before_again_when_it_is_gone(host: Host) -> None:
    old = host.release(host.make("old"))
    host.release(host.make("new"))
    with Referee(host.url) as referee:
        host.target.undo(old.version)
    assert referee.failed() == []
    live = host.target.current()
    assert live
    assert (live.version, live.builds, live.healthy) == (old.version, ("old",), True)


def test_undo_says_what_serves_when_the_version_before_does_not_start(host: Host) -> None:
    old = host.release(host.make("old"))
    host.release(host.make("new"))
    (old.root / "srv" / "standin.py").unlink()
    before = host.ask()["instance"]
    with pytest.raises(UndoFailed) as failure:
        host.target.undo(old.version)
    assert "build new" in failure.value.serving
    assert "No module named 'standin'" in str(failure.value)
    assert host.ask()["instance"] == before


def test_undo_needs_no_room_for_files_and_says_so_where_it_does(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with tempfile.TemporaryDirectory() as folder:
        short, long = Host(Path(folder)), Host(tmp_path_factory.mktemp("a" * 80))
        for each in (short, long):
            old = each.release(each.make("old"))
            each.target.promote(each.start(each.make("new")))
        with monkeypatch.context() as disk:
            disk.setattr("tempfile.TemporaryDirectory", full)
            short.target.undo(old.version)
            with pytest.raises(UndoFailed, match="No space left on device"):
                long.target.undo(old.version)
        undone = short.ask()["build"]
        for each in (short, long):
            each.target.stop()

    assert undone == "old"


def test_nothing_is_settled_but_what_was_promoted(host: Host) -> None:
    old = host.release(host.make("old"))
    host.target.promote(host.start(host.make("new")))
    host.another(host.port).undo(old.version)

    with pytest.raises(PromotionFailed, match="joined, and does not run any more"):
        host.target.settle()


# -- what dies -------------------------------------------------------------------------------


def test_worker_is_replaced_when_it_is_killed(host: Host) -> None:
    host.release(host.make("good"))
    killed = host.ask()["instance"]
    os.kill(int(killed), signal.SIGKILL)
    until(lambda: answered(lambda: host.ask()["instance"]) not in (None, killed))
    live = host.target.current()
    assert live
    assert live.healthy


def test_whole_set_is_replaced_when_its_main_process_is_killed(host: Host) -> None:
    host.release(host.make("good"))
    (main,) = host.daemon().children()
    main.kill()
    until(lambda: [each.pid for each in host.daemon().children()] not in ([], [main.pid]))
    until(lambda: answered(host.ask))
    assert host.target.current()


def test_workers_serve_on_and_the_next_release_takes_over_when_the_daemon_is_killed(host: Host) -> None:
    old = host.release(host.make("old"))
    with Referee(host.url) as referee:
        host.daemon().kill()
        until(lambda: not (live := host.target.current()) or not live.healthy)
        alone = host.target.current()
        time.sleep(1)
        killed = referee.failed()
        host.release(host.make("new"))
    LOG.info(referee.summary())
    assert alone
    assert (alone.version, alone.builds, alone.healthy) == (old.version, ("old",), False)
    assert killed == []
    failed = [answer.at for answer in referee.failed()]  # the address changes hands: no daemon can take over a socket
    assert max(failed, default=0) - min(failed, default=0) < 2
    live = host.target.current()
    assert live
    assert (live.builds, live.healthy) == (("new",), True)
    assert len(host.daemon().children()) == 1


def test_version_before_comes_up_again_when_the_machine_was_off(host: Host) -> None:
    old = host.release(host.make("old"))
    everything = [host.daemon(), *host.daemon().children(recursive=True)]
    for process in everything:
        process.kill()
    psutil.wait_procs(everything, timeout=5)
    off = host.target.current()
    assert off
    assert (off.version, off.builds, off.healthy) == (old.version, (), False)
    with pytest.raises(CandidateFailed):
        host.start(host.make("bad", crash_at_start=True))
    host.target.undo(old.version)
    live = host.target.current()
    assert live
    assert (live.builds, live.healthy) == (("old",), True)


def test_hung_daemon_is_named_and_its_workers_serve_on(host: Host) -> None:
    host.release(host.make("old"))
    daemon = host.daemon()
    daemon.suspend()
    try:
        with pytest.raises(RolloutError, match=f"process {daemon.pid}.*does not do what it is asked"):
            host.start(host.make("new"))
        assert host.ask()["build"] == "old"
    finally:
        daemon.resume()


def test_release_converges_when_its_process_is_killed_at_any_line(host: Host) -> None:
    builds = ["even", "odd"]
    host.release(host.make(builds[0]))
    root = Path(__file__).parents[2]
    program = [sys.executable, "-m", "tests.system.killed_release", str(host.folder), str(host.port)]
    fatal, outcome = 0, -signal.SIGKILL
    with Referee(host.url, rate=30) as referee:
        while outcome == -signal.SIGKILL:
            fatal += 1
            before, after = builds[(fatal - 1) % 2], builds[fatal % 2]
            made = host.make(after)
            done = subprocess.run([*program, after, str(fatal)], cwd=root, check=False, capture_output=True, text=True)
            outcome = done.returncode
            live = host.target.current()
            assert live, fatal
            assert {live.version.build, *live.builds} <= {before, after}, fatal
            assert live.healthy is (live.builds == (live.version.build,)), (fatal, live, done.stdout)
            host.release(made)
            assert host.ask()["build"] == after, fatal
    LOG.info("killed at %d lines: %s", fatal - 1, referee.summary())
    assert outcome == 0
    assert fatal > 6
    assert referee.failed() == []


# -- addresses -------------------------------------------------------------------------------


def test_holder_of_the_port_is_named_when_it_is_taken(host: Host) -> None:
    with socket.create_server(("127.0.0.1", host.port)), pytest.raises(AddressTaken, match=f"process {os.getpid()}"):
        host.start(host.make("new"))
    host.target.undo(None)


def test_other_address_is_refused_while_something_is_served(host: Host) -> None:
    host.release(host.make("old"))
    elsewhere = host.another(free_ports(1)[0])
    new = host.make("new")
    with pytest.raises(ConfigError, match=f"but {host.url} is served"):
        elsewhere.start(new.version, new.image, as_before=False)
    assert host.ask()["build"] == "old"


def test_other_address_is_served_when_all_was_stopped(host: Host) -> None:
    host.release(host.make("old"))
    host.target.stop()
    assert not port_answers(host.url)
    elsewhere = Host(host.folder)
    elsewhere.release(elsewhere.make("new"))
    assert elsewhere.ask()["build"] == "new"


def test_settling_is_refused_when_nothing_joined(host: Host) -> None:
    with pytest.raises(PromotionFailed):
        host.target.settle()
