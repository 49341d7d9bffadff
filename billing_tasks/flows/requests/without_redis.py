"""Redis is away: usage and refunds go straight into PostgreSQL, or onto this machine's disk if that is away too.

What PostgreSQL refuses is kept there as a dead letter in the same call. An event that Redis took after all, and whose
answer was lost, is found to be a duplicate when its outbox is settled.
"""

from __future__ import annotations

from billing_tasks.errors import InvalidRequest, NotBooked, Unavailable
from billing_tasks.flows.dead_letters.record import keep, of_refusal, of_unread
from billing_tasks.flows.effects import InLedger, IntoSpool
from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.ids import now_ms
from billing_tasks.model.posting import PostOutcome


async def post_or_spool(event: Event, redis_error: Unavailable, *, shard: int) -> PostOutcome | None:
    """What PostgreSQL answered; None: the event is spooled. Raises NotBooked if neither took it."""
    if event.used_at_ms is None:
        event.used_at_ms = now_ms()  # it may be booked much later, from the spool
    post = InLedger(Ledger.post_refund, shard, event)
    if event.kind is not Kind.REFUND:
        post = InLedger(Ledger.post_batch, shard, [event])
    try:
        outcome = (await post).outcomes[0]
        if not outcome.booked:
            await keep([await of_refusal(event, outcome)])
        elif (unread := of_unread(event)) is not None:
            await keep([unread])
    except LedgerRefusedData as exc:
        await keep([await of_refusal(event, exc)])
        raise InvalidRequest(f"{exc.message}; it is kept as a dead letter.", request_id=event.request_id) from exc
    except Unavailable as exc:
        await _spool(event, redis_error, exc)
        return None
    return outcome


async def _spool(event: Event, redis_error: Unavailable, ledger_error: Unavailable) -> None:
    what = "refund" if event.kind is Kind.REFUND else "usage"
    message = f"Neither Redis nor PostgreSQL took the {what}. {redis_error.message} {ledger_error.message}"
    try:
        kept = await IntoSpool(event)
    except Unavailable as exc:
        raise NotBooked(f"{message} {exc.message}", request_id=event.request_id) from exc
    if not kept:
        raise NotBooked(message, request_id=event.request_id) from ledger_error
