"""explain: a charge as arithmetic."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from billing_tasks.cli.options import AsJson
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, print_json, table, usd

if TYPE_CHECKING:
    from billing_tasks.admin.explain import Explanation


def explain(
    request_id: Annotated[str, typer.Argument(help="Of the charge.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """What a request was charged, meter by meter, at the prices of its time. Exit 1 if they come to another amount."""
    found = admin().explain(request_id)
    if as_json:
        print_json(asdict(found))
    else:
        _show(found)
    if not found.agrees:
        raise typer.Exit(1)


def _show(found: Explanation) -> None:
    console.print(f"Request {found.request_id}: user {found.user_id}, {found.model}", soft_wrap=True)
    if found.lines:
        rows = [(line.meter, line.count, f"{line.price} / {line.per}", line.quota) for line in found.lines]
        rows.append(("in all", "", "", found.total))
        console.print(table("meter", "count", "USD / units", "quota", rows=rows, right="count quota"))
    for factor in dict.fromkeys(factor for line in found.lines for factor in line.factors):
        meters = [line.meter for line in found.lines if factor in line.factors]
        of = "" if len(meters) == len(found.lines) else f" on {', '.join(meters)}"
        console.print(f"  times {factor}{of}, which is in the quota above")
    for said in _conditions(found):
        console.print(f"  {said}")
    computed = "" if found.computed in (None, found.charged) else f"; the prices come to {found.computed:,}"
    console.print(Text(f"charged {found.charged:,} quota ({usd(found.charged)}), rounded up once{computed}", "bold"))
    held = f"{found.held:,} quota were held" if found.held else "no hold was open"
    short = f", {found.charged - found.held:,} too few" if 0 < found.held < found.charged else ""
    console.print(f"{held} for it{short}")
    if found.corrected:
        console.print(f"corrected by {found.corrected:+,} quota since")
    if found.refunded:
        console.print(f"refunded {found.refunded:,} quota of it")
    if found.note:
        console.print(found.note, soft_wrap=True)


def _conditions(found: Explanation) -> list[str]:
    said = [] if found.price_version is None else [f"price list {found.price_version}: {found.source}"]
    if found.tier is not None:
        said.append(f"the prompt is longer than {found.tier:,} tokens")
    said += [f"because {variant}" for variant in found.variants]
    return said
