"""usage: what was used, summed up."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Annotated

import typer

from billing_tasks.admin.types import USAGE_BY, UsageRow
from billing_tasks.cli.options import AsJson
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, err, print_json, table, usd
from billing_tasks.errors import InvalidRequest
from billing_tasks.model.validation import check_moment


def usage(
    by: Annotated[str, typer.Option(help=f"What it is summed up by: {', '.join(USAGE_BY)}.")] = "model",
    since: Annotated[
        str | None, typer.Option(help="Used since then: 30d ago (s, m, h, d), or 2026-11-01 (UTC).")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Used before then; as --since.")] = None,
    user_id: Annotated[int | None, typer.Option("--user", help="Only this user's.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="The first rows only.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated, with a head, for spreadsheets.")] = False,
    as_json: AsJson = False,
) -> None:
    """What was used and given back, by model, user, token, channel or day (UTC).

    By the time of use, whenever it was booked. Without --since and --before: all there is.
    """
    if as_csv and as_json:
        raise InvalidRequest("--csv or --json, not both.")
    now = datetime.now(UTC)
    rows = admin().entries.usage(
        by,  # type: ignore[arg-type] # it is checked there
        since=None if since is None else check_moment("--since", since, now=now),
        before=None if before is None else check_moment("--before", before, now=now),
        user_id=user_id,
        limit=limit,
    )
    if as_json:
        print_json([{by: row.key, **_figures(row)} for row in rows])
    elif as_csv:
        _write_csv(by, rows)
    else:
        _show(by, rows)


def _figures(row: UsageRow) -> dict[str, int | None]:
    figures = {name: value for name, value in asdict(row).items() if name != "key"}
    later = {name: figures.pop(name) for name in ("corrected", "cost", "costed")}
    return {**figures, "net": row.net, **later, "margin": row.margin}


def _write_csv(by: str, rows: Sequence[UsageRow]) -> None:
    names = list(_figures(UsageRow("", *([0] * (len(fields(UsageRow)) - 1)))))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([by, *names])
    writer.writerows([_cell(row.key), *("" if one is None else one for one in _figures(row).values())] for row in rows)


def _cell(key: str) -> str:
    """A name that a spreadsheet would take for a formula is marked as text."""
    return f"'{key}" if key.startswith(("=", "+", "-", "@", "\t", "\r")) else key


def _show(by: str, rows: Sequence[UsageRow]) -> None:
    total = UsageRow("in all", *(sum(getattr(row, field.name) for row in rows) for field in fields(UsageRow)[1:]))
    # Columns that have nothing to say are left out, so that the rest fits into 80 columns.
    corrected, costed = any(row.corrected for row in rows), any(row.costed for row in rows)
    tokens = not (corrected or costed)
    head = [by, "requests", *["prompt", "completion"] * tokens, "charged", "refunded"]
    head += ["corrected"] * corrected + ["net"] + ["margin"] * costed

    def cells(row: UsageRow) -> list[object]:
        used = [row.prompt_tokens, row.completion_tokens] * tokens
        first: list[object] = [row.key or "–", row.requests, *used, row.charged]
        more: list[object] = [row.refunded, *[row.corrected] * corrected, usd(row.net)]
        return [*first, *more, *[None if row.margin is None else usd(row.margin)] * costed]

    console.print(table(*head, rows=[cells(row) for row in (*rows, total)], right=" ".join(head[1:])))
    if not rows:
        err.print("Nothing was used in that time.")
