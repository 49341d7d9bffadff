"""Settle: book what waits in a shard's outbox.

PostgreSQL first, Redis second. Events stay in the outbox until the ledger has
committed them; a crash between the two leaves them there, posting again answers
"duplicate", and then they are removed. Of a long outbox both work at once, on
neighbouring batches. One drainer per shard at a time is a
matter of thrift: two would book nothing twice.

An event that can't be booked never stops its batch: the batch is halved down to
it, it becomes a dead letter, and the others post.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from billing_tasks.errors import BillingError, InvalidRequest, OutboxStuck, Unavailable
from billing_tasks.flows.account_cache import meet_server
from billing_tasks.flows.dead_letters import record
from billing_tasks.flows.dead_letters.telling import shown
from billing_tasks.flows.effects import InLedger, Meanwhile, Ring
from billing_tasks.flows.settlement.batch import Batch
from billing_tasks.flows.settlement.batch_size import SIZES
from billing_tasks.flows.settlement.chunks import by_user
from billing_tasks.holds.commands import QUIET_AFTER_FAILURE_MS, Commands, together
from billing_tasks.holds.outcomes import Lease, Leave
from billing_tasks.holds.replies import LeaseReply, OutboxEntry
from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.account import TokenRow
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import OutboxPart, PostOutcome
from billing_tasks.settings import Settings

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Drained:
    """What one run of a drainer did. `lag_ms` is the age of the oldest event it met."""

    posted: int = 0
    duplicates: int = 0
    dead_lettered: int = 0
    request_ids: list[str] = field(default_factory=list)
    refunds: list[dict[str, object]] = field(default_factory=list)  # the first 20
    lag_ms: int = 0
    taken: bool = False  # another drainer is at work

    def as_dict(self) -> dict[str, object]:
        """What Flower shows as the task's result."""
        if self.taken:
            return {"taken": True}
        return {
            "posted": self.posted,
            "duplicates": self.duplicates,
            "dead_lettered": self.dead_lettered,
            "request_ids": self.request_ids,
            **({"refunds": self.refunds} if self.refunds else {}),
            "lag_ms": self.lag_ms,
        }


@dataclass(slots=True)
class _Drainer:
    """One run: which shard, under which name, until when."""

    shard: int
    owner: str
    commands: Commands
    settings: Settings
    now: Callable[[], float]
    deadline: float
    done: Drained = field(default_factory=Drained)
    again: bool = False  # a batch stayed: PostgreSQL was restarted since it was booked, and may have been restored

    @property
    def in_time(self) -> bool:
        return self.now() < self.deadline


async def drain(shard: int, *, owner: str, commands: Commands, settings: Settings, now: Callable[[], float]) -> Drained:
    """Book the shard's outbox until it is empty or the time budget is used up. Raises Unavailable.

    `owner` names this run; `now` is a monotonic clock in seconds.
    """
    d = _Drainer(shard, owner, commands, settings, now, deadline=now() + settings.settle_budget_seconds)
    try:
        while True:
            batch = await _take(d)
            if batch is None:
                d.done.taken = not d.done.request_ids
                return d.done
            d.again = False
            more = bool(batch.entries) and (await _settle(batch, d))
            if (more or d.again) and d.in_time:
                continue
            if (await commands.leave(shard, owner=owner)) is not Leave.NOT_EMPTY:
                return d.done
            if not d.in_time:
                await commands.hand_over(shard, owner=owner, quiet_ms=settings.doorbell_ms)
                await Ring(shard, d.done.request_ids[-1] if d.done.request_ids else "")
                return d.done
    except Unavailable:
        await _let_go(shard, owner, commands)
        raise


async def comes_back(shard: int, *, at_ms: int, commands: Commands) -> None:
    """Note when a drainer that failed tries again, for people who wait for it. Nothing is lost if Redis is away."""
    with suppress(Unavailable):
        await commands.comes_back(shard, at_ms=at_ms)


async def _let_go(shard: int, owner: str, commands: Commands) -> None:
    try:
        await commands.hand_over(shard, owner=owner, quiet_ms=QUIET_AFTER_FAILURE_MS)
    except Unavailable:
        return  # Redis is away too; the lease runs out by itself


