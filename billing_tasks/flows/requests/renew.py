"""Renew: keep a hold open while a long stream runs. A crash leaves the hold to expire at its last time."""

from __future__ import annotations

from billing_tasks.errors import ReservationClosed
from billing_tasks.holds.commands import Commands
from billing_tasks.holds.outcomes import Renew
from billing_tasks.model.reservation import Reservation


async def renew(reservation: Reservation, *, ttl_ms: int, commands: Commands) -> int:
    """When the hold expires now, in ms of Redis's clock. Raises ReservationClosed, Unavailable."""
    outcome, expires_at_ms = await commands.renew(
        user_id=reservation.user_id, request_id=reservation.request_id, ttl_ms=ttl_ms
    )
    if outcome is Renew.RENEWED:
        return expires_at_ms
    message = f"Request {reservation.request_id} has no open hold any more; its usage is charged all the same."
    raise ReservationClosed(message, reason="closed", request_id=reservation.request_id)
