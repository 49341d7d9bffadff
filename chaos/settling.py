"""Settling: wait until nothing of a run is on its way any more.

Outboxes empty, holds closed, dead letters that are tried again by themselves through,
cached accounts as fresh as a reservation would want them. Workers and beat do the
work; only a dead letter whose next attempt is far away is tried at once, as an
operator would.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.flows.dead_letters import retry
from billing_tasks.holds.commands import Pipeline
from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.runtime import Runtime

POLL_SECONDS = 0.25
#: Dead letters get so long to be retried by beat before the run does it, as an operator would.
DEAD_LETTERS_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Pending:
    """What is still open."""

    events: int
    holds: int
    dead_letters: int

    def __str__(self) -> str:
        return f"{self.events:,} events, {self.holds:,} open holds, {self.dead_letters:,} dead letters to be retried"


@dataclass(frozen=True, slots=True)
class Settled:
    """How it came to rest. Seconds after the last answer of the traffic."""

    seconds: float
    in_time: bool
    pending: Pending
    by_hand: int  # dead letters tried at once


def await_settled(
    runtime: Runtime, *, timeout_seconds: float, look: Callable[[Pending], None], tend: Callable[[], None]
) -> Settled:
    """Wait; what is open after the time allowed is for the judge to find."""
    began = time.monotonic()
    pending = Pending(-1, -1, -1)
    by_hand = 0
    while True:
        tend()
        seconds = time.monotonic() - began
        try:
            pending = read_pending(runtime)
            if pending == Pending(0, 0, 0):
                # A cached account may be old for so long; a reservation would reload it after that.
                wait_while_tending(runtime.settings.fresh_seconds, tend)
                return Settled(seconds, True, pending, by_hand)
            if pending.dead_letters and not pending.events and not pending.holds and seconds > DEAD_LETTERS_SECONDS:
                by_hand += _retry_by_hand(runtime)
        except Unavailable:
            pass  # it is coming back
        look(pending)
        if seconds > timeout_seconds:
            return Settled(seconds, False, pending, by_hand)
        time.sleep(POLL_SECONDS)


def read_pending(runtime: Runtime) -> Pending:
    """What is open now. Raises Unavailable."""
    shards = range(runtime.settings.shards)
    commands = runtime.commands
    events = sum(runtime.holds.send_all(Pipeline(tuple(commands.backlog(shard) for shard in shards))))
    holds = sum(runtime.holds.send_all(Pipeline(tuple(commands.open_holds(shard) for shard in shards))))
    return Pending(events, holds, runtime.ledger.count_dead_letters()[DeadLetterState.RETRYING])


def wait_while_tending(seconds: float, tend: Callable[[], None]) -> None:
    """Sleep, and look after the processes meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        tend()
        time.sleep(POLL_SECONDS)


def _retry_by_hand(runtime: Runtime) -> int:
    tried = 0
    for dead_letter in runtime.ledger.dead_letters(states=[DeadLetterState.RETRYING], limit=100):
        attempt = retry.attempt(dead_letter.id, actor="chaos run", commands=runtime.commands, settings=runtime.settings)
        try:
            runtime.run(attempt)
        except Unavailable:
            raise
        except BillingError:
            pass  # still not: the dead letter has the reason, and the next round tries again until it is given up
        tried += 1
    return tried
