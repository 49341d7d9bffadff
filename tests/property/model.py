"""What must be true, in plain Python: a ledger, the outboxes and the open holds, without a server, a lock or a cache.

It knows nothing of versions, epochs' numbers, leases or caches: those exist to
keep the real thing equal to this one. Requests are named a, b, c and so on (`SLOTS`),
so that a failing example can be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Slot:
    """A request: which user makes it, with which token (ids as the test creates them)."""

    user: int
    token: int


#: Users 1 and 3 share a shard (there are two); token 2 is unlimited; tokens 3 and 4 belong to users 2 and 3.
SLOTS = {
    "a": Slot(1, 1),
    "b": Slot(1, 1),
    "c": Slot(1, 2),
    "d": Slot(2, 3),
    "e": Slot(2, 3),
    "f": Slot(3, 4),
    "w": Slot(1, 3),  # another user's token, of another shard
    "x": Slot(1, 4),  # another user's token, of the same shard
}
OWNERS = {1: 1, 2: 1, 3: 2, 4: 3}
UNLIMITED = {2}
SHARDS = 2


@dataclass(eq=False)
class Filed:
    """An event in an outbox; two of them are never the same one."""

    kind: str  # consume | release | refund | conflict
    slot: str
    weight: int = 0
    held: int = 0
    refund_id: str = ""
    amount: int | None = None  # refund; None: the whole rest
    epoch: int = 0
    refused: bool = False  # the ledger said so when it was last posted


@dataclass
class Account:
    """A user or a token as the books should have it."""

    quota: int
    used: int = 0
    requests: int = 0
    enabled: bool = True


@dataclass(frozen=True)
class Saved:
    """Redis at one moment."""

    holds: dict[str, int]
    closed: dict[str, str]
    outbox: list[list[Filed]]


@dataclass
class Model:
    """The whole truth."""

    users: dict[int, Account]
    tokens: dict[int, Account]
    holds: dict[str, int] = field(default_factory=dict)  # open, in Redis
    closed: dict[str, str] = field(default_factory=dict)  # tombstones: consumed:<quota>, released, expired
    outbox: list[list[Filed]] = field(default_factory=lambda: [[] for _ in range(SHARDS)])
    epochs: list[int] = field(default_factory=lambda: [0] * SHARDS)  # restarts of Redis that were noticed
    charges: dict[str, int] = field(default_factory=dict)  # booked
    with_hold: set[str] = field(default_factory=set)  # charges that were booked as closing a hold
    releases: dict[str, int] = field(default_factory=dict)  # booked: what was held
    refunds: dict[str, tuple[str, int | None, int]] = field(default_factory=dict)  # booked: slot, asked for, given
    own_ids: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # top-ups and corrections

    # -- what Redis does ----------------------------------------------------------------------------------

    def file(self, event: Filed) -> None:
        shard = SLOTS[event.slot].user % SHARDS
        event.epoch = self.epochs[shard]
        self.outbox[shard].append(event)

    def consume(self, slot: str, quota: int) -> str:
        """again | conflict | late | charged"""
        before = self.closed.get(slot, "")
        if before == f"consumed:{quota}":
            return "again"
        if before.startswith("consumed"):
            self.file(Filed("conflict", slot))
            return "conflict"
        held = self.holds.pop(slot, None)
        self.file(Filed("consume", slot, weight=quota, held=held or 0))
        self.closed[slot] = f"consumed:{quota}"
        return "late" if held is None else "charged"

    def close(self, slot: str, how: str) -> int:
        """Give an open hold back: released | expired, which keeps it set aside until it is booked."""
        held = self.holds.pop(slot)
        self.file(Filed("release", slot, weight=held if how == "expired" else 0, held=held))
        self.closed[slot] = how
        return held

    def restart_redis(self, saved: Saved | None) -> None:
        """With what was saved; None: with nothing."""
        saved = saved or Saved({}, {}, [[] for _ in range(SHARDS)])
        self.holds, self.closed = dict(saved.holds), dict(saved.closed)
        self.outbox = [list(events) for events in saved.outbox]
        self.epochs = [epoch + 1 for epoch in self.epochs]

    def save_redis(self) -> Saved:
        """What a file of Redis would hold now."""
        return Saved(dict(self.holds), dict(self.closed), [list(events) for events in self.outbox])

    def read(self, shard: int, count: int, behind: list[Filed]) -> list[Filed]:
        """What a worker finds behind what it is booking: the oldest events, of one epoch."""
        found = [event for event in self.outbox[shard] if event not in behind][:count]
        return [event for event in found if event.epoch == found[0].epoch]

    def settled(self, shard: int, events: list[Filed]) -> None:
        self.outbox[shard] = [event for event in self.outbox[shard] if event not in events]

    # -- counters -----------------------------------------------------------------------------------------

    def held(self, which: str, shard: int, account: int) -> int:
        return sum(quota for slot, quota in self.holds.items() if _touches(slot, which, shard, account))

    def unposted(self, which: str, shard: int, account: int) -> int:
        return sum(event.weight for event in self.outbox[shard] if _touches(event.slot, which, shard, account))

    def bounds(self, which: str, account: int) -> tuple[int, int]:
        """What can surely be reserved, and what can at most: they differ by what is booked but not yet settled."""
        owner = account if which == "user" else OWNERS[account]
        shard, row = owner % SHARDS, (self.users if which == "user" else self.tokens)[account]
        free = row.quota - self.held(which, shard, account)
        pending = {  # the first of equals is charged, and only if it was not before, and only by its owner
            event.slot: event.weight
            for event in reversed(self.outbox[shard])
            if event.kind == "consume"
            and event.slot not in self.charges
            and _touches(event.slot, which, shard, account)
            if OWNERS[SLOTS[event.slot].token] == SLOTS[event.slot].user
        }
        return free - self.unposted(which, shard, account), free - sum(pending.values())

    # -- what the ledger does -----------------------------------------------------------------------------

    def book(self, kind: str, slot: str, quota: int, held: int = 0) -> str:
        """A consume or a release: posted | duplicate | conflict | unknown_token. A hold ends once."""
        payer = SLOTS[slot]
        if OWNERS[payer.token] != payer.user:
            return "unknown_token"
        booked = self.releases if kind == "release" else self.charges
        if slot in booked:
            return "duplicate" if booked[slot] == quota else "conflict"
        if kind == "release" and slot in self.with_hold:
            return "duplicate"
        booked[slot] = quota
        if kind == "release":
            return "posted"
        if held and slot not in self.releases:
            self.with_hold.add(slot)
        for row in (self.users[payer.user], self.tokens[payer.token]):
            row.quota -= quota
            row.used += quota
            row.requests += 1
        return "posted"

    def refund(self, slot: str, refund_id: str, amount: int | None) -> str:
        """posted | duplicate | conflict | no_charge | above_charge"""
        if slot not in self.charges:
            return "no_charge"
        if refund_id in self.refunds:
            return "duplicate" if self.refunds[refund_id][:2] == (slot, amount) else "conflict"
        left = self.charges[slot] - sum(given for of, _, given in self.refunds.values() if of == slot)
        given = left if amount is None else amount
        if given > left or left == 0:
            return "above_charge"
        self.refunds[refund_id] = (slot, amount, given)
        for row in (self.users[SLOTS[slot].user], self.tokens[SLOTS[slot].token]):
            row.quota += given
            row.used -= given
        return "posted"

    def change(self, kind: str, account: int, quota: int, own_id: str) -> str:
        """A top-up or a correction: new | again | conflict"""
        if own_id in self.own_ids:
            return "again" if self.own_ids[own_id] == (kind, account, quota) else "conflict"
        self.own_ids[own_id] = (kind, account, quota)
        (self.tokens if kind == "token" else self.users)[account].quota += quota
        return "new"


def _touches(slot: str, which: str, shard: int, account: int) -> bool:
    payer = SLOTS[slot]
    return payer.user % SHARDS == shard and (payer.user if which == "user" else payer.token) == account
