"""Report: tables for people, JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Book, Series
from benchmarks.targets import Judged


def show(console: Console, book: Book, facts: Mapping[str, str], judged: Sequence[Judged]) -> None:
    """Where it was measured, every figure, and last the targets."""
    head = Table(show_header=False, box=None, title="Where and when", title_justify="left")
    for name, value in facts.items():
        head.add_row(name, value)
    console.print(head)
    for measure in dict.fromkeys(series.measure for series in book.all()):
        console.print(_figures(measure, book))
    for series in book.all():
        if series.broken:
            console.print(f"WRONG {series.key}: {'; '.join(series.broken[:3])}", style="bold red")
    console.print(_targets(judged))


def _figures(measure: str, book: Book) -> Table:
    table = Table(title=measure, title_justify="left")
    for name in ("what", "median", "lowest", "highest", "unit", "rounds", "over its pair"):
        table.add_column(name, justify="left" if name in ("what", "unit") else "right")
    for series in book.all(measure):
        if series.broken:
            table.add_row(series.side, "wrong", "", "", series.unit.name, str(len(series.values)), "")
            continue
        table.add_row(
            series.side,
            *(number(value) for value in (series.median, series.low, series.high)),
            series.unit.name,
            str(len(series.values)),
            _over_its_pair(series, book),
        )
    return table


def _over_its_pair(series: Series, book: Book) -> str:
    """Of a call: the ratio to the one write beside it, over the same connections and by redis-py's client."""
    if ".ours." not in series.key:
        return ""
    ratio = book.ratio(series.key, series.key.replace(".ours.", ".limit."))
    client = book.ratio(series.key, series.key.replace(".ours.", ".client."))
    if ratio is None or client is None:
        return ""
    return f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f}); redis-py {client.median:.2f}x"


def _targets(judged: Sequence[Judged]) -> Table:
    table = Table(title="targets", title_justify="left")
    for name in ("what", "wanted", "found", "", "of it"):
        table.add_column(name)
    for one in judged:
        target = one.target
        unit = f" {target.unit}" if target.unit != "x" else "x"
        others = ", ".join(f"{name} {number(figure)}" for name, figure in one.all_comparisons if name)
        table.add_row(
            target.what,
            f"{target.direction} {target.bound:g}{unit}",
            f"{number(one.figure)}{unit}",
            "[green]reached[/]" if one.reached else "[bold red]missed[/]",
            others,
        )
    return table


def number(value: float) -> str:
    """Three digits that mean something, thousands marked."""
    if not math.isfinite(value):
        return "none"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def as_dict(
    book: Book, facts: Mapping[str, str], judged: Sequence[Judged], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything, for --json. Figures that are not finite are null."""
    return {
        "facts": dict(facts),
        "settings": dict(settings),
        "series": [
            {
                "key": series.key,
                "side": series.side,
                "unit": series.unit.name,
                "better": series.unit.better,
                "median": series.median,
                "values": series.values,
                "broken": series.broken,
            }
            for series in book.all()
        ],
        "targets": [
            {
                "what": one.target.what,
                "direction": one.target.direction,
                "bound": one.target.bound,
                "unit": one.target.unit,
                "figure": _finite(one.figure),
                "reached": one.reached,
                "comparisons": {name: _finite(figure) for name, figure in one.all_comparisons},
            }
            for one in judged
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
