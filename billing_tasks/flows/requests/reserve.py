"""Reserve: set quota aside before the upstream call. One round trip when the account is cached.

The script alone holds or refuses; this story is about the account cache: load a row
that is missing, refresh one that is old before it is used or before it refuses a
request. A crash leaves at most a hold, which expires.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from billing_tasks.errors import (
    BacklogFull,
    BillingError,
    HoldNotWritten,
    IdempotencyConflict,
    InsufficientUserQuota,
    ReservationClosed,
    TokenRefused,
    Unavailable,
    UserDisabled,
    UserQuotaUnreadable,
)
from billing_tasks.flows.account_cache import load_accounts
from billing_tasks.holds.commands import Command, Commands
from billing_tasks.holds.outcomes import Extend, Reserve
from billing_tasks.holds.replies import Reserved
from billing_tasks.model.reservation import Reservation
from billing_tasks.pricing import Price
from billing_tasks.settings import Settings


@dataclass(frozen=True, slots=True)
class Wanted:
    """A reservation as it was asked for, checked. `amount` in quota."""

    request_id: str
    user_id: int
    token_id: int
    amount: int
    ttl_ms: int
    price: Price | None = None
    client_key: str = ""

    def at(self, price: Price) -> Wanted:
        """The same at another price."""
        return self if price is self.price else replace(self, price=price)

    @property
    def would(self) -> str:
        """What the script was asked for, in words."""
        return f"the request would hold {self.amount}"


#: Refusals that an older cached row may be wrong about: a top-up or an edit elsewhere must count.
_BY_THE_CACHE = frozenset(
    {
        Reserve.USER_DISABLED,
        Reserve.TOKEN_OF_ANOTHER_USER,
        Reserve.TOKEN_DISABLED,
        Reserve.TOKEN_EXPIRED,
        Reserve.INSUFFICIENT_USER_QUOTA,
        Reserve.INSUFFICIENT_TOKEN_QUOTA,
    }
)
_GRANTED = frozenset({Reserve.HELD, Reserve.ALREADY_HELD, Extend.EXTENDED})
#: Each round loads the account or gives up; more than this means that the cache loses rows as fast as they load.
_ROUNDS = 6


async def reserve(wanted: Wanted, *, commands: Commands, settings: Settings) -> Reservation:
    """The reservation, or the refusal as an error (the table in errors.py)."""

    def ask(fresh_ms: int) -> Command[Reserved]:
        return commands.reserve(
            request_id=wanted.request_id,
            user_id=wanted.user_id,
            token_id=wanted.token_id,
            amount=wanted.amount,
            ttl_ms=wanted.ttl_ms,
            backlog_limit=settings.backlog_limit,
            fresh_ms=fresh_ms,
            client_key=wanted.client_key,
            price=wanted.price.packed if wanted.price is not None else "",
        )

    return _reservation(wanted, await granted(wanted, ask, commands=commands, settings=settings), settings)


async def granted(
    wanted: Wanted, ask: Callable[[int], Command[Reserved]], *, commands: Commands, settings: Settings
) -> Reserved:
    """The script's yes, after the account was loaded if need be; its no as an error. `ask` takes fresh_ms."""
    fresh_ms = settings.fresh_seconds * 1000
    asked_again = False
    for _ in range(_ROUNDS):
        try:
            reply = await ask(fresh_ms)
        except Unavailable as exc:
            raise HoldNotWritten(exc.message, request_id=wanted.request_id) from exc
        outcome = reply.outcome
        if outcome in _GRANTED:
            return reply
        if outcome == Reserve.NOT_LOADED:
            await _load(wanted, reply, commands)
        elif outcome == Reserve.STALE:
            try:
                await _load(wanted, reply, commands, needed=False)
            except Unavailable:
                fresh_ms = 0  # PostgreSQL is away: the old row is the best there is
        elif outcome in _BY_THE_CACHE and not asked_again and reply.age_ms >= settings.refusal_fresh_seconds * 1000:
            asked_again = True
            try:
                await _load(wanted, reply, commands, needed=False)
            except Unavailable:
                raise _refusal(wanted, reply) from None
        else:
            raise _refusal(wanted, reply)
    raise UserQuotaUnreadable(
        f"User {wanted.user_id} could not be kept in the account cache long enough to reserve from it.",
        request_id=wanted.request_id,
    )


async def _load(wanted: Wanted, reply: Reserved, commands: Commands, *, needed: bool = True) -> None:
    try:
        await load_accounts(
            user_id=wanted.user_id,
            token_id=wanted.token_id,
            began_ms=reply.now_ms,
            epoch=reply.epoch,
            version=reply.version,
            commands=commands,
            needed=needed,
        )
    except Unavailable as exc:
        raise UserQuotaUnreadable(exc.message, request_id=wanted.request_id) from exc


def _reservation(wanted: Wanted, reply: Reserved, settings: Settings) -> Reservation:
    again = reply.outcome == Reserve.ALREADY_HELD
    return Reservation(
        request_id=wanted.request_id,
        user_id=wanted.user_id,
        token_id=wanted.token_id,
        held_quota=wanted.amount,
        expires_at_ms=reply.expires_at_ms,
        price=wanted.price,
        client_key=wanted.client_key,
        trusted=reply.available + wanted.amount > settings.trust_multiplier * wanted.amount,
        again=again,
    )


def _refusal(wanted: Wanted, reply: Reserved) -> BillingError:
    user, token, request_id = wanted.user_id, wanted.token_id, wanted.request_id
    match reply.outcome:
        case Reserve.INSUFFICIENT_USER_QUOTA:
            return InsufficientUserQuota(
                f"User {user} has {reply.available} quota available; {wanted.would}.",
                request_id=request_id,
            )
        case Reserve.INSUFFICIENT_TOKEN_QUOTA:
            message = f"Token {token} has {reply.available} quota available; {wanted.would}."
            return TokenRefused(message, reason="quota", request_id=request_id)
        case Reserve.USER_DISABLED:
            return UserDisabled(f"User {user} is disabled.", request_id=request_id)
        case Reserve.TOKEN_DISABLED:
            return TokenRefused(f"Token {token} is disabled.", reason="disabled", request_id=request_id)
        case Reserve.TOKEN_EXPIRED:
            return TokenRefused(f"Token {token} has expired.", reason="expired", request_id=request_id)
        case Reserve.TOKEN_OF_ANOTHER_USER:
            message = f"Token {token} does not belong to user {user}."
            return TokenRefused(message, reason="other_user", request_id=request_id)
        case Reserve.HOLD_CLOSED:
            message = f"Request {request_id} was {reply.closed_as} already."
            return ReservationClosed(message, reason=reply.closed_as, request_id=request_id)
        case Extend.NO_HOLD:
            message = f"Request {request_id} has no open hold any more; its usage is charged all the same."
            return ReservationClosed(message, reason="closed", request_id=request_id)
        case Reserve.BACKLOG_FULL:
            message = f"{reply.backlog} events wait in the outbox of user {user}'s shard; nothing new is accepted."
            return BacklogFull(message, request_id=request_id)
        case _:
            message = f"Request {request_id} came before with another user, token or amount."
            return IdempotencyConflict(message, request_id=request_id)
