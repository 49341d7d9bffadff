"""Targets: what the ratios should be. A target with several comparisons is judged by the worst of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.figures import Book
from benchmarks.measures.inline import CALLERS, FSYNC
from benchmarks.sizes import Size

Direction = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best of ours over the best of theirs, or ours alone if there is nothing beside it."""

    name: str
    ours: str | tuple[str, ...]
    theirs: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Of our figures."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True, slots=True)
class Target:
    """`bound` is a ratio, or an amount in `unit`."""

    what: str
    direction: Direction
    bound: float
    comparisons: tuple[Comparison, ...]
    unit: str = "x"


@dataclass(frozen=True, slots=True)
class Judged:
    """A target and what came of it."""

    target: Target
    figure: float  # of the worst comparison
    worst: str
    all_comparisons: tuple[tuple[str, float], ...]

    @property
    def reached(self) -> bool:
        """True if even the worst comparison is within the bound."""
        return _within(self.figure, self.target)


def _within(figure: float, target: Target) -> bool:
    return figure <= target.bound if target.direction == "at most" else figure >= target.bound


def judge(targets: Iterable[Target], book: Book) -> list[Judged]:
    """Every target whose figures were measured, at least one comparison of it."""
    judged = []
    for target in targets:
        found = ((comparison.name, _figure(comparison, book)) for comparison in target.comparisons)
        figures = tuple((name, figure) for name, figure in found if figure is not None)
        if figures:
            pick = max if target.direction == "at most" else min
            worst = pick(figures, key=lambda named: named[1])
            judged.append(Judged(target, worst[1], worst[0], figures))
    return judged


def _figure(comparison: Comparison, book: Book) -> float | None:
    # One that is broken is the best only if all are; it counts as nothing.
    series = book.best(comparison.keys) or next(filter(None, map(book.get, comparison.keys)), None)
    if series is None:
        return None
    if comparison.theirs:
        ratio = book.ratio(series.key, *comparison.theirs)
        return None if ratio is None else ratio.median
    if series.counts:
        return series.median
    return float("inf") if series.unit.better == "lower" else 0.0


def all_targets(size: Size) -> list[Target]:
    """In the order in which they are printed."""
    return [
        *(inline("reserve", percent, bound) for percent, bound in ((50, 1.3), (99, 2.0))),
        *(inline("consume", percent, bound) for percent, bound in ((50, 1.5), (99, 2.5))),
        *drains(size),
        *cycles(size),
        Target("one hot user over spread out", "at least", 0.8, (Comparison("drain", "hot.user", ("hot.spread",)),)),
        *growths(),
        Target("light load, consume to posted, p99", "at most", 250, (Comparison("", "light.p99"),), "ms"),
        Target("Redis memory per open hold", "at most", 350, (Comparison("", "memory.hold"),), "bytes"),
        Target("Redis memory per queued event", "at most", 600, (Comparison("", "memory.outbox"),), "bytes"),
    ]


def inline(operation: str, percent: int, bound: float) -> Target:
    """Every door, one caller and many, always synced and every second."""
    comparisons = tuple(
        Comparison(
            f"{door} {at_once} {fsync}",
            f"{operation}.{fsync}.{door}{at_once}.ours.p{percent}",
            (f"{operation}.{fsync}.{door}{at_once}.limit.p{percent}",),
        )
        for fsync in FSYNC
        for door, at_once in CALLERS
    )
    return Target(f"{operation} p{percent} over one write", "at most", bound, comparisons)


def drains(size: Size) -> list[Target]:
    """One worker against everything."""
    reference = tuple(f"drain.reference{clients}" for clients in size.clients)
    plain = ("drain.plain1", "drain.plain2")
    return [
        Target("drain, one worker over reference SQL", "at least", 10, (Comparison("", "drain.worker1", reference),)),
        Target("drain, one worker over plain Celery", "at least", 20, (Comparison("", "drain.worker1", plain),)),
        Target(
            "drain, one worker over batched SQL alone",
            "at least",
            0.6,
            (Comparison("", "drain.worker1", ("drain.raw",)),),
        ),
    ]


def cycles(size: Size) -> list[Target]:
    """Each side as it is best set up: with one gateway or two, with so many clients, with one process or two."""
    ours = ("cycle.ours1.always", "cycle.ours2.always")
    reference = tuple(f"cycle.reference{clients}" for clients in size.clients)
    plain = ("cycle.plain1", "cycle.plain2")
    return [
        Target("whole cycle over reference SQL", "at least", 2, (Comparison("", ours, reference),)),
        Target("whole cycle over plain Celery", "at least", 8, (Comparison("", ours, plain),)),
    ]


def growths() -> list[Target]:
    """Against few users without history, and a new month against the current one."""
    grown = tuple(
        Comparison(name, f"growth.{name}.drain", ("growth.few.drain",)) for name in ("users", "history", "large")
    )
    month = (Comparison("", "growth.month.new", ("growth.month.current",)),)
    return [
        Target("drain with many users and entries over few", "at least", 0.8, grown),
        Target("drain into a new month over the current one", "at least", 0.8, month),
    ]
