"""An operation on Redis as data: what to send and how to read the reply.

Flows await commands, a store sends them: sync, asyncio and the simulator share all of this and differ in the
sending alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from billing_tasks.holds.keys import Keys
from billing_tasks.holds.scripts import Script, script
from billing_tasks.model.effect import Effect

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Command(Effect[R], Generic[R]):
    """One round trip: a script call if `script` is set, else a plain command."""

    words: tuple[Any, ...]
    read: Callable[[Any], R]
    script: Script | None = None


@dataclass(frozen=True, slots=True)
class Pipeline(Effect[list[R]], Generic[R]):
    """Several commands in one round trip; the replies come in their order."""

    commands: tuple[Command[R], ...]

    def __await__(self) -> Generator[Any, Any, list[R]]:
        if not self.commands:
            return []  # no round trip for nothing
        reply: list[R] = yield self
        return reply


def together(commands: Iterable[Command[R]]) -> Pipeline[R]:
    """`await together(commands)`: one round trip for all of them."""
    return Pipeline(tuple(commands))


def call(name: str, keys: tuple[str, ...], args: tuple[Any, ...], read: Callable[[Any], R]) -> Command[R]:
    """A script call as a command."""
    found = script(name)
    return Command(("EVALSHA", found.sha, len(keys), *keys, *args), read, found)


@dataclass(frozen=True, slots=True)
class Layout:
    """What every builder of commands knows: where things live, and how long some of them do."""

    keys: Keys
    doorbell_ms: int
    tombstone_ms: int
    idle_seconds: int
    hold_ttl_ms: int
    longest_ring_ms: int  # no doorbell is meant to stay set for longer


class Subject:
    """Base of the builders in this folder; each is about one subject. Times are in milliseconds unless the name says
    otherwise."""

    def __init__(self, layout: Layout) -> None:
        self.keys = layout.keys
        self._doorbell_ms = layout.doorbell_ms
        self._tombstone_ms = layout.tombstone_ms
        self._idle_seconds = layout.idle_seconds
        self._hold_ttl_ms = layout.hold_ttl_ms
        self._longest_ring_ms = layout.longest_ring_ms
