"""How long a store over a network is asked again: for what may pass, and not for ever.

Owns the pauses (the store's own `Retry-After`, else ever longer ones) and their limits: tries
and time, both without progress, and time in all. Knows no store. When patience has run out:
`StoreUnreachable`, which tells the last failure.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from msgspec import Struct

from shipway.errors import StoreUnreachable

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504, 509})
_TRIES = 6  # without progress
_STALLED_S = 180.0  # without progress
_IN_ALL_S = 3600.0  # one request, or one range, however it progresses
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 60.0

_T = TypeVar("_T")


class Clock(Struct, frozen=True, kw_only=True):
    """What time it is, and how it passes."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Passing(Exception):
    """A request failed in a way that may pass; never leaves `shipway.stores`."""

    def __init__(self, text: str, *, after_s: float | None = None) -> None:
        """Take what happened, and how long the store asked to wait."""
        super().__init__(text)
        self.after_s = after_s


class Patience:
    """For one errand."""

    def __init__(self, clock: Clock) -> None:
        """Begin."""
        self._clock = clock
        self._began = self._since = clock.now()
        self.tries = self._in_all = 0

    def progressed(self) -> None:
        """Count tries anew: something more has arrived. Raises `StoreUnreachable` when that took too long in all."""
        self.tries = 0
        self._since = self._clock.now()
        if self._since - self._began > _IN_ALL_S:
            raise StoreUnreachable(f"the store sends too slowly: one range took longer than {_IN_ALL_S:.0f} s")

    def spend(self, fault: Passing) -> None:
        """Wait until the next try is due; raises `StoreUnreachable` when there were enough."""
        self.tries += 1
        self._in_all += 1
        wait_s = self._wait_s(fault)
        then = self._clock.now() + wait_s
        if self.tries >= _TRIES or then - self._since > _STALLED_S or then - self._began > _IN_ALL_S:
            times = "once" if self._in_all == 1 else f"{self._in_all} times"
            raise StoreUnreachable(f"{fault}, tried {times}") from fault
        self._clock.sleep(wait_s)

    def _wait_s(self, fault: Passing) -> float:
        if fault.after_s is not None:
            return min(max(fault.after_s, 0.0), _LONGEST_WAIT_S)
        return _FIRST_WAIT_S * (1 << self.tries - 1) * random.uniform(0.5, 1)  # noqa: S311 - no secret


def persist(clock: Clock, work: Callable[[bool], _T]) -> _T:
    """Return what `work` does, which is told whether an earlier try may have done it already."""
    patience, again = Patience(clock), False
    while True:
        try:
            return work(again)
        except Passing as fault:
            patience.spend(fault)
            again = True


def resumed(clock: Clock, open_at: Callable[[int], Iterator[bytes]], start: int) -> Iterator[bytes]:
    """Yield what `open_at` gives from `start` on, and go on behind what came whenever it fails."""
    patience, at = Patience(clock), start
    while True:
        try:
            for piece in open_at(at):
                yield piece
                at += len(piece)
                patience.progressed()
        except Passing as fault:
            patience.spend(fault)
        else:
            return


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return what `Retry-After` says in seconds; `headers` have lower-case names."""
    text = headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
