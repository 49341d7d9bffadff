"""What a flow may ask for, and `ask`, which asks. Whoever runs a flow performs the effects (runtime.py, aio.py)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InLedger(Generic[R]):
    """A call of the ledger: one transaction."""

    call: Callable[[Ledger], R]


@dataclass(frozen=True, slots=True)
class Ring:
    """Tell a worker that the shard's outbox has something. Never waits for the broker."""

    shard: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Send a task of its own for one request, and wait until the broker has it. Raises Unavailable."""

    task: str
    task_id: str
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class IntoSpool:
    """Keep an event that no server took on this machine's disk. False if no spool is set up; raises Unavailable."""

    event: Event


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """A call of the ledger, and effects that need not wait for it. The answer, or the error, is the ledger's.

    `others` handles its own errors, and leaves what it found where its maker looks for it.
    """

    ledger: InLedger[Any]
    others: Generator[Any, Any, None]


Effect: TypeAlias = Command[Any] | Pipeline[Any] | InLedger[Any] | Ring | Enqueue | IntoSpool | Meanwhile
Flow: TypeAlias = Generator[Effect, Any, T]


def ask(effect: Command[R] | InLedger[R]) -> Flow[R]:
    """One effect, one typed answer."""
    reply: R = yield effect
    return reply


def ask_all(commands: Sequence[Command[R]]) -> Flow[list[R]]:
    """Several commands for Redis in one round trip."""
    if not commands:
        return []
    reply: list[R] = yield Pipeline(tuple(commands))
    return reply
