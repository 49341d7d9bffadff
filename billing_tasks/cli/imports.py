"""import: usage from a file, into the ledger."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.progress import wrap_file

from billing_tasks.cli.options import AsJson
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, err, print_json, table
from billing_tasks.errors import InvalidRequest

app = typer.Typer(help="Take in usage that was logged elsewhere, once per request_id.", no_args_is_help=True)

#: Refused lines that the table shows; the file has all.
_SHOWN = 20


@app.callback()
def group() -> None:
    """Take in usage that was logged elsewhere, once per request_id."""


@app.command("usage")
def usage(
    file: Annotated[Path, typer.Argument(help="One JSON object of ConsumeLog's fields per line; - is stdin.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would become of each line.")] = False,
    refused: Annotated[
        Path | None, typer.Option(help="Where lines go that can't be booked. Default: FILE.refused.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Book usage from a file. A line that was booked before changes nothing, so the file may be given again.

    Exit 1 if a line was refused: it is in FILE.refused then, as it came.
    """
    from_stdin = str(file) == "-"
    if not from_stdin and not file.is_file():
        raise InvalidRequest(f"There is no file {file}.")
    into = refused if refused is not None else None if from_stdin else file.with_name(file.name + ".refused")
    counts: Counter[str] = Counter()
    lines: list[bytes] = []
    told: list[dict[str, object]] = []
    with sys.stdin.buffer if from_stdin else file.open("rb") as source:
        kept = _Kept(_with_progress(source, 0 if from_stdin else file.stat().st_size))
        for answer in admin().imports.usage(kept, dry_run=dry_run):
            counts[answer.outcome] += 1
            line = kept.take(answer.number)
            if answer.refused:
                lines.append(line)
                told.append(asdict(answer))
    if lines and into is not None and not dry_run:
        into.write_bytes(b"".join(line.rstrip(b"\r\n") + b"\n" for line in lines))
    else:
        into = None
    if as_json:
        print_json({"lines": dict(counts), "refused": told, "refused_file": into and str(into), "dry_run": dry_run})
    else:
        _show(counts, told, into, dry_run=dry_run)
    if lines:
        raise typer.Exit(1)


class _Kept:
    """Lines on their way, kept until their answer is there."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._lines: dict[int, bytes] = {}

    def __iter__(self) -> Iterator[bytes]:
        for number, line in enumerate(self._source, 1):
            if line.strip():
                self._lines[number] = line
            yield line

    def take(self, number: int) -> bytes:
        return self._lines.pop(number)


def _with_progress(source: BinaryIO, size: int) -> BinaryIO:
    """A bar by bytes, on a terminal, for what takes a while."""
    if not err.is_terminal or size < 100_000:
        return source
    return wrap_file(source, size, description="Importing", console=err, transient=True).__enter__()


_WORDS = {"posted": ("booked", "would be booked"), "duplicate": ("had been booked before",) * 2}


def _show(counts: Counter[str], told: list[dict[str, object]], into: Path | None, *, dry_run: bool) -> None:
    for outcome, count in counts.most_common():
        words = _WORDS.get(outcome, (f"refused: {outcome}",) * 2)
        console.print(f"{count:>9,} {words[dry_run]}")
    if not counts:
        console.print("The file has no lines.")
    if told:
        rows = [(one["number"], one["outcome"], one["message"]) for one in told[:_SHOWN]]
        console.print(table("line", "outcome", "why", rows=rows, right="line"))
        if len(told) > _SHOWN:
            console.print(f"... and {len(told) - _SHOWN:,} more")
    if into is not None:
        console.print(f"Refused lines are in {into}. Correct them and import that file.", soft_wrap=True)
