"""The command line: `python -m benchmarks --help`, `make bench`."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.machine import describe
from benchmarks.measures import MEASURES
from benchmarks.plot import charts, draw
from benchmarks.report import as_dict, show
from benchmarks.run import run
from benchmarks.session import Session
from benchmarks.sizes import SIZES, Size
from benchmarks.targets import all_targets, judge
from billing_tasks.lab.servers import Servers, embedded_servers


def main(
    only: Annotated[str, typer.Option(help=f"measures, by comma: {', '.join(MEASURES)}")] = "",
    skip: Annotated[str, typer.Option(help="measures to leave out, by comma")] = "",
    size: Annotated[str, typer.Option(help=", ".join(SIZES))] = "full",
    quick: Annotated[bool, typer.Option("--quick", help="the same as --size quick")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="instead of the size's")] = None,
    users: Annotated[int | None, typer.Option(min=40, help="instead of the size's")] = None,
    events: Annotated[int | None, typer.Option(min=100, help="of a backlog, instead of the size's")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures there")] = None,
    svg_file: Annotated[Path | None, typer.Option("--svg", help="write the plot there")] = None,
) -> None:
    """Measure the product beside what people would use instead, on servers that are started for it."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    names = selected(only, skip)
    if size not in SIZES:
        raise typer.BadParameter(f"there is no size {size}; there are {', '.join(SIZES)}")
    given: dict[str, Any] = {"rounds": rounds, "users": users, "events": events}
    how = dataclasses.replace(
        SIZES["quick" if quick else size], **{name: value for name, value in given.items() if value is not None}
    )
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: gigabytes would be left behind
    with embedded_servers() as servers:
        right = measure(console, servers, how, names, json_file, svg_file, began)
    raise typer.Exit(0 if right else 1)


def selected(only: str, skip: str) -> list[str]:
    """Names of measures in the order in which they run. Raises BadParameter."""
    wanted, left_out = ([name for name in words.split(",") if name] for words in (only, skip))
    unknown = [name for name in [*wanted, *left_out] if name not in MEASURES]
    if unknown:
        raise typer.BadParameter(f"there is no measure {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    return [name for name in MEASURES if (not wanted or name in wanted) and name not in left_out]


def measure(
    console: Console,
    servers: Servers,
    size: Size,
    names: list[str],
    json_file: Path | None,
    svg_file: Path | None,
    began: float,
) -> bool:
    """Run, write the files, and print the tables, the targets last. False if a figure does not count."""
    with Session(servers, size).environment("bench") as environment:
        facts = describe(environment)
    facts["command"] = " ".join(("python -m benchmarks", *sys.argv[1:]))
    session = Session(servers, size, tell=lambda sentence: Console(stderr=True).print(sentence, style="dim"))
    failed = run(session, names)
    facts["took"] = f"{time.monotonic() - began:.0f} s, {size.rounds} rounds"
    judged = judge(all_targets(size), session.book)
    if json_file:
        figures = as_dict(session.book, facts, judged, dataclasses.asdict(size))
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if svg_file:
        svg_file.write_text(draw(session.book, charts(size)), encoding="utf-8")
    show(console, session.book, facts, judged)
    return not failed and not any(series.broken for series in session.book.all())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
