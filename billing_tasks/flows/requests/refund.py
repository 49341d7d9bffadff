"""Refund: give quota back, before the charge (the hold) or after it (a reversing entry).

By hold or by charge, never by a bare amount: a refund that is repeated finds the
hold closed or its refund_id taken, and gives nothing twice.
"""

from __future__ import annotations

from billing_tasks.broker.names import REFUND
from billing_tasks.errors import (
    HoldNotWritten,
    IdempotencyConflict,
    NotBooked,
    ReservationClosed,
    Unavailable,
)
from billing_tasks.flows.dead_letters.record import keep, of_outcome
from billing_tasks.flows.effects import Enqueue, Flow, InLedger, IntoSpool, Ring, ask
from billing_tasks.flows.requests.release import release_event
from billing_tasks.holds.commands import Commands
from billing_tasks.holds.outcomes import Release
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.refund import RefundRequest
from billing_tasks.model.reservation import Receipt


def release_hold(request: RefundRequest, *, token_id: int | None, held: int, commands: Commands) -> Flow[Receipt]:
    """Give an open hold back. Raises ReservationClosed if the request was charged, Unavailable if Redis is away.

    Without `token_id` the hold is looked up first, which costs a second round trip.
    """
    user_id, request_id = request.user_id, request.request_id
    try:
        if token_id is None:
            found = yield from ask(commands.hold(user_id=user_id, request_id=request_id))
            if found is None:
                return Receipt(request_id, 0, again=True)
            token_id, held = found.token_id, found.quota
        event = release_event(request_id, user_id, token_id, held, reason=request.reason, expired=False)
        reply = yield from ask(
            commands.release(request_id=request_id, user_id=user_id, token_id=token_id, payload=events.encode(event))
        )
    except Unavailable as exc:
        raise HoldNotWritten(f"{exc.message} The hold expires by itself.", request_id=request_id) from exc
    if reply.ring:
        yield Ring(commands.keys.shard_of(user_id), request_id)
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


def refund_charge(request: RefundRequest, *, commands: Commands) -> Flow[Receipt]:
    """File the refund of a charge; it is booked with the next settlement. Redis away: booked at once.

    Whether there is such a charge and enough left of it shows when it is booked: what can't be is kept as a
    dead letter. Raises NotBooked if neither server took it.
    """
    return (yield from file(request.event, commands=commands))


def file(event: Event, *, commands: Commands) -> Flow[Receipt]:
    """`refund_charge` of a refund that is an event already."""
    payload = events.encode(event)
    try:
        ring = yield from ask(commands.refund(request_id=event.request_id, user_id=event.user_id, payload=payload))
    except Unavailable as exc:
        return (yield from _post_directly(event, exc, commands.keys.shard_of(event.user_id)))
    if ring:
        yield Ring(commands.keys.shard_of(event.user_id), event.request_id)
    return Receipt(event.request_id, event.quota)


def _post_directly(event: Event, redis_error: Unavailable, shard: int) -> Flow[Receipt]:
    try:
        batch = yield from ask(InLedger(lambda ledger: ledger.post_refund(shard, event)))
        outcome = batch.outcomes[0]
        if not outcome.booked:
            yield from keep([of_outcome(event, outcome)])
    except Unavailable as exc:
        return (yield from _spool(event, redis_error, exc))
    return Receipt(event.request_id, event.quota, posted=outcome.booked)


def _spool(event: Event, redis_error: Unavailable, ledger_error: Unavailable) -> Flow[Receipt]:
    message = f"Neither Redis nor PostgreSQL took the refund. {redis_error.message} {ledger_error.message}"
    try:
        kept = yield IntoSpool(event)
    except Unavailable as exc:
        raise NotBooked(f"{message} {exc.message}", request_id=event.request_id) from exc
    if not kept:
        raise NotBooked(message, request_id=event.request_id) from ledger_error
    return Receipt(event.request_id, event.quota, spooled=True)


def request(wanted: RefundRequest, *, commands: Commands) -> Flow[Receipt]:
    """What the task billing.refund means: a hold that is open is released, a charge is reversed."""
    if wanted.refund_id or wanted.quota is not None:
        return (yield from refund_charge(wanted, commands=commands))
    try:
        found = yield from ask(commands.hold(user_id=wanted.user_id, request_id=wanted.request_id))
    except Unavailable:
        found = None  # Redis is away; if it was a hold, it expires, and the refund waits as a dead letter
    if found is None or found.state == "consumed":
        return (yield from refund_charge(wanted, commands=commands))
    try:
        receipt = yield from release_hold(wanted, token_id=found.token_id, held=found.quota, commands=commands)
    except ReservationClosed:  # consumed between the look and the release: then it is a charge
        return (yield from refund_charge(wanted, commands=commands))
    # Usage that was booked while Redis was away left the hold open: then there is a charge as well.
    entries = yield from ask(InLedger(lambda ledger: ledger.entries_of(wanted.request_id)))
    if any(entry.kind == Kind.CONSUME for entry in entries):
        return (yield from refund_charge(wanted, commands=commands))
    return receipt


def enqueue(wanted: RefundRequest, *, commands: Commands) -> Flow[Receipt]:
    """Send the refund as a task of its own (BILLING_DISPATCH=request); without a broker, file it at once."""
    try:
        suffix = f":{wanted.refund_id}" if wanted.refund_id else ""
        yield Enqueue(REFUND, f"refund:{wanted.request_id}{suffix}", wanted.kwargs)
    except Unavailable:
        return (yield from request(wanted, commands=commands))
    return Receipt(wanted.request_id, wanted.quota or 0)
