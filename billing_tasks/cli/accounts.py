"""users, tokens, channels, top-up, balance: what an operator does with accounts."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
import typer

from billing_tasks.admin.types import UNSET
from billing_tasks.cli.options import AsJson, Limit, TokenId, UserId, Who, me
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import command, console, facts, print_json, table, usd
from billing_tasks.model.account import TokenRow, UserRow

users = typer.Typer(help="Create, list, enable and disable users.", no_args_is_help=True)
tokens = typer.Typer(help="Create, list and change the tokens of users.", no_args_is_help=True)
channels = typer.Typer(help="Create and list channels, the upstreams that usage goes through.", no_args_is_help=True)


UserStatus = Literal["enabled", "disabled"]
TokenStatus = Literal["enabled", "disabled", "deleted"]


def _show_users(rows: list[UserRow], as_json: bool) -> None:
    if as_json:
        print_json([msgspec.structs.asdict(row) for row in rows])
        return
    console.print(
        table(
            *("id", "group", "quota", "worth", "used", "requests", "status"),
            rows=[(r.id, r.group_name, r.quota, usd(r.quota), r.used_quota, r.request_count, r.status) for r in rows],
            right="id quota worth used requests",
        )
    )


def _show_tokens(rows: list[TokenRow], as_json: bool) -> None:
    if as_json:
        print_json([msgspec.structs.asdict(row) for row in rows])
        return
    console.print(
        table(
            *("id", "user", "name", "quota", "used", "status", "expires"),
            rows=[
                (
                    r.id,
                    r.user_id,
                    r.name,
                    "unlimited" if r.unlimited_quota else r.remain_quota,
                    r.used_quota,
                    r.status,
                    "never" if r.expires_at_ms is None else _day(r.expires_at_ms),
                )
                for r in rows
            ],
            right="id user quota used",
        )
    )


def _day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


@users.command("create")
def create_user(
    user_id: Annotated[int | None, typer.Option("--id", help="Chosen if left out.")] = None,
    quota: Annotated[int, typer.Option(min=0, help="Opening balance, in quota (500,000 = 1 USD).")] = 0,
    group: Annotated[str, typer.Option(help="Decides the group ratio.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Create a user; the opening balance is booked as an entry."""
    _show_users([admin().accounts.create_user(user_id, quota=quota, group=group)], as_json)


@users.command("list")
def list_users(
    after: Annotated[int, typer.Option(help="Only ids above this one.")] = 0, limit: Limit = 50, as_json: AsJson = False
) -> None:
    """List users by id."""
    _show_users(admin().accounts.users(after_id=after, limit=limit), as_json)


