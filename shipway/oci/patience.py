"""How long an errand at a registry goes on though it fails.

Owns what is worth another try, the waits between tries, and their bounds: in tries and time
without progress, in all tries, and in the time that bytes may drip. Whoever waits is told of
it and may end it. Knows neither requests nor images.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from msgspec import Struct

from shipway.errors import RegistryUnreachable
from shipway.oci.images import Advance

TRANSIENT = frozenset({408, 429, 499, 500, 502, 503, 504, 522})  # go-containerregistry's list
_TRIES = 6  # without progress
_TRIES_IN_ALL = 100  # with some between them
_DEADLINE_S = 300.0  # without progress
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 60.0
_NOTICED_S = 3.0
_TICK_S = 0.2  # a wait is told of so often, so that it can be ended


class Clock(Struct, frozen=True, kw_only=True):
    """What time it is, and how it passes."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Passing(Exception):
    """A request failed in a way that may pass: it is worth another try. Never leaves `shipway.oci`."""

    def __init__(self, text: str, *, after_s: float | None = None) -> None:
        """Take what happened, and how long the registry asked to wait."""
        super().__init__(text)
        self.after_s = after_s


class Patience:
    """How long one errand goes on though it fails: bounded in tries and time without progress, and in all tries."""

    def __init__(self, clock: Clock, advance: Advance, warn: Callable[[str], None]) -> None:
        """Begin; `advance` is told of every wait and may end it, `warn` of those that people notice."""
        self._clock = clock
        self._warn = warn
        self._advance = advance
        self._in_all = 0
        self._waited_s = 0.0
        self.tries = 0
        self._since = clock.now()

    def in_time(self, pieces: Iterable[bytes], longest_s: float) -> Iterator[bytes]:
        """Yield the pieces; raises `RegistryUnreachable` once all of this errand were waited for longer than that.

        The time of whoever takes them does not count.
        """
        asked = self._clock.now()
        for piece in pieces:
            self._waited_s += self._clock.now() - asked
            if self._waited_s > longest_s:
                raise RegistryUnreachable(f"the registry sends too slowly: no end after {longest_s:.0f} s")
            yield piece
            asked = self._clock.now()

    def progressed(self) -> None:
        """Begin to count `tries` anew: something more has arrived."""
        self.tries = 0
        self._since = self._clock.now()

    def spend(self, fault: Passing) -> None:
        """Wait until the next try is due; raises `RegistryUnreachable` when there were enough."""
        self.tries += 1
        self._in_all += 1
        wait_s = self._wait_s(fault)
        late = self._clock.now() + wait_s - self._since > _DEADLINE_S
        if self.tries >= _TRIES or self._in_all >= _TRIES_IN_ALL or late:
            times = "once" if self._in_all == 1 else f"{self._in_all} times"
            raise RegistryUnreachable(f"{fault}, tried {times}") from fault
        if wait_s > _NOTICED_S:
            self._warn(f"{fault}; asking again in {wait_s:.0f} s")
        until = self._clock.now() + wait_s
        while (left := until - self._clock.now()) > 0:
            self._advance(0)
            self._clock.sleep(min(left, _TICK_S))
        self._advance(0)

    def _wait_s(self, fault: Passing) -> float:
        if fault.after_s is not None:
            return min(max(fault.after_s, 0.0), _LONGEST_WAIT_S)
        return _FIRST_WAIT_S * (1 << self.tries - 1) * random.uniform(0.5, 1)  # noqa: S311 - no secret


def retry_after_s(text: str | None) -> float | None:
    """Return what `Retry-After` says, in seconds or as a date."""
    if not text:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        return float(int(text))
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - few registries are ever that busy

    with contextlib.suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(text)
        return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None