async def _take(d: _Drainer, behind: Batch | None = None) -> Batch | None:
    """The oldest events, or those behind a batch that is still in the outbox. None: another drainer is at work."""
    lease = await d.commands.lease(d.shard, owner=d.owner, lease_ms=d.settings.lease_ms)
    if lease.outcome is Lease.TAKEN:
        return None
    after = behind.entries[-1].entry_id if behind else None
    size = SIZES.of(d.shard, d.settings.batch_size)
    entries = await d.commands.read_outbox(d.shard, count=size, after=after)
    last = len(entries) < size
    if entries and entries[-1].epoch != entries[0].epoch:
        entries, last = [entry for entry in entries if entry.epoch == entries[0].epoch], False
    batch = Batch(d.shard, lease, entries, last, await _given(lease, entries, d))
    for entry in entries:  # here and not when it is booked: PostgreSQL may be busy with the batch before it
        event = _decode(entry, batch)
        if event is not None and event.kind is Kind.REFUND:
            batch.refund(event)
        elif event is not None:
            batch.bookable.append((entry, event))
    return batch


async def _given(lease: LeaseReply, entries: list[OutboxEntry], d: _Drainer) -> tuple[int, int]:
    """The highest epoch and number that an event has. Asked for again if the outbox shows a higher one."""
    given = int(lease.epoch.partition(".")[0]), lease.seq
    if entries and (entries[-1].epoch, entries[-1].seq) > given:
        state = await d.commands.epoch(d.shard)
        given = state.epoch, state.seq
    return given


async def _settle(batch: Batch, d: _Drainer) -> bool:
    """Book a batch, and those behind it; returns whether there may be more.

    While PostgreSQL books one, Redis removes the one before it and hands out the one
    after it. A crash then leaves two that are booked and still in the outbox.
    """
    before: Batch | None = None
    current: Batch | None = batch
    while current is not None and current.entries:
        meanwhile = _Meanwhile(before, current, d)
        await _book(current, meanwhile)
        if meanwhile.error is not None:
            raise meanwhile.error
        before, current = current, meanwhile.after
    if before is None:
        return False
    await _settled(before, d)
    return current is None and not before.last  # else a look behind it found nothing


class _Meanwhile:
    """What is to be done on Redis while a batch is booked: `before` leaves, `after` is read. Done once."""

    def __init__(self, before: Batch | None, current: Batch, d: _Drainer) -> None:
        self.before, self.d = before, d
        self.ahead = not current.last and d.in_time
        self.current = current
        self.after: Batch | None = None
        self.error: BillingError | None = None
        self.pending = before is not None or self.ahead

    async def work(self) -> None:
        self.pending = False
        try:
            if self.before is not None:
                await _settled(self.before, self.d)
            if self.ahead:
                self.after = await _take(self.d, behind=self.current)
        except BillingError as exc:
            self.error = exc


async def _book(batch: Batch, meanwhile: _Meanwhile) -> None:
    """In PostgreSQL, as entries or as dead letters."""
    try:
        await _post(batch.bookable, batch, meanwhile)
    except Unavailable as exc:
        SIZES.failed(batch.shard, len(batch.bookable), exc)
        raise
    SIZES.posted(batch.shard, meanwhile.d.settings.batch_size)
    for event in batch.refunds:  # after the batch's consumes: a refund's charge may be among them
        await _post_refund(event, batch)
    if batch.cover_later and batch.server is None:
        # Nothing was booked, so no answer says which run of PostgreSQL keeps them: a restore between here and the call
        # that covers them would leave their numbers accounted for and what was kept forgotten.
        batch.answered(await InLedger(Ledger.post_outboxes, [], [OutboxPart(batch.shard)]))
    batch.numbers = await record.keep(batch.refused)  # before their events leave the outbox
    if batch.cover_later:  # a crash before this, and the loss of the outbox, leave numbers that are missed
        batch.answered(await InLedger(Ledger.post_outboxes, [], [batch.covers_at_last()]))
    server, lease = batch.server, batch.lease
    if server is not None and (lease.ledger not in ("", server.name) or server.last_version < lease.version):
        await meet_server(server, meanwhile.d.commands)  # before their weight leaves `unposted`


def _decode(entry: OutboxEntry, batch: Batch) -> Event | None:
    """Header and payload as one event; None if it became a dead letter."""
    try:
        event = entry.read()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidRequest) as exc:
        batch.refuse(record.of_entry(entry, str(exc)))
        return None
    if event.kind is Kind.CONFLICT:
        batch.refuse(record.of_outcome(event, PostOutcome.CONFLICT))
        return None
    if event.details and (unread := record.of_unread(event)) is not None:
        batch.refuse(unread)  # and booked
    return event


