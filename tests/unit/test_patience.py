"""What is asked again, how long, and when it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from shipway.errors import StoreUnreachable
from shipway.stores.patience import Clock, Passing, persist, resumed, retry_after_s


class Time:
    """A clock that a test moves by sleeping."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now_s, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def test_persist_waits_as_long_as_the_store_asks() -> None:
    time, faults = Time(), [Passing("busy", after_s=7), Passing("busy", after_s=600)]

    def work(again: bool) -> str:  # noqa: FBT001 - of `persist`
        if faults:
            raise faults.pop(0)
        return f"done, {again=}"

    assert persist(time.clock, work) == "done, again=True"
    assert time.slept == [7, 60]  # and no longer than a minute


def test_persist_ends_after_some_tries() -> None:
    time = Time()

    def work(_again: bool) -> None:  # noqa: FBT001 - of `persist`
        raise Passing("503")

    with pytest.raises(StoreUnreachable, match="503, tried 6 times"):
        persist(time.clock, work)

    assert len(time.slept) == 5
    assert time.now_s < 10


def test_persist_ends_when_the_store_asks_for_too_much_patience() -> None:
    time = Time()

    def work(_again: bool) -> None:  # noqa: FBT001 - of `persist`
        raise Passing("429", after_s=3600)

    with pytest.raises(StoreUnreachable, match="429, tried 4 times"):
        persist(time.clock, work)

    assert time.now_s == 180


def test_resumed_goes_on_behind_what_came() -> None:
    time, opened = Time(), []

    def open_at(start: int) -> Iterator[bytes]:
        opened.append(start)
        yield b"0123456789"[start : start + 4]
        if start + 4 < 10:
            raise Passing("cut")

    assert b"".join(resumed(time.clock, open_at, 0)) == b"0123456789"
    assert opened == [0, 4, 8]


def test_resumed_ends_when_nothing_comes_any_more() -> None:
    time = Time()

    def open_at(start: int) -> Iterator[bytes]:
        if start == 0:
            yield b"0123"
        raise Passing("cut")

    with pytest.raises(StoreUnreachable, match="cut, tried 6 times"):
        list(resumed(time.clock, open_at, 0))


def test_resumed_ends_when_bytes_drip_for_too_long() -> None:
    time = Time()

    def open_at(_start: int) -> Iterator[bytes]:
        while True:
            time.now_s += 29  # each piece just before the connection would time out
            yield b"0"

    with pytest.raises(StoreUnreachable, match="too slowly"):
        list(itertools.islice(resumed(time.clock, open_at, 0), 1_000))

    assert time.now_s < 4_000


@pytest.mark.parametrize(("text", "seconds"), [("3", 3.0), ("soon", None), ("", None)])
def test_retry_after_is_read_in_seconds(text: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": text}) == seconds
