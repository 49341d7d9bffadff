"""Refund: before the charge its hold is released; after it the charge is reversed by an entry.

By hold or by charge, never by a bare amount: a refund that is repeated finds the
hold closed or its refund_id taken, and gives nothing twice.
"""

from __future__ import annotations

from billing_tasks.broker.names import REFUND
from billing_tasks.errors import ReservationClosed, Unavailable
from billing_tasks.flows.effects import Enqueue, InLedger, Ring
from billing_tasks.flows.requests import without_redis
from billing_tasks.flows.requests.release import release_hold
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.store import Ledger
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.refund import RefundRequest
from billing_tasks.model.reservation import Receipt


async def refund_charge(request: RefundRequest, *, commands: Commands) -> Receipt:
    """File the refund of a charge; it is booked with the next settlement. Redis away: booked at once.

    Whether there is such a charge and enough left of it shows when it is booked: what can't be is kept as a
    dead letter. Raises NotBooked if neither server took it.
    """
    return await file(request.event, commands=commands)


async def file(event: Event, *, commands: Commands) -> Receipt:
    """`refund_charge` of a refund that is an event already."""
    payload = events.payload(event, for_0_1_0=commands.keys.shared_with_0_1_0)
    try:
        ring = await commands.refund(request_id=event.request_id, user_id=event.user_id, payload=payload)
    except Unavailable as exc:
        outcome = await without_redis.post_or_spool(event, exc, shard=commands.keys.shard_of(event.user_id))
        if outcome is None:
            return Receipt(event.request_id, event.quota, spooled=True)
        return Receipt(event.request_id, event.quota, posted=outcome.booked)
    if ring:
        await Ring(commands.keys.shard_of(event.user_id), event.request_id)
    return Receipt(event.request_id, event.quota)


async def refund(wanted: RefundRequest, *, commands: Commands) -> Receipt:
    """What the task billing.refund means: a hold that is open is released, a charge is reversed."""
    if wanted.refund_id or wanted.quota is not None:
        return await refund_charge(wanted, commands=commands)
    try:
        found = await commands.hold(user_id=wanted.user_id, request_id=wanted.request_id)
    except Unavailable:
        found = None  # Redis is away; if it was a hold, it expires, and the refund waits as a dead letter
    if found is None or found.state == "consumed":
        return await refund_charge(wanted, commands=commands)
    try:
        receipt = await release_hold(wanted, token_id=found.token_id, held=found.quota, commands=commands)
    except ReservationClosed:  # consumed between the look and the release: then it is a charge
        return await refund_charge(wanted, commands=commands)
    # Usage that was booked while Redis was away left the hold open: then there is a charge as well.
    entries = await InLedger(Ledger.entries_of, wanted.request_id)
    if any(entry.kind == Kind.CONSUME for entry in entries):
        return await refund_charge(wanted, commands=commands)
    return receipt


async def enqueue(wanted: RefundRequest, *, commands: Commands) -> Receipt:
    """Send the refund as a task of its own (BILLING_DISPATCH=request); without a broker, file it at once."""
    try:
        suffix = f":{wanted.refund_id}" if wanted.refund_id else ""
        await Enqueue(REFUND, f"refund:{wanted.request_id}{suffix}", wanted.kwargs)
    except Unavailable:
        return await refund(wanted, commands=commands)
    return Receipt(wanted.request_id, wanted.quota or 0)
