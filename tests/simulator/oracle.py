"""The oracle: told of every effect that was performed, it says whether the answer was right and quota is safe.

Truly available to a user (or token) at a moment:

    what PostgreSQL has committed
    - open holds of requests that are not charged yet
    - the usage in the outbox that is not booked yet

A hold may be granted within that. Beyond it only by what this Redis can't know: usage that nothing was set
aside for (late, or booked straight into PostgreSQL above its hold) and corrections downwards, each until
a cached account that has it is in Redis. Those are `unknown`, and versions say when they become known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from billing_tasks.holds.commands import Command
from billing_tasks.holds.keys import spread_tags
from billing_tasks.holds.outcomes import Extend, Reserve
from billing_tasks.model.events import Event, Kind
from tests.simulator.books import Books, Charge, Key
from tests.simulator.claims import Claim, demand
from tests.simulator.shard import Filed, Shard

#: version of an account as cached in Redis, None if this run of Redis has none
VersionIn = Callable[[Key], int | None]


@dataclass(slots=True)
class Unknown:
    """Quota that left PostgreSQL and that no counter in Redis accounts for."""

    amount: int
    version: int


@dataclass(slots=True)
class Oracle:
    """The truth about one history."""

    shards: list[Shard]
    version_in: VersionIn
    books: Books = field(init=False)
    tags: list[str] = field(init=False)  # of the shards, in their keys
    unknown: dict[Key, list[Unknown]] = field(default_factory=dict)
    versions_of: dict[str, dict[Key, int]] = field(default_factory=dict)  # of the accounts, by the charge
    set_aside: set[tuple[str, str, str]] = field(default_factory=set)  # files of the spool that a person looks at
    newest: dict[Key, tuple[int, int]] = field(default_factory=dict)  # epoch and version it was last seen cached with
    destroyed: set[tuple[str, str, str]] = field(default_factory=set)  # see identity()
    #: what each restore took, and the bodies that still waited in an outbox then
    forgotten_books: list[tuple[Books, set[tuple[str, str]]]] = field(default_factory=list)
    accidents: int = 0
    is_aware: Callable[[int], bool] = lambda _: True  # whether a shard of Redis knows PostgreSQL as it is
    forgotten: bool = False  # PostgreSQL was restored to an earlier time
    left: list[tuple[int, Filed]] = field(default_factory=list)  # what left an outbox, of which shard
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.books = Books(self)
        self.tags = spread_tags(len(self.shards))

    def shard_of(self, user: int) -> Shard:
        return self.shards[user % len(self.shards)]

    def is_open(self, user: int, request: str) -> bool:
        hold = self.shard_of(user).holds.get(request)
        return hold is not None and hold.state == "held"

    def is_due(self, user: int, request: str) -> bool:
        return self.is_open(user, request) and self.shard_of(user).due.get(request, False)

    # -- what is truly available --------------------------------------------------------------------------

    def available(self, key: Key) -> int:
        """In quota; see the top of this file."""
        which, account = key
        row = self.books.account(key)
        shard = self.shard_of(account if row.owner is None else row.owner)
        free = row.quota
        for request, hold in shard.holds.items():
            if hold.state == "held" and (hold.user if which == "user" else hold.token) == account:
                free -= 0 if request in self.books.charges else hold.quota
        pending: dict[str, int] = {}
        for filed in shard.outbox:
            event = filed.event
            mine = (event.user_id if which == "user" else event.token_id) == account
            if mine and filed.kind == "consume" and event.request_id not in self.books.charges:
                # Of several bodies for one request one is charged; the smallest, for all we know.
                pending[event.request_id] = min(filed.weight, pending.get(event.request_id, filed.weight))
        return free - sum(pending.values())

    def held(self, user: int, token: int, amount: int) -> None:
        """A hold was granted, and is not in the shard yet."""
        if not self.is_aware(user % len(self.shards)):
            return  # granted by what PostgreSQL had before it was restored
        for key in (("user", user), ("token", token)):
            row = self.books.account(key)
            version = self.version_in(key)
            demand(version is not None, Claim.CACHE, f"a hold was granted and {key} is not cached")
            known = self.books.versions.get(key, {}).get(version or 0)
            demand(known is not None, Claim.CACHE, f"{key} has version {version}, which PostgreSQL never had")
            demand(known is not None and known[1] == "enabled", Claim.ANSWERS, f"{key} is cached as {known}")
            if not row.unlimited:
                self.promised(key, amount, version or 0)

    def promised(self, key: Key, amount: int, version: int) -> None:
        """An account cached at this version lets so much be reserved, or has just let it."""
        unknown = self.unknown.get(key, [])
        unknown[:] = [item for item in unknown if item.version > version]
        free, slack = self.available(key), sum(item.amount for item in unknown)
        detail = f"{amount} of {key} can be granted, {free} is available (and {slack} unknown to this Redis)"
        demand(amount <= free + slack, Claim.NO_OVERSPEND, detail)

    def grew(self, key: Key, epoch: int, version: int) -> None:
        """A cached account was seen. In one run of Redis, and while it stays, it only gets newer."""
        seen_epoch, seen_version = self.newest.get(key, (0, 0))
        older = seen_epoch == epoch and version < seen_version
        demand(not older, Claim.CACHE, f"{key} went from version {seen_version} back to {version}")
        self.newest[key] = epoch, version

    def charged(self, request: str, charge: Charge, versions: dict[Key, int]) -> None:
        """A charge was committed. What is not set aside for it in Redis, Redis can't know."""
        self.versions_of[request] = versions
        for key, version in versions.items():
            self._note_unknown(key, charge.quota - self._set_aside(request, charge, key), version)

    def corrected(self, key: Key, change: int, version: int) -> None:
        """An operator took quota away."""
        self._note_unknown(key, -change, version)

    def _note_unknown(self, key: Key, amount: int, version: int) -> None:
        if amount > 0:
            self.unknown.setdefault(key, []).append(Unknown(amount, version))

    def _set_aside(self, request: str, charge: Charge, key: Key) -> int:
        released = request in self.books.releases
        return self.shard_of(charge.user).set_aside_for(request, *key, released=released)

    def _closing(self, request: str, close: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """A charged request may give up what was set aside for it, on the word of its gateway."""
        charge = self.books.charges.get(request)
        if charge is None:
            return close()
        versions = self.versions_of[request]
        before = {key: self._set_aside(request, charge, key) for key in versions}
        right = close()
        for key, version in versions.items():
            lost = before[key] - self._set_aside(request, charge, key)
            self._note_unknown(key, min(lost, charge.quota), version)
        return right

    # -- Redis --------------------------------------------------------------------------------------------

    def performed(self, command: Command[Any], reply: Any) -> None:
        """One command was applied; its answer may still get lost."""
        if command.script is None:
            self._plain(command.words, reply)
            return
        keys = int(command.words[2])
        at = self._shard_in(command.words[3])
        args = command.words[3 + keys :]
        judge = getattr(self, f"_{command.script.name}", None)
        if judge is not None:
            judge(at, args, reply)

    def _shard_in(self, key: str) -> Shard:
        return self.shards[self.tags.index(key.split("{", 1)[1].split("}", 1)[0])]

    def _place(self, at: Shard) -> int:
        return next(place for place, shard in enumerate(self.shards) if shard is at)

    def _plain(self, words: tuple[Any, ...], reply: Any) -> None:
        if words[0] == "XRANGE":
            entries = reply if isinstance(reply, list) else [reply] if reply else []
            self._shard_in(words[1]).read(entries, int(words[5]), after=words[2].removeprefix("("))
        elif words[0] == "XLEN":
            right = len(self._shard_in(words[1]).outbox)
            demand(reply == right, Claim.ANSWERS, f"{reply} events wait, right is {right}")

    def _reserve(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        request, user, token, amount, _, backlog_limit, *_ = args
        right = at.reserve(request, user, token, amount, backlog_limit)
        free = (Reserve.IDEMPOTENCY_CONFLICT, Reserve.ALREADY_HELD, Reserve.HOLD_CLOSED, Reserve.BACKLOG_FULL)
        wrong = reply.outcome is not right if right else reply.outcome in free
        demand(not wrong, Claim.ANSWERS, f"reserving {request}: {reply.outcome}, right is {right}")
        self.seen[f"reserve {reply.outcome}"] += 1
        if reply.outcome is Reserve.HELD:
            self.held(user, token, amount)
            at.opened(request, user, token, amount)

    def _extend(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        request, user, token, total, *_ = args
        right = at.extend(request, user, token, total)
        free = (Extend.NO_HOLD, Extend.IDEMPOTENCY_CONFLICT, Extend.HOLD_CLOSED)
        wrong = reply.outcome is not right if right else reply.outcome in free
        demand(not wrong, Claim.ANSWERS, f"extending {request}: {reply.outcome}, right is {right}")
        self.seen[f"extend {reply.outcome}"] += 1
        if reply.outcome is Extend.EXTENDED:
            growth = total - at.holds[request].quota
            if growth > 0:
                self.held(user, token, growth)
            self._closing(request, lambda: at.extended(request, total))

    def _consume(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        request, user, token, quota, fingerprint, payload, *_ = args
        right = self._closing(request, lambda: at.consume(request, user, token, quota, fingerprint, payload))
        self._closed(f"consuming {request}", right, reply)

    def _release(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        request, user, token, payload, *_ = args
        right = self._closing(request, lambda: at.release(request, user, token, payload))
        self._closed(f"releasing {request}", right, reply)

    def _expire(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        request, user, token, payload, *_ = args
        self._closed(f"expiring {request}", at.expire(request, user, token, payload), reply)

    def _closed(self, doing: str, right: tuple[Any, ...], reply: Any) -> None:
        said = (reply.outcome, reply.held, int(reply.ring))
        demand(said == right, Claim.ANSWERS, f"{doing}: {said}, right is {right}")
        self.seen[f"{doing.split(maxsplit=1)[0]} {reply.outcome}"] += 1

    def _renew(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        right = at.renew(args[0])
        demand(reply[0] is right, Claim.ANSWERS, f"renewing {args[0]}: {reply[0]}, right is {right}")
        self.seen[f"renewing {right}"] += 1

    def _refund(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        right = at.refund(*args[:3])
        demand(int(reply) == right, Claim.ANSWERS, f"filing a refund: ring {reply}, right is {right}")

    def _ring(self, at: Shard, _: tuple[Any, ...], reply: Any) -> None:
        right = bool(at.ring())
        demand(reply is right, Claim.ANSWERS, f"the doorbell was free: {reply}, right is {right}")

    def _recount(self, at: Shard, args: tuple[Any, ...], _: Any) -> None:
        which, account = args[1], int(args[2])
        listed, _ = at.recount(which, account)
        right = at.held(which, account)
        demand(listed == right, Claim.COUNTERS, f"a repair sets held of {which} {account} to {listed}, not to {right}")

    def _reschedule(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        hold = at.holds.get(args[0])
        right = hold is not None and hold.state == "held" and (args[0] not in at.due or args[0] in at.ahead)
        demand(reply is right, Claim.ANSWERS, f"rescheduling {args[0]}: {reply}, right is {right}")
        if right:
            at.due[args[0]] = False
            at.ahead.discard(args[0])

    def _lease(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        right = at.lease(args[0])
        demand(reply.outcome is right, Claim.ANSWERS, f"leasing: {reply.outcome}, right is {right}")
        self.seen[f"lease {right}"] += 1

    def _leave(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        right = at.leave(args[0])
        demand(reply is right, Claim.ANSWERS, f"leaving: {reply}, right is {right}")

    def _hand_over(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        right = at.hand_over(args[0])
        demand(reply is right, Claim.ANSWERS, f"handing over: {reply}, right is {right}")

    def _load(self, _: Shard, __: tuple[Any, ...], reply: Any) -> None:
        self.seen[f"load {reply}"] += 1

    def _settled(self, at: Shard, args: tuple[Any, ...], reply: Any) -> None:
        if reply is None:  # booked by another run than the one known here
            demand(self.forgotten, Claim.ANSWERS, "settled answers that PostgreSQL is another run")
            return
        count = int(args[5])
        left, gone = at.settled([args[6 + i * 2] for i in range(count)])
        right = (len(left), gone, 0)
        demand(reply == right, Claim.ANSWERS, f"settled answers {reply}, right is {right} (removed, gone, mismatched)")
        self.seen["settled, gone before"] += gone
        for filed in left:
            self._left_the_outbox(self._place(at), filed)

    def _left_the_outbox(self, at: int, filed: Filed) -> None:
        self.left.append((at, filed))
        kept = self.books.kept(filed.event)
        fine = kept or (filed.kind != Kind.CONFLICT and self.books.booked(filed.event))
        if not fine and not self.is_aware(at):  # booked by the run before, and not heard of the next one
            self.destroyed.add(identity(filed.event))
            return
        demand(fine, Claim.BOOKED_OR_KEPT, f"{filed.what} is neither")
        if kept and filed.weight and filed.event.request_id in self.versions_of:
            # Refused, kept, and booked by another worker meanwhile: the one that removes it has no rows that say so.
            for key, version in self.versions_of[filed.event.request_id].items():
                self._note_unknown(key, filed.weight, version)

    # -- accidents ----------------------------------------------------------------------------------------

    def redis_became(self, shards: list[Shard]) -> list[tuple[int, Filed]]:
        """Redis holds something else now; returns what is in no outbox any more, with its shard."""
        self.accidents += 1
        gone = []
        for at, (before, after) in enumerate(zip(self.shards, shards, strict=True)):
            back = set(after.outbox)
            for filed in before.outbox:
                if filed in back:
                    continue
                gone.append((at, filed))
                if not self.is_recorded(filed):
                    self.destroyed.add(identity(filed.event))
            after.run = before.run + 1
        self.shards[:] = shards
        self.unknown.clear()  # whatever is loaded from now on has it
        return gone

    def is_recorded(self, filed: Filed) -> bool:
        """Booked or kept, by whatever way it came to PostgreSQL."""
        booked = filed.kind != Kind.CONFLICT and self.books.booked(filed.event)
        return booked or self.books.kept(filed.event)

    def accounted_for(self, event: Event, *, sent: bool) -> bool:
        """Whether something that was accepted ended anywhere. `sent`: as a message, which may be kept as it came."""
        books = self.books
        if sent and any(key[:2] == (str(event.kind), event.request_id) for key in books.dead_letters):
            return True
        conflict = ("conflict", event.request_id, event.fingerprint) in books.dead_letters
        gone = identity(event) in self.destroyed | self.set_aside
        body = (event.request_id, event.fingerprint)
        forgotten = any(
            body not in waiting and (before.booked(event) or before.kept(event))
            for before, waiting in self.forgotten_books
        )
        return conflict or books.booked(event) or books.kept(event) or gone or forgotten


def identity(event: Event) -> tuple[str, str, str]:
    """What an accident can destroy: a request's usage in this very body, or a refund."""
    kind = "consume" if event.kind is Kind.CONFLICT else str(event.kind)
    return kind, event.request_id, event.refund_id or event.fingerprint
