"""Consume: close the hold and file what was used, in one step inside Redis.

If Redis is away the usage is posted straight into PostgreSQL under the same
unique key (without_redis.py): the hold may return with Redis and expire, and the
usage would have been free.
"""

from __future__ import annotations

from billing_tasks.broker.names import CONSUME
from billing_tasks.errors import IdempotencyConflict, TokenRefused, Unavailable, UserNotFound
from billing_tasks.flows.effects import Enqueue, Ring
from billing_tasks.flows.requests import without_redis
from billing_tasks.holds.commands import Command, Commands
from billing_tasks.holds.outcomes import Consume
from billing_tasks.holds.replies import Closed
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.events import Event
from billing_tasks.model.ids import now_ms
from billing_tasks.model.posting import PostOutcome
from billing_tasks.model.reservation import Receipt


async def consume(log: ConsumeLog, *, commands: Commands) -> Receipt:
    """File the usage. Raises IdempotencyConflict (kept as a dead letter) or NotBooked (repeat with the same id)."""
    return await file(events.of_log(log), commands=commands)


async def file(event: Event, *, commands: Commands) -> Receipt:
    """`consume` of usage that is an event already."""
    if commands.keys.shared_with_0_1_0:
        event = events.as_of_0_1_0(event)
    try:
        reply = await _close(event, event.fingerprint, commands)
        if reply.outcome is Consume.OTHER_FORMULA:  # another release consumed it, or began to
            reply = await _close(event, events.fingerprint_by_other_formula(event), commands)
    except Unavailable as exc:
        return await _without_redis(event, exc, commands.keys.shard_of(event.user_id))
    if reply.outcome is Consume.OTHER_FORMULA:  # by one that is not known here: the ledger compares the bodies
        other = Unavailable(f"A later release consumed request {event.request_id}.")
        return await _without_redis(event, other, commands.keys.shard_of(event.user_id))
    if reply.ring:
        await Ring(commands.keys.shard_of(event.user_id), event.request_id)
    return _receipt(event, reply)


def _close(event: Event, fingerprint: str, commands: Commands) -> Command[Closed[Consume]]:
    return commands.consume(
        request_id=event.request_id,
        user_id=event.user_id,
        token_id=event.token_id,
        quota=event.quota,
        fingerprint=fingerprint,
        payload=events.payload(event, for_0_1_0=commands.keys.shared_with_0_1_0),
    )


async def enqueue(log: ConsumeLog, *, commands: Commands) -> Receipt:
    """Send the usage as a task of its own (BILLING_DISPATCH=request); without a broker, file it at once."""
    # The message may wait in its queue: without this it would be usage of the time it is taken out.
    kwargs = {"used_at_ms": now_ms(), **log.model_dump(exclude_defaults=True)}
    try:
        await Enqueue(CONSUME, f"consume:{log.request_id}", kwargs)
    except Unavailable:
        return await consume(log, commands=commands)
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


async def _without_redis(event: Event, redis_error: Unavailable, shard: int) -> Receipt:
    outcome = await without_redis.post_or_spool(event, redis_error, shard=shard)
    match outcome:
        case None:
            return Receipt(event.request_id, event.quota, spooled=True)
        case PostOutcome.UNKNOWN_USER:
            raise UserNotFound(f"There is no user {event.user_id}; the usage is kept as a dead letter.")
        case PostOutcome.UNKNOWN_TOKEN:
            message = f"User {event.user_id} has no token {event.token_id}; the usage is kept as a dead letter."
            raise TokenRefused(message, reason="unknown", request_id=event.request_id)
        case PostOutcome.CONFLICT:
            raise _conflict(event)
        case _:
            return Receipt(event.request_id, event.quota, again=outcome is PostOutcome.DUPLICATE, posted=True)