async def _post(items: list[tuple[OutboxEntry, Event]], batch: Batch, meanwhile: _Meanwhile) -> None:
    """Book consumes and releases; halve what the ledger can't store until the one is found."""
    posting = [event for _, event in items]
    call = InLedger(Ledger.post_outboxes, posting, [batch.covers()])
    try:
        answer = await (Meanwhile(call, meanwhile.work) if meanwhile.pending else call)
    except LedgerRefusedData as exc:
        batch.cover_later = True  # half by half
        if not items:
            raise
        if len(items) == 1:
            batch.refuse(await record.of_refusal(posting[0], exc))
            return
        half = len(items) // 2
        await _post(items[:half], batch, meanwhile)
        await _post(items[half:], batch, meanwhile)
        return
    batch.answered(answer, posting)


async def _post_refund(event: Event, batch: Batch) -> None:
    try:
        answer = await InLedger(Ledger.post_refund, batch.shard, event)
    except LedgerRefusedData as exc:
        batch.refuse(await record.of_refusal(event, exc))
        return
    outcome = answer.outcomes[0]
    batch.refunded.append((event, outcome))
    batch.answered(answer)
    if not outcome.booked:
        batch.refuse(await record.of_refusal(event, outcome))


async def _settled(batch: Batch, d: _Drainer) -> None:
    """Remove the events from the outbox, each chunk with the rows of the accounts it names."""
    calls = []
    # Refunds bring rows that no entry names; an event that named another user's token brings a row whose
    # cached row lies in another shard, with another epoch: not this batch's to write.
    of_shard = d.commands.keys.shard_of
    left_users = {row.id: row for row in batch.users.values() if of_shard(row.id) == d.shard}
    left_tokens = {row.id: row for row in batch.tokens.values() if of_shard(row.user_id) == d.shard}
    tokens_of: dict[int, list[TokenRow]] = {}
    for row in left_tokens.values():
        tokens_of.setdefault(row.user_id, []).append(row)
    chunks = by_user(batch.entries)
    for chunk in chunks:
        user_ids = {entry.user_id for entry in chunk}
        users = [left_users.pop(user_id) for user_id in user_ids if user_id in left_users]
        tokens = [row for user_id in user_ids for row in tokens_of.pop(user_id, ())]
        if chunk is chunks[-1]:
            users += left_users.values()
            tokens += [row for rows in tokens_of.values() for row in rows]
        calls.append(
            d.commands.settled(
                d.shard,
                entries=chunk,
                users=users,
                tokens=tokens,
                read_ms=batch.lease.now_ms,
                epoch=batch.lease.epoch,
                ledger=batch.server.name if batch.server else "",
            )
        )
    replies = await together(calls)
    removed = [reply for reply in replies if reply is not None]
    if len(removed) < len(replies):
        d.again = True
        return
    stay = sum(mismatched for _, _, mismatched in removed)
    dropped, elsewhere = await _drop(batch, d) if stay else (0, 0)
    if not dropped + elsewhere and not any(taken + gone for taken, gone, _ in removed):
        # Reading them again would book nothing and remove nothing, for ever.
        first, count = batch.entries[0].entry_id, len(batch.entries)
        raise OutboxStuck(f"Outbox {d.shard}: none of {count} events can be removed, from {first} on.")
    await _report(batch, d.done)


async def _drop(batch: Batch, d: _Drainer) -> tuple[int, int]:
    """Remove the events that `settled` left: booked or kept by now, and of a form that no script writes.

    How many were removed, and how many another drainer had removed.
    """
    dropped, gone = await d.commands.drop(d.shard, batch.entries)
    if dropped:
        log.error("outbox %s: %s entries are booked or kept, and removed; billing did not write them", d.shard, dropped)
    return dropped, gone


async def _report(batch: Batch, done: Drained) -> None:
    for dead_letter, number in zip(batch.refused, batch.numbers, strict=True):
        await _show_in_flower(dead_letter, number)
    done.posted += batch.outcomes[PostOutcome.POSTED]
    done.duplicates += batch.outcomes[PostOutcome.DUPLICATE]
    done.dead_lettered += len(batch.refused)
    for event, outcome in batch.refunded[: max(0, 20 - len(done.refunds))]:
        done.refunds.append({"request_id": event.request_id, **shown(event), "outcome": str(outcome)})
    done.request_ids += [entry.request_id for entry in batch.entries[: max(0, 20 - len(done.request_ids))]]
    done.lag_ms = max(done.lag_ms, batch.lease.now_ms - batch.entries[0].filed_ms)


async def _show_in_flower(dead_letter: record.NewDeadLetter, number: int) -> None:
    try:
        await record.slow_lane(
            kind=dead_letter.kind,
            request_id=dead_letter.request_id,
            number=number,
            attempt=1,
            event=dead_letter.event,
        )
    except Unavailable:
        return  # the row is there; only Flower's view of it is not
