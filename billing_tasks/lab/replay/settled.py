"""Settled: wait until nothing of a replay is on its way any more.

Three things in this order: the outboxes are empty, this run's holds are closed,
every request has its end in the ledger. Only looks; workers and beat do the work.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from billing_tasks.admin.accounts import Accounts
from billing_tasks.errors import Unavailable
from billing_tasks.holds.commands import Pipeline
from billing_tasks.lab.replay.endings import Booked, Outcome, ending_of, read_booked
from billing_tasks.lab.replay.problems import NotSettled
from billing_tasks.lab.replay.requests import PlannedRequest, Tally, Told
from billing_tasks.runtime import Runtime

POLL_SECONDS = 0.1
MAY_BE_HELD = (Told.HELD, Told.UNANSWERED, Told.UNCLEAR)
#: How many requests a message names before it only counts them.
NAMED = 5


@dataclass(frozen=True, slots=True)
class Pending:
    """What is still open. `unbooked` is None until it was worth asking the ledger."""

    events: int
    holds: int
    unbooked: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.events:,} events in the outboxes", f"{self.holds:,} open holds"]
        if self.unbooked is not None:
            parts.append(f"{self.unbooked:,} requests not booked")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of the wait. Seconds after the last request of the traffic."""

    booked: Booked
    outboxes_empty_seconds: float
    settled_seconds: float


Look = Callable[[Pending], None]


def await_settled(
    requests: Sequence[PlannedRequest],
    tally: Tally,
    *,
    runtime: Runtime,
    accounts: Accounts,
    timeout_seconds: float,
    look: Look,
) -> Settlement:
    """Return when all is booked, or raise NotSettled, which says what is still open and names some of it."""
    deadline = time.monotonic() + timeout_seconds
    still_open = [index for index, told in enumerate(tally.told) if told in MAY_BE_HELD]
    outboxes_empty: float | None = None
    pending = Pending(0, 0)
    while True:
        since_end = (time.monotonic_ns() - tally.ended_ns) / 1e9
        try:
            still_open = _still_held(still_open, requests, tally, runtime)
            pending = Pending(_events(runtime), len(still_open))
            if pending.events == 0 and outboxes_empty is None:
                outboxes_empty = since_end
            if pending == Pending(0, 0):
                booked = read_booked(requests, accounts)
                unbooked = _unbooked(tally, booked)
                if not unbooked:
                    return Settlement(booked, outboxes_empty or since_end, since_end)
                pending = Pending(0, 0, len(unbooked))
        except Unavailable:
            pass  # a server is away for a moment; the deadline is what ends the wait
        look(pending)
        if time.monotonic() > deadline:
            unbooked = _unbooked(tally, read_booked(requests, accounts))
            pending = Pending(pending.events, pending.holds, len(unbooked))
            raise NotSettled(_late(pending, still_open or unbooked, requests, tally, timeout_seconds))
        time.sleep(POLL_SECONDS)


def _events(runtime: Runtime) -> int:
    shards = range(runtime.settings.shards)
    return sum(runtime.holds.send_all(Pipeline(tuple(runtime.commands.backlog(shard) for shard in shards))))


def _still_held(indexes: list[int], requests: Sequence[PlannedRequest], tally: Tally, runtime: Runtime) -> list[int]:
    """Those whose hold is still open in Redis, asked shard by shard."""
    by_shard: dict[int, list[int]] = defaultdict(list)
    for index in indexes:
        by_shard[runtime.commands.keys.shard_of(requests[index].user_id)].append(index)
    held: list[int] = []
    for shard, here in by_shard.items():
        states = runtime.holds.send(runtime.commands.holds(shard, [tally.request_ids[at] for at in here]))
        held += [index for index, hold in zip(here, states, strict=True) if hold and hold.state == "held"]
    return held


def _unbooked(tally: Tally, booked: Booked) -> list[int]:
    return [
        index
        for index, request_id in enumerate(tally.request_ids)
        # UNCLEAR, no hold and no entry: waiting won't bring it back. That is for the report to say.
        if tally.told[index] != Told.UNCLEAR
        and ending_of(booked.get(request_id, ()), Told(tally.told[index])).outcome is Outcome.OPEN
    ]


def _late(
    pending: Pending, indexes: Sequence[int], requests: Sequence[PlannedRequest], tally: Tally, timeout_seconds: float
) -> str:
    names = ", ".join(f"{tally.request_ids[at]} (row {requests[at].row + 1})" for at in indexes[:NAMED])
    rest = f" and {len(indexes) - NAMED} more" if len(indexes) > NAMED else ""
    which = f" Among them: {names}{rest}." if indexes else ""
    return f"After {timeout_seconds:g} s there are still {pending}.{which}"
