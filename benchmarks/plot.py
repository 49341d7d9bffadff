"""Plot: bars as a small SVG file, readable on light and dark pages, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.figures import Book, Series, counted
from benchmarks.report import number
from benchmarks.sizes import Size

WIDTH, LABELS, BAR, GAP, HEAD = 760, 300, 16, 6, 34
OURS, THEIRS, LIMIT = "#2a7de1", "#b07d2b", "#8a8f98"


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars of one unit, the longest as wide as there is room."""

    title: str
    bars: tuple[tuple[str, str, str], ...]  # label, color, key


def charts(size: Size) -> list[Chart]:
    """What the documentation shows; bars whose figure was not measured are left out."""
    references = [(f"reference SQL, {counted(n, 'client')}", THEIRS, f"reference{n}") for n in size.clients]
    plain = [(f"plain Celery, {counted(n, 'process')}", THEIRS, f"plain{n}") for n in (1, 2)]
    calls = [
        ("one write to Redis (limit)", LIMIT, "reserve.always.sync1.limit.p50"),
        ("reserve", OURS, "reserve.always.sync1.ours.p50"),
        ("consume", OURS, "consume.always.sync1.ours.p50"),
        ("reference SQL, reserve", THEIRS, "reserve.reference1.p50"),
    ]
    drains = [
        *((label, color, f"drain.{key}") for label, color, key in [*references, *plain]),
        ("one worker", OURS, "drain.worker1"),
        ("worker with two processes", OURS, "drain.worker2"),
        ("batched SQL alone (limit)", LIMIT, "drain.raw"),
    ]
    cycles = [
        *((label, color, f"cycle.{key}") for label, color, key in [*references, *plain]),
        ("one gateway, one worker", OURS, "cycle.ours1.always"),
        ("two gateways, one worker", OURS, "cycle.ours2.always"),
    ]
    return [
        Chart("A call, median in ms (append-only file synced always, one caller)", tuple(calls)),
        Chart("Settlements per second, draining a backlog", tuple(drains)),
        Chart("Whole requests per second, reserve to settled", tuple(cycles)),
    ]


def draw(book: Book, plotted: Sequence[Chart]) -> str:
    """The SVG file."""
    parts: list[str] = []
    top = 8
    for chart in plotted:
        bars = [(label, color, series) for label, color, key in chart.bars if (series := book.get(key)) is not None]
        if not bars:
            continue
        parts.append(f'<text x="8" y="{top + 16}" class="title">{escape(chart.title)}</text>')
        top += HEAD - 8
        longest = max((series.median for *_, series in bars), default=0) or 1
        for label, color, series in bars:
            parts += _bar(label, color, series, longest, top)
            top += BAR + GAP
        top += 14
    style = (
        "text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:13px}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
        f' role="img"><style>{style}</style>{"".join(parts)}</svg>\n'
    )


def _bar(label: str, color: str, series: Series, longest: float, top: int) -> list[str]:
    room = WIDTH - LABELS - 90
    width = max(1.0, series.median / longest * room)
    text = top + BAR - 4
    value = number(series.median) if series.counts else "wrong"
    return [
        f'<text x="{LABELS - 8}" y="{text}" text-anchor="end">{escape(label)}</text>',
        f'<rect x="{LABELS}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2" fill="{color}"/>',
        f'<text x="{LABELS + width + 6:.1f}" y="{text}">{value}</text>',
    ]
