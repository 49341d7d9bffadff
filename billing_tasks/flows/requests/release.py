"""Release: a hold ends unused and its quota is available again. Refunds before the charge and expiry file it."""

from __future__ import annotations

from billing_tasks.errors import HoldNotWritten, IdempotencyConflict, ReservationClosed, Unavailable
from billing_tasks.flows.effects import Ring
from billing_tasks.holds.commands import Commands
from billing_tasks.holds.outcomes import Release
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.fingerprint import fingerprint
from billing_tasks.model.refund import RefundRequest
from billing_tasks.model.reservation import Receipt


async def release_hold(
    request: RefundRequest, *, token_id: int | None, held: int, commands: Commands, client_key: str = ""
) -> Receipt:
    """Give an open hold back. Raises ReservationClosed if the request was charged, Unavailable if Redis is away.

    Without `token_id` the hold is looked up first, which costs a second round trip.
    """
    user_id, request_id = request.user_id, request.request_id
    try:
        if token_id is None:
            found = await commands.hold(user_id=user_id, request_id=request_id)
            if found is None:
                return Receipt(request_id, 0, again=True)
            token_id, held, client_key = found.token_id, found.quota, found.client_key
        event = release_event(
            request_id, user_id, token_id, held, reason=request.reason, expired=False, client_key=client_key
        )
        payload = events.payload(event, for_0_1_0=commands.keys.shared_with_0_1_0)
        reply = await commands.release(request_id=request_id, user_id=user_id, token_id=token_id, payload=payload)
    except Unavailable as exc:
        raise HoldNotWritten(f"{exc.message} The hold expires by itself.", request_id=request_id) from exc
    if reply.ring:
        await Ring(commands.keys.shard_of(user_id), request_id)
    match reply.outcome:
        case Release.RELEASED:
            return Receipt(request_id, reply.held)
        case Release.ALREADY_CONSUMED:
            message = f"Request {request_id} was charged; refund_charge gives a charge back."
            raise ReservationClosed(message, reason="consumed", request_id=request_id)
        case Release.IDEMPOTENCY_CONFLICT:
            message = f"The hold of request {request_id} is another user's or token's."
            raise IdempotencyConflict(message, request_id=request_id)
        case _:
            return Receipt(request_id, 0, again=True)


def release_event(
    request_id: str, user_id: int, token_id: int, held: int, *, reason: str, expired: bool, client_key: str = ""
) -> Event:
    """A release of `held` quota."""
    return events.make(
        kind=Kind.RELEASE,
        request_id=request_id,
        user_id=user_id,
        token_id=token_id,
        fingerprint=fingerprint("release", user_id, token_id, request_id, held),
        quota=held,
        content=reason,
        expired=expired,
        client_key=client_key,
    )
