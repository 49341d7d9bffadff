"""Which commands there are, in the order and the panels of `--help`.

A command's module is loaded when the command is asked for; what `--help` needs of it is here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group


class Listed(NamedTuple):
    """Where a command is, and how it is listed."""

    panel: str
    home: str  # module:name of a function, or of a Typer with commands of its own
    line: str  # the first paragraph of the command's own help; a test compares


COMMANDS: Final = {
    "demo": Listed(
        "Try", "demo:demo", "Run everything on this machine, send traffic through it, check every guarantee."
    ),
    "up": Listed("Try", "up:up", "Run PostgreSQL, Valkey, a worker, beat and Flower on this machine until Ctrl-C."),
    "outage": Listed(
        "Try",
        "outage:app",
        "Stop a server or process of `up`, and start it again: to see what an outage looks like.",
    ),
    "replay": Listed(
        "Try", "replay:replay", "Replay a trace of LLM requests as gateway traffic and check how each request ended."
    ),
    "status": Listed(
        "Operate",
        "operate:status",
        "Backlog and its age, open holds, dead letters, workers. Exit 1 if a server is away.",
    ),
    "verify": Listed(
        "Operate",
        "operate:verify",
        "Check the guarantees over Redis and PostgreSQL. Exit 1 and a table of what is off, if anything is.",
    ),
    "reconcile": Listed(
        "Operate",
        "operate:reconcile",
        "Compare Redis with PostgreSQL and the ledger with its sums; repair what is safe, which is Redis.",
    ),
    "incidents": Listed(
        "Operate",
        "incidents:incidents",
        "Signs that events of an outbox were lost or came back, newest first; those of one cause are one line.",
    ),
    "metrics": Listed(
        "Operate",
        "metrics:metrics",
        "Backlog, holds, dead letters, incidents as Prometheus metrics: printed once, or served with --port.",
    ),
    "spool": Listed(
        "Operate",
        "spool:spool",
        "Events in BILLING_SPOOL_FOLDER of this machine, and --relay to hand them over now. Exit 1 if some are left.",
    ),
    "migrate": Listed(
        "Operate",
        "operate:migrate",
        "Bring the database to this version's schema. Safe to repeat, safe to run from several machines.",
    ),
    "dead-letters": Listed(
        "Operate", "dead_letters:app", "What could not be booked: list, show, retry, discard, reopen."
    ),
    "foreign": Listed(
        "Operate",
        "foreign:app",
        "Tasks of other applications that came into billing's queue: list them, hand them back.",
    ),
    "top-up": Listed("Accounts", "accounts:top_up", "Add quota to a user, once per id."),
    "refund": Listed(
        "Accounts",
        "refund:refund",
        "Give a charge back, whole or in part, once per --id. It is booked with the next settlement.",
    ),
    "balance": Listed(
        "Accounts", "accounts:balance", "What a user has, holds and owes, as PostgreSQL and Redis see it."
    ),
    "log": Listed(
        "Accounts",
        "log:log",
        "The ledger's entries, newest first: consumes, releases, refunds, top-ups, adjustments.",
    ),
    "usage": Listed(
        "Accounts",
        "usage:usage",
        "What was used and given back, by model, user, token, channel or day (UTC).",
    ),
    "import": Listed("Accounts", "imports:app", "Take in usage that was logged elsewhere, once per request_id."),
    "price": Listed(
        "Prices",
        "prices:price",
        "What a text request costs, by catalogue and ratios file. Needs no server; `prices show` asks PostgreSQL, too.",
    ),
    "prices": Listed("Prices", "prices:app", "Prices: list, show, set, history, diff, import, check."),
    "explain": Listed(
        "Prices",
        "explain:explain",
        "What a request was charged, meter by meter, at the prices of its time. Exit 1 if they come to another amount.",
    ),
    "estimates": Listed(
        "Prices",
        "estimates:estimates",
        "What was reserved against what was used, by model: holds that are too large, and those that were too small.",
    ),
    "reprice": Listed(
        "Prices",
        "reprice:reprice",
        "Price charges anew by the prices of now, and book the differences as corrections. Once per charge and list.",
    ),
    "users": Listed("Accounts", "accounts:users", "Create, list, enable and disable users."),
    "tokens": Listed("Accounts", "accounts:tokens", "Create, list and change the tokens of users."),
    "channels": Listed(
        "Accounts", "accounts:channels", "Create and list channels, the upstreams that usage goes through."
    ),
}


class Commands(TyperGroup):
    """Lists the commands as they are declared, and loads the one that is asked for."""

    def __init__(self, **options: Any) -> None:
        listed = {name: TyperCommand(name, help=c.line, rich_help_panel=c.panel) for name, c in COMMANDS.items()}
        super().__init__(**{**options, "commands": listed})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The command itself, its module loaded; None if there is none of this name."""
        return _load(cmd_name, COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """That of a group which knows no more of its commands than is declared."""
        listing = TyperGroup(
            name=self.name,
            commands=dict(self.commands),
            params=self.params,
            help=self.help,
            rich_markup_mode=self.rich_markup_mode,
        )
        listing.format_help(ctx, formatter)


def _load(name: str, listed: Listed) -> Any:
    module, attribute = listed.home.split(":")
    found = getattr(import_module(f"billing_tasks.cli.{module}"), attribute)
    shelf = typer.Typer()
    if isinstance(found, typer.Typer):
        shelf.add_typer(found, name=name, rich_help_panel=listed.panel)
    else:
        shelf.command(name, rich_help_panel=listed.panel)(found)
    return get_group(shelf).commands[name]
