"""Side-by-side measurements, as ratios from one run; see README.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure, and how many times that is of what it was measured beside."""

    what: str
    value: float
    unit: str
    reference: float
    against: str

    @property
    def ratio(self) -> float:
        """The figure as a multiple of its reference."""
        return self.value / self.reference


def middle(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the pair, both measured in one round, whose ratio is the median of all rounds'."""
    rounds = sorted(pairs, key=lambda pair: pair[0] / pair[1])
    return rounds[len(rounds) // 2]
