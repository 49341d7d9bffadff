"""What a shard of Redis must hold: open holds, tombstones, the outbox, the drainer. Plain Python, no cache, no epochs.

Each method is one script and returns what the script must answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from billing_tasks.holds.outcomes import Consume, Expire, Extend, HandOver, Lease, Leave, Release, Renew, Reserve
from billing_tasks.holds.replies import OutboxEntry
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from tests.simulator.claims import Claim, demand


@dataclass(frozen=True, slots=True)
class Hold:
    """An open hold, or a tombstone if its state is not "held"."""

    state: str
    user: int
    token: int
    quota: int
    fingerprint: str = "-"
    asked: int | None = None  # what was asked for first, if it was changed since

    @property
    def asked_first(self) -> int:
        return self.quota if self.asked is None else self.asked


@dataclass(eq=False, slots=True)
class Filed:
    """An event in the outbox; two of them are never the same one."""

    kind: str  # as the script wrote it
    event: Event  # as the ledger must get it
    weight: int
    held: int
    run: int  # of Redis, in which it was filed
    entry_id: str | None = None  # known once a worker read it

    @property
    def what(self) -> str:
        return f"{self.kind} of {self.event.request_id}"


@dataclass(slots=True)
class Shard:
    """One shard as it is now. `copy` keeps it for the day an older file comes back."""

    holds: dict[str, Hold] = field(default_factory=dict)
    due: dict[str, bool] = field(default_factory=dict)  # request -> its time has come
    outbox: list[Filed] = field(default_factory=list)
    drainer: str | None = None
    doorbell: bool = False
    run: int = 0  # of Redis, counted from 0
    #: (which, account) -> what was added to held and to unposted by hand
    damage: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)

    ahead: set[str] = field(default_factory=set)  # open holds that are due in ten years, by a clock that ran ahead

    def copy(self) -> Shard:
        return replace(
            self,
            holds=dict(self.holds),
            due=dict(self.due),
            outbox=list(self.outbox),
            damage=dict(self.damage),
            ahead=set(self.ahead),
        )

    @property
    def dated_ahead(self) -> set[str]:
        """Of `ahead` what is open still."""
        return {request for request in self.ahead if request in self.due and self.holds[request].state == "held"}

    @property
    def unlisted(self) -> list[str]:
        """Open holds that no sweep would find."""
        return [request for request, hold in self.holds.items() if hold.state == "held" and request not in self.due]

    # -- sums ---------------------------------------------------------------------------------------------

    def counters(self, which: str, account: int) -> tuple[int, int]:
        """What `held` and `unposted` must be."""
        held, unposted = self.damage.get((which, account), (0, 0))
        return self.held(which, account) + held, self.unposted(which, account) + unposted

    def held(self, which: str, account: int) -> int:
        """The sum of an account's open holds."""
        return sum(
            hold.quota
            for hold in self.holds.values()
            if hold.state == "held" and (hold.user if which == "user" else hold.token) == account
        )

    def unposted(self, which: str, account: int) -> int:
        """The sum of its events' weights."""
        return sum(
            filed.weight
            for filed in self.outbox
            if (filed.event.user_id if which == "user" else filed.event.token_id) == account
        )

    def set_aside_for(self, request: str, which: str, account: int, *, released: bool) -> int:
        """What an account's available quota lacks because of this request: its hold and its events.

        `released`: the ledger has booked its release, so that event holds nothing back for what is booked later.
        """
        events = [f for f in self.outbox if f.event.request_id == request and not (released and f.kind == "release")]
        weights = sum(f.weight for f in events if (f.event.user_id if which == "user" else f.event.token_id) == account)
        hold = self.holds.get(request)
        if hold is None or hold.state != "held" or (hold.user if which == "user" else hold.token) != account:
            return weights
        return weights + hold.quota

    # -- scripts ------------------------------------------------------------------------------------------

    def reserve(self, request: str, user: int, token: int, amount: int, backlog_limit: int) -> Reserve | None:
        """None: it depends on the cached accounts."""
        hold = self.holds.get(request)
        if hold is not None:
            if (hold.user, hold.token, hold.asked_first) != (user, token, amount):
                return Reserve.IDEMPOTENCY_CONFLICT
            return Reserve.ALREADY_HELD if hold.state == "held" else Reserve.HOLD_CLOSED
        return Reserve.BACKLOG_FULL if len(self.outbox) >= backlog_limit else None

    def opened(self, request: str, user: int, token: int, amount: int) -> None:
        self.holds[request] = Hold("held", user, token, amount)
        self.due[request] = False

    def extend(self, request: str, user: int, token: int, total: int) -> Extend | None:
        """None: it depends on the cached accounts."""
        hold = self.holds.get(request)
        if hold is None:
            return Extend.NO_HOLD
        if (hold.user, hold.token) != (user, token):
            return Extend.IDEMPOTENCY_CONFLICT
        if hold.state != "held":
            return Extend.HOLD_CLOSED
        return Extend.EXTENDED if total <= hold.quota else None

    def extended(self, request: str, total: int) -> tuple[Any, ...]:
        hold = self.holds[request]
        self.holds[request] = replace(hold, quota=total, asked=hold.asked_first)
        self.due[request] = False
        return ()

    def consume(self, request: str, user: int, token: int, quota: int, print_: str, payload: bytes) -> tuple[Any, ...]:
        event, hold = _whole(payload, Kind.CONSUME, request, user, token, quota), self.holds.get(request)
        if hold is not None and hold.state == "consumed" and hold.fingerprint == print_:
            return Consume.ALREADY_CONSUMED, 0, 0
        if hold is not None and (hold.state == "consumed" or (hold.user, hold.token) != (user, token)):
            event.kind = Kind.CONFLICT
            self._file("conflict", event, 0, 0)
            return Consume.IDEMPOTENCY_CONFLICT, 0, self.ring()
        held = hold.quota if hold is not None and hold.state == "held" else 0
        event.held_quota = held
        self._file("consume", event, quota, held)
        if hold is not None and hold.state == "held":
            self.due.pop(request, None)
        outcome = Consume.CONSUMED if hold is not None and hold.state == "held" else Consume.CONSUMED_LATE
        self.holds[request] = Hold("consumed", user, token, held, print_, hold.asked if hold else None)
        return outcome, held, self.ring()

    def release(self, request: str, user: int, token: int, payload: bytes) -> tuple[Any, ...]:
        hold = self.holds.get(request)
        if hold is None:
            return Release.NO_HOLD, 0, 0
        if (hold.user, hold.token) != (user, token):
            return Release.IDEMPOTENCY_CONFLICT, 0, 0
        if hold.state == "consumed":
            return Release.ALREADY_CONSUMED, 0, 0
        if hold.state != "held":
            return Release.ALREADY_RELEASED, 0, 0
        self._close("released", request, hold, 0, payload)
        return Release.RELEASED, hold.quota, self.ring()

    def expire(self, request: str, user: int, token: int, payload: bytes) -> tuple[Any, ...]:
        hold = self.holds.get(request)
        if hold is None or hold.state != "held" or (hold.user, hold.token) != (user, token):
            if hold is None or hold.state != "held":
                self.due.pop(request, None)
            return Expire.CLOSED, 0, 0
        if not self.due.get(request, True):
            return Expire.NOT_DUE, 0, 0
        self._close("expired", request, hold, hold.quota, payload)
        return Expire.EXPIRED, hold.quota, self.ring()

    def renew(self, request: str) -> Renew:
        hold = self.holds.get(request)
        if hold is None:
            return Renew.NO_HOLD
        if hold.state != "held":
            return Renew.HOLD_CLOSED
        self.due[request] = False
        return Renew.RENEWED

    def refund(self, request: str, user: int, payload: bytes) -> int:
        self._file("refund", _whole(payload, Kind.REFUND, request, user, 0, None), 0, 0)
        return self.ring()

    def ring(self) -> int:
        """1: the doorbell was free, and is set now."""
        rung, self.doorbell = self.doorbell, True
        return int(not rung)

    def lease(self, owner: str) -> Lease:
        if self.drainer not in (None, owner):
            return Lease.TAKEN
        before, self.drainer, self.doorbell = self.drainer, owner, True
        return Lease.RENEWED if before else Lease.ACQUIRED

    def leave(self, owner: str) -> Leave:
        if self.drainer != owner:
            return Leave.LOST
        if self.outbox:
            return Leave.NOT_EMPTY
        self.drainer, self.doorbell = None, False
        return Leave.LEFT

    def hand_over(self, owner: str) -> HandOver:
        if self.drainer != owner:
            return HandOver.LOST
        self.drainer, self.doorbell = None, True
        return HandOver.LEFT

    def recount(self, which: str, account: int) -> tuple[int, int]:
        """The sums that a repair writes; it finds holds by the list of what is due."""
        self.damage.pop((which, account), None)
        listed = sum(
            hold.quota
            for request, hold in self.holds.items()
            if hold.state == "held"
            and request in self.due
            and (hold.user if which == "user" else hold.token) == account
        )
        return listed, self.unposted(which, account)

    def settled(self, named: list[str]) -> tuple[list[Filed], int]:
        """Which events leave; how many were gone before."""
        found = {filed.entry_id: filed for filed in self.outbox if filed.entry_id in set(named)}
        self.outbox = [filed for filed in self.outbox if filed.entry_id not in found]
        return list(found.values()), len(set(named)) - len(found)

    def read(self, entries: list[OutboxEntry], count: int, after: str) -> None:
        """Compare what a reader found with the oldest events after that one; from now on they can be named."""
        right = [f for f in self.outbox if after == "-" or not f.entry_id or _order(f.entry_id) > _order(after)][:count]
        found = [(e.kind, e.request_id, e.user_id, e.token_id, e.weight, e.held) for e in entries]
        wanted = [(f.kind, f.event.request_id, f.event.user_id, f.event.token_id, f.weight, f.held) for f in right]
        demand(found == wanted, Claim.ANSWERS, f"the outbox holds {found}, right is {wanted}")
        for filed, entry in zip(right, entries, strict=True):
            demand(filed.entry_id in (None, entry.entry_id), Claim.ANSWERS, f"{filed.what} changed its number")
            filed.entry_id = entry.entry_id

    def _close(self, state: str, request: str, hold: Hold, weight: int, payload: bytes) -> None:
        event = _whole(payload, Kind.RELEASE, request, hold.user, hold.token, hold.quota)
        self._file("release", event, weight, hold.quota)
        self.due.pop(request, None)
        self.holds[request] = Hold(state, hold.user, hold.token, hold.quota, asked=hold.asked)

    def _file(self, kind: str, event: Event, weight: int, held: int) -> None:
        self.outbox.append(Filed(kind, event, weight, held, self.run))


def _whole(payload: bytes, kind: Kind, request: str, user: int, token: int, quota: int | None) -> Event:
    """The event that header and payload are together; quota None: the payload has it."""
    event = events.decode(payload)
    event.kind, event.request_id, event.user_id, event.token_id = kind, request, user, token
    event.quota = event.quota if quota is None else quota
    return event


def _order(entry_id: str) -> tuple[int, int]:
    epoch, seq = entry_id.split("-")
    return int(epoch), int(seq)
