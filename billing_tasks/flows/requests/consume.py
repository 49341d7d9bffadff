"""Consume: close the hold and file what was used, in one step inside Redis.

If Redis is away the usage is posted straight into PostgreSQL under the same
unique key: the hold may return with Redis and expire, and the usage would have
been free. If consume.lua was applied and only its answer was lost, the outbox
event later turns out a duplicate. If both servers are away the spool takes it, if one
is set up; it is relayed when one of them is back.
"""

from __future__ import annotations

from billing_tasks.broker.names import CONSUME
from billing_tasks.errors import IdempotencyConflict, NotBooked, TokenRefused, Unavailable, UserNotFound
from billing_tasks.flows.dead_letters.record import keep, of_outcome
from billing_tasks.flows.effects import Enqueue, Flow, InLedger, IntoSpool, Ring, ask
from billing_tasks.holds.commands import Commands
from billing_tasks.holds.outcomes import Consume
from billing_tasks.holds.replies import Closed
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.events import Event
from billing_tasks.model.posting import PostOutcome
from billing_tasks.model.reservation import Receipt


def consume(log: ConsumeLog, *, commands: Commands) -> Flow[Receipt]:
    """File the usage. Raises IdempotencyConflict (kept as a dead letter) or NotBooked (repeat with the same id)."""
    return (yield from file(log.to_event(), commands=commands))


def file(event: Event, *, commands: Commands) -> Flow[Receipt]:
    """`consume` of usage that is an event already."""
    try:
        reply = yield from ask(
            commands.consume(
                request_id=event.request_id,
                user_id=event.user_id,
                token_id=event.token_id,
                quota=event.quota,
                fingerprint=event.fingerprint,
                payload=events.encode(event),
            )
        )
    except Unavailable as exc:
        return (yield from _post_directly(event, exc, commands.keys.shard_of(event.user_id)))
    if reply.ring:
        yield Ring(commands.keys.shard_of(event.user_id), event.request_id)
    return _receipt(event, reply)


def enqueue(log: ConsumeLog, *, commands: Commands) -> Flow[Receipt]:
    """Send the usage as a task of its own (BILLING_DISPATCH=request); without a broker, file it at once."""
    kwargs = log.model_dump(exclude_defaults=True)
    try:
        yield Enqueue(CONSUME, f"consume:{log.request_id}", kwargs)
    except Unavailable:
        return (yield from consume(log, commands=commands))
    return Receipt(log.request_id, log.quota)


def _receipt(event: Event, reply: Closed[Consume]) -> Receipt:
    match reply.outcome:
        case Consume.CONSUMED:
            return Receipt(event.request_id, event.quota)
        case Consume.CONSUMED_LATE:
            return Receipt(event.request_id, event.quota, late=True)
        case Consume.ALREADY_CONSUMED:
            return Receipt(event.request_id, event.quota, again=True)
        case _:
            raise _conflict(event)


def _conflict(event: Event) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"Request {event.request_id} came before with another body; "
        "the first stands, this one is kept as a dead letter.",
        request_id=event.request_id,
    )


def _post_directly(event: Event, redis_error: Unavailable, shard: int) -> Flow[Receipt]:
    try:
        batch = yield from ask(InLedger(lambda ledger: ledger.post_batch(shard, [event])))
        outcome = batch.outcomes[0]
        if not outcome.booked:
            yield from keep([of_outcome(event, outcome)])
    except Unavailable as exc:
        return (yield from _spool(event, redis_error, exc))
    match outcome:
        case PostOutcome.UNKNOWN_USER:
            raise UserNotFound(f"There is no user {event.user_id}; the usage is kept as a dead letter.")
        case PostOutcome.UNKNOWN_TOKEN:
            message = f"User {event.user_id} has no token {event.token_id}; the usage is kept as a dead letter."
            raise TokenRefused(message, reason="unknown", request_id=event.request_id)
        case PostOutcome.CONFLICT:
            raise _conflict(event)
        case _:
            return Receipt(event.request_id, event.quota, again=outcome is PostOutcome.DUPLICATE, posted=True)


def _spool(event: Event, redis_error: Unavailable, ledger_error: Unavailable) -> Flow[Receipt]:
    """Both servers are away: the disk of this machine, if there is a spool; else the caller has to repeat."""
    message = f"Neither Redis nor PostgreSQL took the usage. {redis_error.message} {ledger_error.message}"
    try:
        kept = yield IntoSpool(event)
    except Unavailable as exc:
        raise NotBooked(f"{message} {exc.message}", request_id=event.request_id) from exc
    if not kept:
        raise NotBooked(message, request_id=event.request_id) from ledger_error
    return Receipt(event.request_id, event.quota, spooled=True)
