"""estimates: how well holds fit what is used."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from billing_tasks.cli.options import AsJson
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, err, print_json, table
from billing_tasks.model.validation import check_moment


def estimates(
    since: Annotated[str, typer.Option(help="Used since then: 7d ago (s, m, h, d), or 2026-11-01 (UTC).")] = "7d",
    learn: Annotated[bool, typer.Option("--learn", help="Learn the length of answers from the ledger now.")] = False,
    as_json: AsJson = False,
) -> None:
    """What was reserved against what was used, by model: holds that are too large, and those that were too small."""
    if learn:
        err.print(f"{admin().prices.learn_estimates()} models are learned.")
    rows = admin().prices.estimates(since=check_moment("--since", since, now=datetime.now(UTC)))
    if as_json:
        print_json([{**asdict(row), "percent": row.percent} for row in rows])
        return
    if not rows:
        console.print("Nothing was used with a hold in that time.")
        return
    shown = [
        (row.model or "–", row.requests, "–" if row.percent is None else f"{row.percent} %", row.under, row.not_covered,
         row.learned_tokens)
        for row in rows
    ]  # fmt: skip
    console.print(
        table(
            *("model", "requests", "held/used", "too small", "not covered", "learned"),
            rows=shown,
            right="requests held/used too small not covered learned",
        )
    )
    err.print("too small: holds below what was used, by `not covered` quota. learned: tokens that 99 % stay within.")
