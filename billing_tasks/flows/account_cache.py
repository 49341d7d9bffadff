"""The account cache: rows from PostgreSQL into Redis. Shared by every flow that needs or changes one.

A row that can't be cached is no harm: the next reservation loads it.
"""

from __future__ import annotations

from collections.abc import Iterable

from billing_tasks.errors import TokenRefused, Unavailable, UserNotFound
from billing_tasks.flows.effects import InLedger
from billing_tasks.holds.commands import Command, Commands, together
from billing_tasks.holds.outcomes import Load
from billing_tasks.holds.replies import Available
from billing_tasks.ledger.outboxes import SeenBooked
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.posting import ServerRun


async def load_accounts(
    *, user_id: int, token_id: int, began_ms: int, epoch: str, version: int, commands: Commands, needed: bool = True
) -> None:
    """Read user and token from PostgreSQL and cache them in Redis.

    `began_ms`, `epoch` and `version` are Redis's, from before the reading. Not `needed`: what is cached will do if
    PostgreSQL is away. Raises UserNotFound, TokenRefused (unknown, other_user) or Unavailable.
    """
    read = InLedger(Ledger.accounts, user_id, token_id)
    read.needed = needed
    user, token, server = await read
    if user is None:
        raise UserNotFound(f"There is no user {user_id}.")
    if token is None:
        raise TokenRefused(f"There is no token {token_id}.", reason="unknown")
    if token.user_id != user_id:
        # Its cached row would lie in the wrong shard, where no settlement refreshes it.
        raise TokenRefused(f"Token {token_id} does not belong to user {user_id}.", reason="other_user")
    loads = [
        commands.load_user(user, began_ms=began_ms, epoch=epoch, server=server),
        commands.load_token(token, began_ms=began_ms, epoch=epoch, server=server),
    ]
    await _load(loads, server, version, commands)


async def load_user(user_id: int, seen: Available, commands: Commands) -> UserRow:
    """The same for a user alone; `seen` is from before the reading. Raises UserNotFound or Unavailable."""
    read = InLedger(Ledger.accounts, user_id, None)
    read.needed = True
    user, _, server = await read
    if user is None:
        raise UserNotFound(f"There is no user {user_id}.")
    loads = [commands.load_user(user, began_ms=seen.now_ms, epoch=seen.epoch, server=server)]
    await _load(loads, server, seen.version, commands)
    return user


async def _load(loads: list[Command[Load]], server: ServerRun, version: int, commands: Commands) -> None:
    """If PostgreSQL is not as it was, nothing is cached; the next look finds the account not loaded and comes again."""
    if server.last_version < version or Load.OTHER_LEDGER in await together(loads):
        await meet_server(server, commands)


async def meet_server(server: ServerRun, commands: Commands) -> None:
    """PostgreSQL is another run than the one known to Redis, or its accounts lie behind: it was restarted, failed over
    or restored. Have it say what it lacks of what Redis saw booked, and have every account loaded again.

    PostgreSQL first: if this is interrupted, the next one that notices comes here again.
    """
    shards = range(commands.keys.shards)
    states = await together([commands.epoch(shard) for shard in shards])
    looks = [
        SeenBooked(shard, state.epoch, state.settled, state.version)
        for shard, state in zip(shards, states, strict=True)
        if state.epoch
    ]
    behind = bool(looks) and await InLedger(Ledger.meet_redis, looks)
    await together(
        [
            commands.new_ledger(shard, ledger=server.name, behind=state.version if behind else None)
            for shard, state in zip(shards, states, strict=True)
            if behind or state.ledger != server.name
        ]
    )


async def clock_of(user_id: int, commands: Commands) -> Available | None:
    """Redis's time and epoch, to be asked for before PostgreSQL is; None if Redis is away."""
    try:
        return await commands.balance(user_id=user_id)
    except Unavailable:
        return None


async def push_accounts(
    clock: Available | None, *, users: Iterable[UserRow], tokens: Iterable[TokenRow], commands: Commands
) -> None:
    """Put rows that PostgreSQL just returned into Redis. Nothing is lost if Redis is away."""
    if clock is None:
        return
    loads = [commands.load_user(row, began_ms=clock.now_ms, epoch=clock.epoch) for row in users]
    loads += [commands.load_token(row, began_ms=clock.now_ms, epoch=clock.epoch) for row in tokens]
    try:
        await together(loads)
    except Unavailable:
        return
