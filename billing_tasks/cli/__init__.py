"""The command line `billing-tasks`. One file per group of commands; show.py is how they look."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from billing_tasks import __version__
from billing_tasks.cli import accounts, dead_letters, operate, prices
from billing_tasks.cli.demo import demo as demo_command
from billing_tasks.cli.metrics import metrics as metrics_command
from billing_tasks.cli.refund import refund as refund_command
from billing_tasks.cli.replay import replay as replay_command
from billing_tasks.cli.show import fail
from billing_tasks.cli.spool import spool as spool_command
from billing_tasks.cli.up import up as up_command
from billing_tasks.errors import BillingError

app = typer.Typer(
    name="billing-tasks",
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


app.command(rich_help_panel="Try")(demo_command)
app.command(rich_help_panel="Try")(up_command)
app.command(rich_help_panel="Try")(replay_command)
app.command(rich_help_panel="Operate")(operate.status)
app.command(rich_help_panel="Operate")(operate.verify)
app.command(rich_help_panel="Operate")(operate.reconcile)
app.command(rich_help_panel="Operate")(metrics_command)
app.command(rich_help_panel="Operate")(spool_command)
app.command(rich_help_panel="Operate")(operate.migrate)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel="Operate")
app.add_typer(accounts.users, name="users", rich_help_panel="Accounts")
app.add_typer(accounts.tokens, name="tokens", rich_help_panel="Accounts")
app.add_typer(accounts.channels, name="channels", rich_help_panel="Accounts")
app.command("top-up", rich_help_panel="Accounts")(accounts.top_up)
app.command(rich_help_panel="Accounts")(refund_command)
app.command(rich_help_panel="Accounts")(accounts.balance)
app.command(rich_help_panel="Accounts")(operate.log)
app.command(rich_help_panel="Accounts")(prices.price)


def main() -> None:
    """Run the command line; an error of ours is a sentence, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except BillingError as exc:
        try:
            fail(exc)
        except typer.Exit as leave:
            raise SystemExit(leave.exit_code) from None
