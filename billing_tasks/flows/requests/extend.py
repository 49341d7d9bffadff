"""Extend: let a hold grow while its stream runs. A crash leaves the hold as it was, or as it was asked to be.

The total is set, so a call that is repeated changes nothing. What is refused leaves the hold as it was: who owns the
stream decides whether it goes on, and its usage is charged in any case.
"""

from __future__ import annotations

from dataclasses import replace

from billing_tasks.flows.requests.reserve import Wanted, granted
from billing_tasks.holds.commands import Command, Commands
from billing_tasks.holds.replies import Reserved
from billing_tasks.model.reservation import Reservation
from billing_tasks.settings import Settings


class _Grown(Wanted):
    """A hold as it is to be. `amount`: altogether."""

    @property
    def would(self) -> str:
        return f"the request would hold {self.amount} altogether"


async def extend(
    reservation: Reservation, total: int, *, ttl_ms: int, commands: Commands, settings: Settings
) -> Reservation:
    """The reservation with `total` quota set aside, kept for another ttl. Raises what reserve raises, and
    ReservationClosed."""
    wanted = _Grown(reservation.request_id, reservation.user_id, reservation.token_id, total, ttl_ms)

    def ask(fresh_ms: int) -> Command[Reserved]:
        return commands.extend(
            request_id=wanted.request_id,
            user_id=wanted.user_id,
            token_id=wanted.token_id,
            total=total,
            ttl_ms=ttl_ms,
            fresh_ms=fresh_ms,
        )

    reply = await granted(wanted, ask, commands=commands, settings=settings)
    return replace(reservation, held_quota=total, expires_at_ms=reply.expires_at_ms)
