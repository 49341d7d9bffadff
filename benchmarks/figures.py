"""Figures: what the rounds measured, and the arithmetic over them.

Both sides of a pair are measured in every round, so a ratio is taken within each
round, where the machine was the same for both, and the median is taken over the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Unit:
    """What a figure counts, and whether more of it is better."""

    name: str
    better: Better


MS = Unit("ms", "lower")
PER_SECOND = Unit("/s", "higher")
BYTES = Unit("bytes", "lower")
TRIPS = Unit("round trips", "lower")
COMMANDS = Unit("commands", "lower")
CPU = Unit("CPU s per million", "lower")


@dataclass(slots=True)
class Series:
    """One figure over the rounds: `key` names it for targets, `side` in the tables."""

    key: str
    measure: str
    side: str
    unit: Unit
    values: list[float] = field(default_factory=list)  # one per round
    broken: list[str] = field(default_factory=list)  # guarantees that did not hold; then it counts as nothing

    @property
    def counts(self) -> bool:
        """True if it was measured and the guarantees held."""
        return bool(self.values) and not self.broken

    @property
    def median(self) -> float:
        """Over the rounds; 0 if the figure counts as nothing."""
        return median(self.values) if self.counts else 0.0

    @property
    def low(self) -> float:
        """The lowest round."""
        return min(self.values) if self.counts else 0.0

    @property
    def high(self) -> float:
        """The highest round."""
        return max(self.values) if self.counts else 0.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """`ours` divided by `theirs`, over the rounds that measured both."""

    ours: Series
    theirs: Series
    median: float
    low: float
    high: float


class Book:
    """All series of a run, in the order in which they were first measured."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def add(self, key: str, side: str, unit: Unit, value: float) -> None:
        """Note one round's value. The key begins with the measure's name: `drain.worker1`."""
        series = self._series.setdefault(key, Series(key, key.split(".", 1)[0], side, unit))
        series.values.append(value)

    def all(self, measure: str | None = None) -> list[Series]:
        """Every series, or those of one measure."""
        return [one for one in self._series.values() if measure in (None, one.measure)]

    def get(self, key: str) -> Series | None:
        """The series, or None if nothing measured it."""
        return self._series.get(key)

    def best(self, keys: Iterable[str]) -> Series | None:
        """The best of several by its median, of those that were measured."""
        found = [series for key in keys if (series := self._series.get(key)) is not None and series.counts]
        if not found:
            return None
        pick = min if found[0].unit.better == "lower" else max
        return pick(found, key=lambda series: series.median)

    def ratio(self, ours: str, *theirs: str) -> Ratio | None:
        """`ours` over the best of `theirs`; None if either was not measured. A broken `ours` is 0 (or infinite)."""
        mine, other = self.get(ours), self.best(theirs)
        return None if mine is None or other is None else ratio_of(mine, other)


def ratio_of(ours: Series, theirs: Series) -> Ratio:
    """Round by round. What counts as nothing is as bad as can be: 0, or infinite where lower is better."""
    if not ours.counts:
        worst = math.inf if ours.unit.better == "lower" else 0.0
        return Ratio(ours, theirs, worst, worst, worst)
    ratios = [mine / other for mine, other in zip(ours.values, theirs.values, strict=False) if other]
    if not ratios:
        return Ratio(ours, theirs, math.inf, math.inf, math.inf)
    return Ratio(ours, theirs, median(ratios), min(ratios), max(ratios))


def counted(number: int, thing: str) -> str:
    """`1 client`, `8 clients`, `2 processes`."""
    many = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number} {thing if number == 1 else many}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are not above (nearest rank). Raises ValueError if empty."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    ordered = sorted(values)
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[max(1, rank) - 1]
