"""What a flow may ask for beside commands for Redis (`holds/commands`). Each is awaited: `await Ring(shard, id)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from billing_tasks.ledger.store import Ledger
from billing_tasks.model.effect import Effect, Flow
from billing_tasks.model.events import Event

R = TypeVar("R")
P = ParamSpec("P")

__all__ = ["Effect", "Enqueue", "Flow", "InLedger", "IntoSpool", "Meanwhile", "Ring"]


class InLedger(Effect[R]):
    """A call of the ledger, one transaction: `await InLedger(Ledger.get_user, 42)`.

    A read of accounts says whether it is `needed`: one that its caller can do without is not tried while PostgreSQL is
    away (ledger/reach.py). None: it is no such read.
    """

    __slots__ = ("args", "kwargs", "name", "needed")

    def __init__(self, method: Callable[Concatenate[Ledger, P], R], /, *args: P.args, **kwargs: P.kwargs) -> None:
        self.name = method.__name__
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.needed: bool | None = None

    def call(self, ledger: Ledger) -> R:
        """Make it. By name: the ledger at hand may be one that overrides the method."""
        reply: R = getattr(ledger, self.name)(*self.args, **self.kwargs)
        return reply

    def __repr__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"InLedger({self.name}, {', '.join(given)})"


@dataclass(frozen=True, slots=True)
class Ring(Effect[None]):
    """Tell a worker that the shard's outbox has something. Never waits for the broker."""

    shard: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Enqueue(Effect[None]):
    """Send a task of its own for one request, and wait until the broker has it. Raises Unavailable."""

    task: str
    task_id: str
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class IntoSpool(Effect[bool]):
    """Keep an event that no server took on this machine's disk. False if no spool is set up; raises Unavailable."""

    event: Event


@dataclass(frozen=True, slots=True)
class Meanwhile(Effect[R], Generic[R]):
    """A call of the ledger, and effects that need not wait for it. The answer, or the error, is the ledger's.

    `others` makes the flow of those effects when the runner starts it; the flow handles its own errors, and leaves
    what it found where its maker looks for it.
    """

    ledger: InLedger[R]
    others: Callable[[], Flow[None]]
