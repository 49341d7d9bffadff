"""The limit of posting: billing.post_batch alone, 1,000 events per call, without Redis, Celery or decoding.

The same events in the same batches as a drain would make of them (a shard's own, in
order), written as JSON beforehand, over one psycopg connection with the same settings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import psycopg

from benchmarks.backlog import held_quota
from benchmarks.environment import Environment
from billing_tasks.model import events
from billing_tasks.model.events import Event

_POST = "select outcomes, users, tokens from billing.post_batch_v2(%s, %s)"


def seconds_to_post(environment: Environment, waiting: Sequence[Event]) -> float:
    """How long PostgreSQL takes to book them all. Raises RuntimeError if one was not booked."""
    size, shards = environment.settings.batch_size, environment.settings.shards
    held = held_quota(environment)
    for event in waiting:
        event.held_quota = held  # a drain takes it from the outbox entry; PostgreSQL does more for it
    batches: list[tuple[str, str]] = []
    for shard in range(shards):
        own = [event for event in waiting if event.user_id % shards == shard]
        outbox = f'[{{"shard": {shard}}}]'
        batches += [(outbox, events.encode_all(own[at : at + size])) for at in range(0, len(own), size)]
    with psycopg.connect(
        environment.settings.database_url, autocommit=True, options="-c synchronous_commit=on"
    ) as connection:
        began = time.perf_counter()
        answers = [connection.execute(_POST, batch).fetchone() for batch in batches]
        seconds = time.perf_counter() - began
    if any(answer is None or answer[0] is not None for answer in answers):
        raise RuntimeError("an event was not posted")
    return seconds
