"""Requests that wait in the outbox: reserved and consumed by the product's own scripts, many per round trip.

No worker is called for them, so nothing is drained before the measure says so.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from datetime import datetime

from benchmarks.environment import CHANNELS, PAGE, Environment
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.holds.outcomes import Consume, Reserve
from billing_tasks.holds.replies import Closed, Reserved
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.events import Event
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.reservation import Reservation

PROMPT_TOKENS, MAX_TOKENS, COMPLETION_TOKENS = 374, 512, 44


def some_users(count: int, among: int, *, seed: int) -> list[int]:
    """The users of `count` requests, drawn evenly from 1 to `among`."""
    draw = random.Random(seed)  # noqa: S311 - spread, not secrecy
    return [draw.randint(1, among) for _ in range(count)]


def held_quota(environment: Environment) -> int:
    """What every request of the benchmarks holds."""
    return environment.price.estimate(PROMPT_TOKENS, MAX_TOKENS)


def make_log(reservation: Reservation, number: int, channel_id: int | None = None) -> ConsumeLog:
    """What a gateway reports for a request, with the details that real ones have."""
    return reservation.log(
        channel_id=1 + number % CHANNELS if channel_id is None else channel_id,
        prompt_tokens=PROMPT_TOKENS,
        completion_tokens=COMPLETION_TOKENS,
        token_name=f"token of {reservation.user_id}",
        elapsed_ms=1200,
        is_stream=True,
    )


def make_logs(environment: Environment, users: Sequence[int], *, channel_id: int | None = None) -> list[ConsumeLog]:
    """One request under a fresh id for each of `users`. Nothing is held yet."""
    held = held_quota(environment)
    fresh = (Reservation(new_request_id(), user, user, held, 0, environment.price) for user in users)
    return [make_log(reservation, number, channel_id) for number, reservation in enumerate(fresh)]


def make_events(environment: Environment, users: Sequence[int], *, channel_id: int | None = None) -> list[Event]:
    """The same as events."""
    return [events.of_log(log) for log in make_logs(environment, users, channel_id=channel_id)]


def date(waiting: Sequence[Event], moment: datetime) -> None:
    """Give events ids of another time: of a month that nothing was booked in."""
    began_ms = int(moment.timestamp() * 1000)
    for number, event in enumerate(waiting):
        h = f"{began_ms + number:012x}"
        event.request_id = (
            f"{h[:8]}-{h[8:]}-7{event.request_id[15:18]}-8{os.urandom(2).hex()[1:]}-{os.urandom(6).hex()}"
        )


def file_backlog(environment: Environment, waiting: Sequence[Event]) -> None:
    """Reserve and consume all of them; their accounts are loaded first."""
    hold_all(environment, waiting)
    consume_all(environment, waiting)


def hold_all(environment: Environment, waiting: Sequence[Event]) -> None:
    """Load the accounts and open a hold for each. Raises RuntimeError if one is not taken."""
    environment.warm(event.user_id for event in waiting)
    reserve_all(environment, waiting)


def reserve_all(environment: Environment, waiting: Sequence[Event]) -> None:
    """`hold_all` of accounts that are loaded."""
    held = held_quota(environment)
    for at in range(0, len(waiting), PAGE):
        page = waiting[at : at + PAGE]
        reserved = environment.runtime.perform(Pipeline(tuple(_reserve(environment, event, held) for event in page)))
        if {reply.outcome for reply in reserved} != {Reserve.HELD}:
            raise RuntimeError(f"a reservation was not taken: {reserved}")


def consume_all(environment: Environment, waiting: Sequence[Event]) -> None:
    """Close the hold of each. Raises RuntimeError if one is not taken."""
    for at in range(0, len(waiting), PAGE):
        page = waiting[at : at + PAGE]
        consumed = environment.runtime.perform(Pipeline(tuple(_consume(environment, event) for event in page)))
        if {reply.outcome for reply in consumed} != {Consume.CONSUMED}:
            raise RuntimeError(f"a consume was not taken: {consumed}")


def _reserve(environment: Environment, event: Event, held: int) -> Command[Reserved]:
    return environment.runtime.commands.reserve(
        request_id=event.request_id,
        user_id=event.user_id,
        token_id=event.token_id,
        amount=held,
        ttl_ms=environment.settings.hold_ttl_seconds * 1000,
        backlog_limit=environment.settings.backlog_limit,
        fresh_ms=0,
    )


def _consume(environment: Environment, event: Event) -> Command[Closed[Consume]]:
    return environment.runtime.commands.consume(
        request_id=event.request_id,
        user_id=event.user_id,
        token_id=event.token_id,
        quota=event.quota,
        fingerprint=event.fingerprint,
        payload=events.encode(event),
    )
