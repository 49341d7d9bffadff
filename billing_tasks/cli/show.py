"""How the command line shows things: two consoles, JSON, tables, errors.

Results go to stdout, everything on the way to them to stderr, so that
`billing-tasks ... --json | jq` always works.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from billing_tasks.errors import BillingError
from billing_tasks.model.printable import printable, printable_json

if TYPE_CHECKING:
    from billing_tasks.admin.types import Page

#: Without a terminal (CI, a pipe) lines are cut for a wide page rather than for 80 columns.
WIDTH_OF_A_LOG = 140
QUOTA_PER_USD = 500_000


class _Console(Console):
    """Shows what came from outside, and lets no terminal obey it."""

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Each piece of text on its way out, whatever it is part of."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def _console(stream: IO[str], *, stderr: bool) -> Console:
    fixed = "COLUMNS" in os.environ or stream.isatty()
    return _Console(stderr=stderr, highlight=False, width=None if fixed else WIDTH_OF_A_LOG)


console = _console(sys.stdout, stderr=False)
err = _console(sys.stderr, stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout: no colour, nothing cut, keys in the order given."""
    # Not console.print_json: it would wrap long strings at the width of the terminal.
    sys.stdout.write(printable_json(json.dumps(value, indent=2, ensure_ascii=False, default=str)) + "\n")
    sys.stdout.flush()


def table(*columns: str, rows: Iterable[Sequence[object]], title: str | None = None, right: str = "") -> Table:
    """A plain table. A column whose name is in `right` (blank-separated words) is aligned to the right."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    to_the_right = right.split()
    for column in columns:
        made.add_column(column, justify="right" if column in to_the_right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in row))
    return made


def facts(pairs: Iterable[tuple[str, object]], title: str | None = None) -> Table:
    """Names and values, two columns, without a head."""
    made = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, value if isinstance(value, Text) else Text(shown(value)))
    return made


def shown(value: object) -> str:
    """A cell's text: thousands apart, None as a dash, nothing that a terminal would obey."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def usd(quota: int) -> str:
    """An amount of quota in US dollars, cut to whole cents: 500,000 quota are 1 USD."""
    if 0 < abs(quota) * 100 < QUOTA_PER_USD:
        return "<$0.01" if quota > 0 else ">-$0.01"
    dollars, cents = divmod(abs(quota) * 100 // QUOTA_PER_USD, 100)
    return f"{'-' if quota < 0 else ''}${dollars:,}.{cents:02d}"


def command() -> str:
    """How this program is called from here: by its name if the shell finds it, else by its path."""
    called = Path(sys.argv[0])
    if called.name != "billing-tasks" or shutil.which("billing-tasks") == str(called.absolute()):
        return "billing-tasks"
    here = Path.cwd()
    return str(called.relative_to(here)) if called.is_relative_to(here) else str(called)


def tell_of_next(page: Page[Any]) -> None:
    """Say how the next page is asked for; on stderr, so that --json stays one document."""
    if page.next is not None:
        err.print(Text(f"There are more: the same command with --cursor {page.next}"), soft_wrap=True)


def fail(error: BillingError) -> NoReturn:
    """Say what went wrong and what to do about it, and end the command with status 1."""
    err.print(Text(error.message, style="red"), soft_wrap=True)
    err.print(Text(error.what_to_do), soft_wrap=True)
    raise typer.Exit(1)
