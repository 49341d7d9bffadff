"""Refund: before the charge its hold is released; after it the charge is reversed by an entry.

By hold or by charge, never by a bare amount: a refund that is repeated finds the
hold closed or its refund_id taken, and gives nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from billing_tasks.broker.names import REFUND
from billing_tasks.errors import ReservationClosed, Unavailable
from billing_tasks.flows.account_cache import clock_of, push_accounts
from billing_tasks.flows.dead_letters.answers import WHY
from billing_tasks.flows.dead_letters.retry import kept_refusal
from billing_tasks.flows.dead_letters.telling import details
from billing_tasks.flows.effects import Enqueue, InLedger, Ring
from billing_tasks.flows.requests import without_redis
from billing_tasks.flows.requests.release import release_hold
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.store import Ledger
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.ids import now_ms
from billing_tasks.model.posting import PostOutcome
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


async def reverse(request: RefundRequest, *, commands: Commands, patient: bool = False) -> Receipt:
    """Reverse a charge in PostgreSQL, now: what a worker does, whose task is to say what became of it.

    What can't be booked is kept as a dead letter and raised: ChargeNotFound, whose `again_in_seconds` says when it is
    tried again, because the charge may be on its way; RefundAboveCharge, IdempotencyConflict, UserNotFound,
    InvalidRequest for what a person has to see to. Raises Unavailable: the message is all there is, and is repeated;
    also, if `patient`, while nothing is charged: usage that was sent just before waits in an outbox for a moment.
    """
    event, shard = request.event, commands.keys.shard_of(request.user_id)
    if event.used_at_ms is None:
        event.used_at_ms = now_ms()
    clock = await clock_of(event.user_id, commands)
    try:
        answer = await InLedger(Ledger.post_refund, shard, event)
    except LedgerRefusedData as exc:
        refusal: LedgerRefusedData | PostOutcome = exc
    else:
        refusal = answer.outcomes[0]
        if refusal.booked:
            await push_accounts(clock, users=answer.users, tokens=answer.tokens, commands=commands)
            again = refusal is PostOutcome.DUPLICATE
            return Receipt(event.request_id, event.quota, posted=True, again=again)
    if patient and refusal is PostOutcome.NO_CHARGE:
        raise Unavailable(f"{WHY[refusal]} {await details(event)}", reason=refusal, request_id=event.request_id)
    raise await kept_refusal(event, refusal)


Reversing = Callable[..., Coroutine[Any, Any, Receipt]]


async def refund(wanted: RefundRequest, *, commands: Commands, refund_charge: Reversing = refund_charge) -> Receipt:
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
        held, key = found.quota, found.client_key
        receipt = await release_hold(wanted, token_id=found.token_id, held=held, commands=commands, client_key=key)
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
