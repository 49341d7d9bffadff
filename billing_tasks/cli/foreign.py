"""foreign: messages of other applications that came into billing's queue, and what nobody could read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from billing_tasks.cli.options import AsJson, Limit
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, print_json, table

app = typer.Typer(
    help="Tasks of other applications that came into billing's queue: list them, hand them back.", no_args_is_help=True
)

Unreadable = Annotated[bool, typer.Option("--unreadable", help="Those that nobody could read, not those of others.")]


@app.command("list")
def list_(unreadable: Unreadable = False, limit: Limit = 100, as_json: AsJson = False) -> None:
    """What workers set aside, oldest first. It stays where it is."""
    found = admin().neighbours.find(unreadable=unreadable, limit=limit)
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        rows = [(one.task or "–", one.task_id or "–", one.content_type, one.body[:60]) for one in found]
        console.print(table("task", "id", "content type", "body", rows=rows))
    else:
        console.print("Nothing was set aside.")


@app.command("return")
def return_(
    queue: Annotated[str, typer.Argument(help="The queue of the application whose tasks they are.")],
    unreadable: Unreadable = False,
    limit: Limit = 1000,
    as_json: AsJson = False,
) -> None:
    """Move them to another queue, as they came."""
    moved = admin().neighbours.hand_back(queue, unreadable=unreadable, limit=min(limit, 1000))
    if as_json:
        print_json({"moved": moved})
    else:
        console.print(f"{moved} messages are in queue {queue} now.")
