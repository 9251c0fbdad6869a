"""The lock with real files and processes: one holder, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shipway.errors import LockHeld, LockLost
from shipway.ledger import FileSlot, Holder, Lock, Seen

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from shipway.console import Console
from shipway.ledger import FileSlot, Lock
lock = Lock(FileSlot(Path(sys.argv[1])), lease_s=60)
with lock.acquire(owner="ann", what="release of abc", wait=False, tell=Console()):
    print("held", flush=True)
    time.sleep(60)
"""


class Told:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, stage: str, text: str) -> None:
        """Keep it."""
        self.lines.append(f"{stage}: {text}")

    def warn(self, text: str) -> None:
        """Keep it."""
        self.lines.append(f"warning: {text}")

    def live(self, stage: str, text: str) -> None:
        """Must not be needed."""
        raise AssertionError(stage, text)

    def progress(
        self, stage: str, label: str, total_bytes: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Must not be needed."""
        raise AssertionError(stage, label, total_bytes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@contextlib.contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def take(lock: Lock, *, wait: bool = False, tell: Told | None = None) -> contextlib.AbstractContextManager[Lock]:
    return lock.acquire(owner="bob", what="rollback", wait=wait, tell=tell or Told())


def kept(folder: Path) -> Path:
    """Return the one file that is there."""
    (file,) = folder.iterdir()
    return file


def fence(folder: Path) -> int:
    return int(json.loads(kept(folder).read_bytes())["fence"])


def test_second_taker_is_told_owner_host_since_and_what(folder: Path) -> None:
    with another_process(folder) as child, pytest.raises(LockHeld) as held, take(Lock(FileSlot(folder), lease_s=60)):
        pass
    pattern = rf"the lock is held by ann on \S+ \(process {child.pid}\), since \d{{4}}-\S+ \S+ UTC: release of abc"
    assert held.match(pattern)
    assert held.value.code == 4


def test_lock_is_taken_over_at_once_when_its_holder_was_killed(folder: Path) -> None:
    told = Told()
    with another_process(folder) as child:
        first = fence(folder)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with take(Lock(FileSlot(folder), lease_s=60), tell=told):
        assert fence(folder) > first
    assert [line.split(":")[0] for line in told.lines] == ["warning"]


class Elsewhere(FileSlot):
    """A lock that other machines may hold, and whose answers may be lost."""

    shared = True
    losing = 0

    def write(self, holder: Holder, seen: Seen) -> bool:
        """Write, and forget to say so."""
        done = super().write(holder, seen)
        self.losing -= done
        return done and self.losing < 0


def test_lock_is_ours_when_the_answer_to_its_change_was_lost(folder: Path) -> None:
    slot = Elsewhere(folder)
    slot.losing = 1

    with take(Lock(slot, lease_s=60)) as lock:
        lock.check()


def test_holder_of_another_machine_with_our_name_is_not_taken_for_dead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with take(Lock(Elsewhere(folder), lease_s=60)), monkeypatch.context() as there:
        there.setattr("shipway.proc.identity", lambda _pid: "another-boot/space/1")
        with pytest.raises(LockHeld), take(Lock(Elsewhere(folder), lease_s=60)):
            pass


def test_waiting_says_for_whom_and_goes_next(folder: Path) -> None:
    told, order = Told(), []

    def wait_for_it() -> None:
        with take(Lock(FileSlot(folder), lease_s=60), wait=True, tell=told):
            order.append("second")

    waiter = threading.Thread(target=wait_for_it)
    with Lock(FileSlot(folder), lease_s=60).acquire(owner="ann", what="release", wait=False, tell=Told()):
        waiter.start()
        deadline = time.monotonic() + 10
        while not told.lines and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    waiter.join()
    assert order == ["first", "second"]
    (line,) = told.lines
    assert line.startswith("rollout: waiting for ann on ")


def test_holder_that_lives_keeps_the_lock_when_its_lease_is_short(folder: Path) -> None:
    with take(Lock(FileSlot(folder), lease_s=1)) as lock:
        time.sleep(2)
        with pytest.raises(LockHeld), take(Lock(FileSlot(folder), lease_s=1)):
            pass
        lock.check()


def test_revived_holder_stops_before_its_next_change_when_another_took_over(folder: Path) -> None:
    hour = 3600.0
    asleep, other = (
        Lock(FileSlot(folder), lease_s=hour),
        Lock(FileSlot(folder), lease_s=hour, clock=lambda: time.time() + 2 * hour),
    )
    with take(asleep):
        first = fence(folder)
        with take(other):
            assert fence(folder) > first
            with pytest.raises(LockLost, match="the lock was lost to bob on "):
                asleep.check()
            other.check()
    assert other.holder() is None


def test_lost_lock_is_left_to_its_new_holder_when_the_old_one_ends(folder: Path) -> None:
    hour = 3600.0
    late = Lock(FileSlot(folder), lease_s=hour, clock=lambda: time.time() + 2 * hour)
    with contextlib.ExitStack() as new:
        with take(Lock(FileSlot(folder), lease_s=hour)):
            new.enter_context(take(late))
        late.check()


@pytest.mark.parametrize("damage", ["deleted", "torn", "foreign"])
def test_fence_grows_when_the_file_was(damage: str, folder: Path) -> None:
    with take(Lock(FileSlot(folder), lease_s=60)):
        first = fence(folder)
    file = kept(folder)
    text = file.read_text("utf-8")
    file.unlink()
    if damage != "deleted":
        file.write_text(text[:40] if damage == "torn" else text.replace('"expires": 0', '"expires": "soon"'), "utf-8")
    later = Lock(FileSlot(folder), lease_s=60, clock=lambda: time.time() + 1)
    with take(later):
        assert fence(folder) > first


def test_lock_is_free_when_its_holder_raised(folder: Path) -> None:
    with pytest.raises(KeyError), take(Lock(FileSlot(folder), lease_s=60)):
        raise KeyError
    assert Lock(FileSlot(folder), lease_s=60).holder() is None
    with take(Lock(FileSlot(folder), lease_s=60)) as lock:
        lock.check()


def test_error_of_the_body_goes_on_when_the_lock_cannot_be_given_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    def fail_on_a_full_disk() -> None:
        with take(Lock(FileSlot(folder), lease_s=60), tell=told):
            monkeypatch.setattr("os.fsync", full)
            raise KeyError

    with pytest.raises(KeyError):
        fail_on_a_full_disk()

    (line,) = told.lines
    assert "No space left on device" in line


def test_lock_is_held_throughout_when_threads_of_its_holder_renew_it_at_once(folder: Path) -> None:
    with take(Lock(FileSlot(folder), lease_s=3600)) as lock, ThreadPoolExecutor(4) as threads:
        for renewed in [threads.submit(lock.check) for _ in range(400)]:
            renewed.result()


def test_check_fails_when_nothing_is_held(folder: Path) -> None:
    with pytest.raises(LockLost):
        Lock(FileSlot(folder), lease_s=60).check()


def test_one_of_many_processes_holds_at_a_time(folder: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(3):
            with take(Lock(FileSlot(folder), lease_s=60), wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
