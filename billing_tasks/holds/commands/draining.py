"""Draining an outbox: the right to it, its events, and their removal once they are booked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from billing_tasks.holds import outcomes
from billing_tasks.holds.commands.accounts import token_attributes, user_attributes
from billing_tasks.holds.commands.command import Command, Subject, call
from billing_tasks.holds.replies import LeaseReply, OutboxEntry, parse_entry, text
from billing_tasks.model.account import TokenRow, UserRow

#: settled.lua with 500 events blocks Redis for 2.8 ms (measured); 100 stay below one.
SETTLED_AT_ONCE = 100

#: How long no ring follows after a drainer gave up on PostgreSQL. Longer than its own retry ever waits (30 s and a
#: time-out): with 10 s each shard gained another retrying drainer every 20 s for as long as PostgreSQL was away.
QUIET_AFTER_FAILURE_MS = 60_000


class Draining(Subject):
    """Scripts that a worker runs to settle a shard."""

    def lease(self, shard: int, *, owner: str, lease_ms: int) -> Command[LeaseReply]:
        """lease.lua"""
        k = self.keys
        return call(
            "lease",
            (k.drainer(shard), k.doorbell(shard), k.meta(shard)),
            (owner, lease_ms),
            lambda r: LeaseReply(outcomes.Lease(text(r[0])), int(r[1]), text(r[2]), text(r[3]), int(r[4]), int(r[5])),
        )

    def new_ledger(self, shard: int, *, ledger: str, behind: int | None) -> Command[bool]:
        """new_ledger.lua; True: what was cached counts no more"""
        return call(
            "new_ledger",
            (self.keys.meta(shard),),
            (ledger, "" if behind is None else behind),
            lambda reply: outcomes.NewLedger(text(reply[0])) is outcomes.NewLedger.TURNED,
        )

    def leave(self, shard: int, *, owner: str) -> Command[outcomes.Leave]:
        """leave.lua"""
        k = self.keys
        return call(
            "leave",
            (k.drainer(shard), k.doorbell(shard), k.outbox(shard)),
            (owner,),
            lambda reply: outcomes.Leave(text(reply[0])),
        )

    def hand_over(self, shard: int, *, owner: str, quiet_ms: int) -> Command[outcomes.HandOver]:
        """hand_over.lua"""
        k = self.keys
        return call(
            "hand_over",
            (k.drainer(shard), k.doorbell(shard)),
            (owner, quiet_ms),
            lambda reply: outcomes.HandOver(text(reply[0])),
        )

    def comes_back(self, shard: int, *, at_ms: int) -> Command[int]:
        """Note when a drainer that failed tries again, for people who wait for it."""
        return Command(("HSET", self.keys.meta(shard), "retry_at", at_ms), int)

    def read_outbox(self, shard: int, *, count: int, after: str | None = None) -> Command[list[OutboxEntry]]:
        """The oldest events, or the oldest after an entry; they stay where they are until `settled`."""
        words = ("XRANGE", self.keys.outbox(shard), "-" if after is None else f"({after}", "+", "COUNT", count)
        return Command(words, lambda reply: [parse_entry(raw) for raw in reply])

    def drop(self, shard: int, entries: Sequence[OutboxEntry]) -> Command[tuple[int, int]]:
        """drop.lua for entries that `settled` can't remove; how many were dropped, and how many are there no more"""
        words = [word for entry in entries for word in (entry.entry_id, entry.event, entry.payload)]
        return call("drop", (self.keys.outbox(shard),), tuple(words), lambda reply: (int(reply[0]), int(reply[1])))

    def settled(
        self,
        shard: int,
        *,
        entries: Sequence[OutboxEntry],
        users: Iterable[UserRow],
        tokens: Iterable[TokenRow],
        read_ms: int,
        epoch: str,
        ledger: str = "",
    ) -> Command[tuple[int, int, int] | None]:
        """settled.lua for at most SETTLED_AT_ONCE entries; reply: removed, gone, mismatched.

        None: they are to be booked again, because PostgreSQL was restarted, and perhaps restored, since.
        """
        k = self.keys
        numbers: dict[str, int] = {}
        for user_id, token_id in {(entry.user_id, entry.token_id) for entry in entries if entry.weight}:
            numbers.setdefault(k.user(shard, user_id), len(numbers) + 3)
            numbers.setdefault(k.token(shard, token_id), len(numbers) + 3)
        rows: list[Any] = []
        for user in users:
            number = numbers.setdefault(k.user(shard, user.id), len(numbers) + 3)
            rows += (number, user.version, user.quota, user_attributes(user))
        for token in tokens:
            number = numbers.setdefault(k.token(shard, token.id), len(numbers) + 3)
            rows += (number, token.version, token.remain_quota, token_attributes(token))
        events = [word for entry in entries for word in (entry.entry_id, entry.event)]
        return call(
            "settled",
            (k.meta(shard), k.outbox(shard), *numbers),
            (k.shard(shard), read_ms, epoch, self._idle_seconds, ledger, len(entries), *events, *rows),
            lambda reply: (int(reply[0]), int(reply[1]), int(reply[2])) if reply else None,
        )
