"""reprice: charges priced once more, for the day on which a wrong price is found."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from billing_tasks.cli.options import AsJson, Who, me
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, err, print_json, table
from billing_tasks.errors import InvalidRequest
from billing_tasks.model.validation import check_moment


def reprice(
    since: Annotated[str, typer.Option(help="Used since then: 2d ago (s, m, h, d), or 2026-11-01 (UTC).")],
    before: Annotated[str | None, typer.Option(help="Used before then; as --since.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Only of this model; may be given several times.")
    ] = None,
    user_id: Annotated[int | None, typer.Option("--user", help="Only this user's.")] = None,
    with_factors: Annotated[
        bool, typer.Option("--with-factors", help="Groups and discounts of now, too, not those of the charge.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; book nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Book without asking.")] = False,
    comment: Annotated[str, typer.Option(help="Why; kept with each correction.")] = "",
    actor: Who = None,
    as_json: AsJson = False,
) -> None:
    """Price charges anew by the prices of now, and book the differences as corrections. Once per charge and list."""
    from billing_tasks.admin.reprice import RepricedSum

    if not dry_run and not comment:
        raise InvalidRequest("--comment must say why charges are priced anew; --dry-run shows what would change.")
    if not (dry_run or yes or as_json):
        typer.confirm("Book corrections? --dry-run shows them first.", abort=True, err=True)
    now = datetime.now(UTC)
    found = admin().prices.reprice(
        since=check_moment("--since", since, now=now),
        before=None if before is None else check_moment("--before", before, now=now),
        models=models or (),
        user_id=user_id,
        actor=me(actor),
        comment=comment,
        with_factors=with_factors,
        dry_run=dry_run,
    )
    sums: dict[str, RepricedSum] = {}
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task("0 charges")
        for number, one in enumerate(found, 1):
            sums.setdefault(one.model, RepricedSum(one.model)).count(one)
            if number % 100 == 0:
                bar.update(task, description=f"{number:,} charges")
    rows = sorted(sums.values(), key=lambda row: -(row.more + row.less))
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    if not rows:
        console.print("Nothing was charged in that time.")
        return
    shown = [(row.model or "–", row.charges, row.changed, row.more, row.less, row.skipped) for row in rows]
    console.print(
        table(
            *("model", "charges", "corrected", "more", "less", "skipped"),
            rows=shown,
            right="charges corrected more less skipped",
        )
    )
    for row in rows:
        for why, count in row.reasons.items():
            console.print(f"{row.model}: {count:,} {why}", soft_wrap=True)
    if dry_run:
        err.print("Nothing is booked. more, less: quota that would be charged, given back.")
