"""Options and arguments that several commands take."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]
UserId = Annotated[int, typer.Argument(help="The user's id.", show_default=False)]
TokenId = Annotated[int, typer.Argument(help="The token's id.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many rows at most.")]
Cursor = Annotated[str | None, typer.Option(help="The page that begins there; the page before names it.")]
Who = Annotated[str | None, typer.Option(help="Who decides; kept with it. Default: the user logged in.")]


def me(actor: str | None) -> str:
    """Who decides: as --actor says, else the user logged in."""
    try:
        return actor or getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "command line"
