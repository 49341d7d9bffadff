"""Sweeping and watching: what is due, what waits, how far a shard has come."""

from __future__ import annotations

import re
from collections.abc import Sequence

from billing_tasks.holds import outcomes
from billing_tasks.holds.commands.command import Command, Subject, call
from billing_tasks.holds.replies import (
    DueMembers,
    EpochState,
    HoldState,
    OutboxEntry,
    parse_entry,
    parse_hold,
    read_epoch,
    text,
)

#: The longest that a hold may be kept without being renewed (settings.py), in milliseconds.
LONGEST_TTL_MS = 86_400_000

_INFO_LINE = re.compile(r"^([a-z_]+):(.*?)\r?$", re.MULTILINE)


class Watching(Subject):
    """Looks at shards."""

    def server_time(self) -> Command[int]:
        """The server's clock in milliseconds."""
        return Command(("TIME",), lambda reply: int(reply[0]) * 1000 + int(reply[1]) // 1000)

    def info(self) -> Command[dict[str, str]]:
        """What the server says of itself."""
        return Command(("INFO",), lambda reply: dict(_INFO_LINE.findall(text(reply))))

    def config(self, name: str) -> Command[str | None]:
        """One setting of the server. Managed ones refuse to tell; None: it does not know that setting."""
        return Command(("CONFIG", "GET", name), lambda reply: text(reply[1]) if len(reply) > 1 else None)

    def due(self, shard: int, *, now_ms: int, limit: int) -> Command[DueMembers]:
        """Request ids of holds that are due, oldest first."""
        words = ("ZRANGE", self.keys.due(shard), "-inf", now_ms, "BYSCORE", "LIMIT", 0, limit)
        return Command(words, DueMembers.read)

    def due_too_late(self, shard: int, *, now_ms: int, limit: int) -> Command[DueMembers]:
        """Request ids of holds that are due later than any ttl allows: the clock was set back since."""
        latest = f"({now_ms + LONGEST_TTL_MS}"
        words = ("ZRANGE", self.keys.due(shard), latest, "+inf", "BYSCORE", "LIMIT", 0, limit)
        return Command(words, DueMembers.read)

    def not_due(self, shard: int, members: Sequence[bytes]) -> Command[int]:
        """Take members out of `due` that are no request ids; how many were taken."""
        return Command(("ZREM", self.keys.due(shard), *members), int)

    def reschedule(self, shard: int, request_id: str) -> Command[bool]:
        """reschedule.lua; True: it is due after the usual ttl now"""
        return call(
            "reschedule",
            (self.keys.hold(shard, request_id), self.keys.due(shard)),
            (request_id, self._hold_ttl_ms, LONGEST_TTL_MS),
            lambda reply: outcomes.Reschedule(text(reply[0])) is outcomes.Reschedule.RESCHEDULED,
        )

    def holds(self, shard: int, request_ids: Sequence[str]) -> Command[list[HoldState | None]]:
        """Several holds at once."""
        words = ("MGET", *(self.keys.hold(shard, request_id) for request_id in request_ids))
        return Command(words, lambda reply: [parse_hold(packed) for packed in reply])

    def backlog(self, shard: int) -> Command[int]:
        """Events waiting in the outbox."""
        return Command(("XLEN", self.keys.outbox(shard)), int)

    def open_holds(self, shard: int) -> Command[int]:
        """Holds that are open."""
        return Command(("ZCARD", self.keys.due(shard)), int)

    def oldest(self, shard: int) -> Command[OutboxEntry | None]:
        """The event that waits longest."""
        words = ("XRANGE", self.keys.outbox(shard), "-", "+", "COUNT", 1)
        return Command(words, lambda reply: parse_entry(reply[0]) if reply else None)

    def ring(self, shard: int, *, anew: bool = False) -> Command[bool]:
        """ring.lua: True unless a drainer was called or is at work. `anew`: whatever was called before is forgotten."""
        return call(
            "ring",
            (self.keys.doorbell(shard), self.keys.meta(shard)),
            (self._doorbell_ms, self._longest_ring_ms, int(anew)),
            lambda reply: outcomes.Ring(text(reply[0])) is outcomes.Ring.RUNG,
        )

    def drainer_wanted(self, shard: int) -> Command[tuple[int, int]]:
        """How many calls no drainer has answered, and when one that failed comes back, by its worker's clock in
        milliseconds; 0: none."""
        words = ("HMGET", self.keys.meta(shard), "rings", "retry_at")
        return Command(words, lambda reply: (int(reply[0] or 0), int(reply[1] or 0)))

    def notice_restart(self, shard: int) -> Command[None]:
        """balance.lua of no account: a server that was restarted, restored or promoted since begins its epoch."""
        return call("balance", (self.keys.meta(shard), self.keys.user(shard, 0)), (), lambda _: None)

    def epoch(self, shard: int) -> Command[EpochState]:
        """Epoch and highest seq of the shard, and what was left of the epoch before; zeros if it was never used."""
        numbers = ("epoch", "seq", "before_epoch", "before_seq", "settled", "version", "loads")
        words = ("HMGET", self.keys.meta(shard), *numbers, "ledger")
        return Command(words, read_epoch)
