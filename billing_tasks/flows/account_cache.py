"""The account cache: rows from PostgreSQL into Redis. Shared by every flow that needs or changes one.

A row that can't be cached is no harm: the next reservation loads it.
"""

from __future__ import annotations

from collections.abc import Iterable

from billing_tasks.errors import TokenRefused, Unavailable, UserNotFound
from billing_tasks.flows.effects import InLedger
from billing_tasks.holds.commands import Commands, together
from billing_tasks.holds.replies import Available
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.account import TokenRow, UserRow


async def load_accounts(*, user_id: int, token_id: int, began_ms: int, epoch: str, commands: Commands) -> None:
    """Read user and token from PostgreSQL and cache them in Redis.

    `began_ms` and `epoch` are Redis's, from before the reading. Raises UserNotFound,
    TokenRefused (unknown, other_user) or Unavailable.
    """
    user, token = await InLedger(Ledger.accounts, user_id, token_id)
    if user is None:
        raise UserNotFound(f"There is no user {user_id}.")
    if token is None:
        raise TokenRefused(f"There is no token {token_id}.", reason="unknown")
    if token.user_id != user_id:
        # Its cached row would lie in the wrong shard, where no settlement refreshes it.
        raise TokenRefused(f"Token {token_id} does not belong to user {user_id}.", reason="other_user")
    await together(
        [
            commands.load_user(user, began_ms=began_ms, epoch=epoch),
            commands.load_token(token, began_ms=began_ms, epoch=epoch),
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
