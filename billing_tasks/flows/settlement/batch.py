"""A batch: events of an outbox that were read together, and what the ledger answered so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from billing_tasks.errors import Unavailable
from billing_tasks.flows.dead_letters import record
from billing_tasks.holds.replies import LeaseReply, OutboxEntry
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.events import Event
from billing_tasks.model.posting import OutboxPart, PostedBatch, PostOutcome, ServerRun

#: September 2001.
_FIRST_EPOCH = 10**15


@dataclass(slots=True)
class Batch:
    """Events that were read together, and what the ledger answered so far."""

    shard: int
    lease: LeaseReply
    entries: list[OutboxEntry]
    last: bool  # there was nothing behind it
    given: tuple[int, int]  # the highest epoch and number that Redis gave to an event; above are a stranger's ids
    bookable: list[tuple[OutboxEntry, Event]] = field(default_factory=list)
    refunds: list[Event] = field(default_factory=list)
    outcomes: Counter[PostOutcome] = field(default_factory=Counter)
    users: dict[int, UserRow] = field(default_factory=dict)
    tokens: dict[int, TokenRow] = field(default_factory=dict)
    refunded: list[tuple[Event, PostOutcome]] = field(default_factory=list)
    refused: list[record.NewDeadLetter] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of the dead letters that `refused` became
    server: ServerRun | None = None  # who booked it
    cover_later: bool = False  # its numbers are not accounted for by the call that books it, but when all is kept

    @property
    def epoch(self) -> int:
        return self.entries[0].epoch

    def answered(self, answer: PostedBatch, of: Sequence[Event] = ()) -> None:
        """What the ledger answered for these events of it; what it did not book is refused.

        Raises Unavailable if another run of the server answers than before: what it answered then may be gone.
        """
        if self.server is not None and self.server.name != answer.server.name:
            raise Unavailable(f"PostgreSQL was restarted while a batch of outbox {self.shard} was booked.")
        self.server = answer.server
        self.outcomes.update(answer.outcomes)
        self.users.update((row.id, row) for row in answer.users)
        self.tokens.update((row.id, row) for row in answer.tokens)
        for event, outcome in zip(of, answer.outcomes, strict=bool(of)):
            if not outcome.booked:
                self.refuse(record.of_outcome(event, outcome))

    def refuse(self, dead_letter: record.NewDeadLetter) -> None:
        """It is to be kept, so its number is not accounted for before it is."""
        self.refused.append(dead_letter)
        self.cover_later = True

    def refund(self, event: Event) -> None:
        """It is booked after the batch's consumes: a refund's charge may be among them."""
        self.refunds.append(event)
        self.cover_later = True

    def covers(self) -> OutboxPart:
        """What a call that books it accounts for: all of it, if it books all of it."""
        return replace(self._part(), later=self.cover_later)

    def covers_at_last(self) -> OutboxPart:
        """What a call accounts for once all of it is booked or kept, by the same run of the server."""
        return replace(self._part(), server=self.server.name if self.server else None)

    def _part(self) -> OutboxPart:
        """The sequence numbers that were read."""
        found: list[tuple[int, int]] = []
        for entry in self.entries:
            if self._is_ours(entry):
                begins = not found or entry.seq != found[-1][1] + 1
                found.append((entry.seq, entry.seq)) if begins else found.append((found.pop()[0], entry.seq))
        if not found:
            return OutboxPart(self.shard)
        return OutboxPart(self.shard, self.epoch, tuple(found))

    def _is_ours(self, entry: OutboxEntry) -> bool:
        """Whether Redis gave this number to an event. An epoch is a time in microseconds; before _FIRST_EPOCH none of
        ours can have been, other than one that is still under way on a server without a clock."""
        epoch, seq = self.given
        known = entry.seq <= seq if entry.epoch == epoch else _FIRST_EPOCH <= entry.epoch < epoch
        return known and entry.numbered
