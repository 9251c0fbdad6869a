"""What every place for a lock and for records must do: files, a cluster in memory, a real cluster.

Bound to the first two in `tests/contract`, to the real one in `tests/cluster`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from shipway.console import Console
from shipway.errors import LockHeld, LockLost
from shipway.ledger import Ledger, Lock, Records, Slot

HOUR_S = 3600.0


def late() -> float:
    """Return a time at which every lease of now has run out."""
    return time.time() + 2 * HOUR_S


def take(lock: Lock, *, who: str = "bob", wait: bool = False) -> contextlib.AbstractContextManager[Lock]:
    return lock.acquire(owner=who, what="rollback", wait=wait, tell=Console())


class SlotContract:
    """Bind it by a child whose fixture `slot` gives a function: each call is another look at one empty slot."""

    def test_second_taker_is_told_who_holds_it(self, slot: Callable[[], Slot]) -> None:
        second = Lock(slot(), lease_s=HOUR_S)
        with (
            take(Lock(slot(), lease_s=HOUR_S), who="ann"),
            pytest.raises(LockHeld, match="the lock is held by ann on "),
            take(second),
        ):
            pass
        assert second.holder() is None

    def test_lock_is_free_when_its_holder_raised(self, slot: Callable[[], Slot]) -> None:
        with pytest.raises(KeyError), take(Lock(slot(), lease_s=HOUR_S)):
            raise KeyError
        with take(Lock(slot(), lease_s=HOUR_S)) as lock:
            lock.check()

    def test_revived_holder_stops_before_its_next_change_when_another_took_over(self, slot: Callable[[], Slot]) -> None:
        asleep, other = Lock(slot(), lease_s=HOUR_S), Lock(slot(), lease_s=HOUR_S, clock=late)
        with take(asleep):
            first = _fence(slot())
            with take(other, who="cat"):
                assert _fence(slot()) > first
                with pytest.raises(LockLost, match="the lock was lost to cat on "):
                    asleep.check()
                other.check()
        assert other.holder() is None

    def test_change_is_refused_when_it_knows_only_what_is_long_gone(self, slot: Callable[[], Slot]) -> None:
        with take(Lock(slot(), lease_s=HOUR_S)) as lock:
            long_ago = slot().read()
            lock.check()
            lock.check()
            last = slot().read()
            assert long_ago.holder
            assert not slot().write(long_ago.holder, long_ago)
            assert slot().read() == last

    def test_lock_that_only_seems_to_have_run_out_is_not_taken_over(self, slot: Callable[[], Slot]) -> None:
        """A clock that is hours ahead sees every lease run out; one that is renewed meanwhile lives."""
        doubter = Lock(slot(), lease_s=HOUR_S, doubt_s=3, clock=late)
        with take(Lock(slot(), lease_s=3), who="ann"), pytest.raises(LockHeld, match="ann"), take(doubter):
            pass

    def test_waiting_goes_next(self, slot: Callable[[], Slot]) -> None:
        order = []

        def wait_for_it() -> None:
            with take(Lock(slot(), lease_s=HOUR_S), wait=True):
                order.append("second")

        waiter = threading.Thread(target=wait_for_it)
        with take(Lock(slot(), lease_s=HOUR_S)):
            waiter.start()
            time.sleep(0.3)
            order.append("first")
        waiter.join()
        assert order == ["first", "second"]

    def test_one_of_many_holds_at_a_time(self, slot: Callable[[], Slot]) -> None:
        inside, most = 0, 0

        def work() -> None:
            nonlocal inside, most
            with take(Lock(slot(), lease_s=HOUR_S), wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.05)
                inside -= 1

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

    def test_change_is_refused_when_what_was_seen_is_not_there_any_more(self, slot: Callable[[], Slot]) -> None:
        nobody = slot().read()
        with take(Lock(slot(), lease_s=HOUR_S)) as lock:
            before = slot().read()
            lock.check()  # renews it
            after = slot().read()
            assert before.holder
            assert not slot().write(before.holder, nobody)
            assert not slot().write(before.holder, before)
            assert slot().write(before.holder, after)


class RecordsContract:
    """Bind it by a child whose fixture `records` gives a function: each call is another look at one empty place."""

    def test_attempts_are_there_for_everybody_in_order(self, records: Callable[[], Records]) -> None:
        ledger = Ledger(records())
        first = ledger.begin("release", who="ann", digest="d1")
        first.note(load={"p95_ms": 12.5})
        first.close("released")
        closing = ledger.begin("deploy", who="bob").close("failed", error="it crashed\nsaying “no”")

        found = Ledger(records()).attempts()

        assert [(each.number, each.kind, each.outcome) for each in found] == [
            (1, "release", "released"),
            (2, "deploy", "failed"),
        ]
        assert found[0].facts == {"digest": "d1", "load": {"p95_ms": 12.5}}
        assert found[1] == closing

    def test_number_is_taken_once(self, records: Callable[[], Records]) -> None:
        assert records().create(1, "mine")
        assert not records().create(1, "another's")
        assert records().all() == {1: b"mine"}

    def test_what_is_no_record_hides_nothing(self, records: Callable[[], Records]) -> None:
        records().create(1, "{ torn")
        Ledger(records()).begin("release", who="ann").close("released")
        assert [each.number for each in Ledger(records()).attempts()] == [2]


def _fence(slot: Slot) -> int:
    holder = slot.read().holder
    assert holder
    return holder.fence
