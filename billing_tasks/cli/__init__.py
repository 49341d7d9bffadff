"""The command line `billing-tasks`. One file per group of commands; show.py is how they look."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from billing_tasks import __version__
from billing_tasks.cli.commands import Commands
from billing_tasks.errors import BillingError

app = typer.Typer(
    name="billing-tasks",
    cls=Commands,
    help="Billing backend for LLM gateways: reserve quota in Redis, settle with Celery into PostgreSQL.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"billing-tasks {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Billing backend for LLM gateways: reserve quota in Redis, settle with Celery into PostgreSQL."""


def main() -> None:
    """Run the command line; an error of ours is a sentence, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except BillingError as exc:
        from billing_tasks.cli.show import fail

        try:
            fail(exc)
        except typer.Exit as leave:
            raise SystemExit(leave.exit_code) from None