@users.command("set")
def set_user(
    user_id: UserId,
    status: Annotated[UserStatus | None, typer.Option(help="A disabled user reserves nothing.")] = None,
    group: Annotated[str | None, typer.Option(help="Decides the group ratio.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a user's status or group."""
    _show_users([admin().accounts.set_user(user_id, status=status, group=group)], as_json)


@users.command("erase")
def erase_user(
    user_id: UserId,
    comment: Annotated[str, typer.Option(help="Why: the number of the request, say. Kept.")] = "",
    actor: Who = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Empty what may name a person: remarks, own keys, token names, details. Amounts and ids stay.

    It can't be undone.
    """
    if not yes:
        typer.confirm(f"Erase the texts of user {user_id} for good?", abort=True, err=True)
    erased = admin().accounts.erase_user(user_id, actor=me(actor), comment=comment)
    if as_json:
        print_json(asdict(erased))
        return
    console.print(facts([(name.replace("_", " "), count) for name, count in asdict(erased).items()]))
    if erased.open_dead_letters:
        console.print(f"{command()} dead-letters list --user {user_id}   retry or discard these, then erase again")


@tokens.command("create")
def create_token(
    user_id: UserId,
    token_id: Annotated[int | None, typer.Option("--id", help="Chosen if left out.")] = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    quota: Annotated[int, typer.Option(min=0, help="What it may spend, in quota.")] = 0,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Limited by its user alone.")] = False,
    expires: Annotated[datetime | None, typer.Option(help="UTC. Never, if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a token of a user."""
    until = None if expires is None else expires.replace(tzinfo=UTC)
    made = admin().accounts.create_token(
        user_id, token_id, name=name, quota=quota, unlimited=unlimited, expires_at=until
    )
    _show_tokens([made], as_json)


@tokens.command("list")
def list_tokens(
    user_id: Annotated[int | None, typer.Option("--user", help="Only this user's.")] = None,
    after: Annotated[int, typer.Option(help="Only ids above this one.")] = 0,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List tokens by id."""
    _show_tokens(admin().accounts.tokens(user_id, after_id=after, limit=limit), as_json)


@tokens.command("set")
def set_token(
    token_id: TokenId,
    status: Annotated[TokenStatus | None, typer.Option(help="Only an enabled token reserves.")] = None,
    quota: Annotated[int | None, typer.Option(min=0, help="Set what it has left; the difference is booked.")] = None,
    unlimited: Annotated[bool | None, typer.Option("--unlimited/--limited", help="Limited by its user alone.")] = None,
    name: Annotated[str | None, typer.Option(help="For people.")] = None,
    expires: Annotated[datetime | None, typer.Option(help="UTC.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a token."""
    accounts = admin().accounts
    until = UNSET if expires is None else expires.replace(tzinfo=UTC)
    row = accounts.set_token(token_id, status=status, unlimited=unlimited, name=name, expires_at=until)
    if quota is not None:
        row = accounts.set_token_quota(token_id, quota, note="billing-tasks tokens set")
    _show_tokens([row], as_json)


@channels.command("create")
def create_channel(
    channel_id: Annotated[int | None, typer.Option("--id", help="Chosen if left out.")] = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a channel. Usage of channels that were never created is counted just the same."""
    row = admin().accounts.create_channel(channel_id, name=name)
    if as_json:
        print_json(asdict(row))
    else:
        console.print(facts([("channel", row.id), ("name", row.name)]))


@channels.command("list")
def list_channels(
    after: Annotated[int, typer.Option(help="Only ids above this one.")] = 0, limit: Limit = 50, as_json: AsJson = False
) -> None:
    """List channels by id, with the quota used through each."""
    rows = admin().accounts.channels(after_id=after, limit=limit)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    lines = [(row.id, row.name, row.used_quota, usd(row.used_quota)) for row in rows]
    console.print(table("id", "name", "used", "worth", rows=lines, right="id used worth"))


def top_up(
    user_id: UserId,
    quota: Annotated[int, typer.Argument(min=1, help="In quota; 500,000 = 1 USD.", show_default=False)],
    top_up_id: Annotated[str, typer.Option("--id", help="The payment's own id: the same id never counts twice.")],
    note: Annotated[str, typer.Option(help="Why; kept in the ledger.")] = "",
    as_json: AsJson = False,
) -> None:
    """Add quota to a user, once per id."""
    row, new = admin().accounts.top_up(user_id, quota, top_up_id, note=note)
    if as_json:
        print_json({"new": new, "user": msgspec.structs.asdict(row)})
        return
    console.print(
        f"Booked: user {user_id} has {row.quota:,} quota now ({usd(row.quota)})."
        if new
        else f"{top_up_id} was booked before; nothing changed. User {user_id} has {row.quota:,} quota."
    )


def balance(user_id: UserId, as_json: AsJson = False) -> None:
    """What a user has, holds and owes, as PostgreSQL and Redis see it."""
    seen = admin().accounts.balance(user_id)
    if as_json:
        print_json(asdict(seen))
        return
    console.print(
        facts(
            [
                ("quota (PostgreSQL)", f"{seen.user.quota:,}  {usd(seen.user.quota)}"),
                ("held by running requests", seen.held),
                ("used, not booked yet", seen.unposted),
                ("available (Redis)", "Redis is away" if seen.available is None else f"{seen.available:,}"),
                ("used so far", seen.user.used_quota),
                ("requests", seen.user.request_count),
                ("group, status", f"{seen.user.group_name}, {seen.user.status}"),
            ],
            title=f"User {user_id}",
        )
    )
