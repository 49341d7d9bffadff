"""What the ledger takes and answers beside accounts: channels, entries, dead letters, incidents, violations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Any, Final, TypeAlias, TypedDict

from billing_tasks.model.posting import PostOutcome


class Unset(Enum):
    """The type of UNSET."""

    UNSET = auto()


#: "Leave it as it is", for arguments where None has a meaning of its own.
UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """An upstream and what was used through it, all shards together."""

    id: int
    name: str
    used_quota: int


@dataclass(frozen=True, slots=True)
class EntryRow:
    """One ledger entry as it was booked. Changes are signed, `quota` is the amount."""

    entry_id: str
    kind: str  # consume | release | refund | correction | topup | adjust
    request_id: str | None  # refund, correction: the charge's; topup and adjust: none
    user_id: int
    token_id: int | None
    channel_id: int | None
    quota: int
    held_quota: int  # consume: the hold it closed; 0: none was open
    user_quota: int
    token_quota: int
    used_quota: int
    prompt_tokens: int
    completion_tokens: int
    model_name: str
    token_name: str
    group_name: str
    content: str
    client_key: str
    model_ratio: str
    completion_ratio: str
    group_ratio: str
    pre_consumed_quota: int
    elapsed_ms: int
    is_stream: bool
    expired: bool
    usage: dict[str, Any] | None  # the object that the upstream sent
    fingerprint: str  # hex
    created_at: datetime  # when it was booked
    used_at: datetime  # when it was used, refunded or released
    price_version: int | None  # None: priced by ratios
    cost: int | None  # what the upstream charges, in quota
    meters: dict[str, int]  # quantities of meters without a field of their own
    price: dict[str, Any]  # what the price version does not say
    details: dict[str, Any]  # other fields of ConsumeLog without a field of their own


@dataclass(frozen=True, slots=True)
class PriceChange:
    """A change of prices, as an operator made it."""

    id: int
    kind: str  # model, group, group_for, alias, factor, cost
    name: str  # of the model, the group ...
    body: Any  # as the ratios file has it; None: taken back
    valid_from: datetime  # it counts from then on
    actor: str  # who made it
    comment: str  # why
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Erased:
    """How many rows of a user had texts that are empty now, and what could not be emptied yet."""

    entries: int
    tokens: int
    top_ups: int
    dead_letters: int
    open_dead_letters: int  # they keep what is to be booked: retry or discard them, then erase again


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Usage summed up; amounts in quota."""

    key: str  # of the model, user, token, channel or day; empty: there was none
    requests: int  # that were charged, for 0 quota also
    prompt_tokens: int
    completion_tokens: int
    charged: int
    refunded: int  # counted when it was asked for, whenever the charge was
    corrected: int  # charged later, or given back, because prices were wrong; signed, by the time of use
    cost: int  # what channels charge for it, as far as that is known
    costed: int  # requests whose cost is known

    @property
    def net(self) -> int:
        """Charged, corrected and not refunded, in quota."""
        return self.charged + self.corrected - self.refunded

    @property
    def margin(self) -> int | None:
        """What is left of it after what channels charge, in quota; None: of some requests that is not known."""
        return self.net - self.cost if self.costed == self.requests else None


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """Settings of a PostgreSQL server, and its clock in milliseconds since 1970."""

    fsync: str
    full_page_writes: str
    synchronous_commit: str
    statement_timeout_ms: int
    in_recovery: bool
    now_ms: int


class EntryFilter(TypedDict, total=False):
    """Which entries. Every part that is given must match; an empty collection matches all."""

    user_id: int | None
    token_id: int | None
    request_id: str | None  # all that was booked for it: its consume, its release, its refunds
    client_key: str | None  # the caller's own; a top-up's own id
    kinds: Collection[str]
    since: datetime | None  # at this time or later
    before: datetime | None  # before this time


class DeadLetterState(StrEnum):
    """Where a dead letter stands."""

    RETRYING = "retrying"  # tried again by itself at next_attempt_at
    FAILED = "failed"  # waits for a person
    RESOLVED = "resolved"  # booked after all
    DISCARDED = "discarded"  # a person resolved that it is not booked


#: States in which a dead letter may still be booked.
OPEN = (DeadLetterState.RETRYING, DeadLetterState.FAILED)


class HistoryKind(StrEnum):
    """What may happen to a dead letter."""

    KEPT = "kept"
    ATTEMPTED = "attempted"  # sent to a worker; how it went comes next
    POSTED = "posted"
    DUPLICATE = "duplicate"  # had been booked before
    REFUSED = "refused"
    DISCARDED = "discarded"
    REOPENED = "reopened"


class DeadLetterFilter(TypedDict, total=False):
    """Which dead letters. Every part that is given must match; an empty collection matches all."""

    numbers: Collection[int]
    states: Collection[DeadLetterState]
    kind: str | None
    user_id: int | None
    request_ids: Collection[str]
    refund_ids: Collection[str]  # read from the payload
    client_keys: Collection[str]  # the callers' own keys; read from the payload
    reason: str | None  # a code
    since: datetime | None  # kept at this time or later
    before: datetime | None  # kept before this time


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that could not be posted, as it came."""

    id: int
    kind: str
    request_id: str  # as it came; perhaps no uuid
    user_id: int | None
    fingerprint: str
    payload: bytes
    reason: str  # a code
    error: str  # a sentence
    state: DeadLetterState
    attempts: int
    next_attempt_at: datetime | None  # None: not by itself
    handled_by: str
    handled_comment: str
    first_seen: datetime
    last_seen: datetime
    updated_at: datetime

    @property
    def open(self) -> bool:
        """True if it may still be booked."""
        return self.state in OPEN

    def as_dict(self) -> dict[str, object]:
        """For machines, by the names of the columns: the payload as text, bytes that are none written out."""
        payload = self.payload.decode("utf-8", "backslashreplace")
        return _as_columns({**asdict(self), "payload": payload})


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of a dead letter's history."""

    at: datetime
    what: HistoryKind
    actor: str  # "": no person asked
    comment: str  # in the actor's words
    reason: str  # a code
    error: str  # a sentence
    attempt: int | None

    def as_dict(self) -> dict[str, object]:
        """For machines, by the names of the columns."""
        return _as_columns(asdict(self))


#: field -> column. Columns, messages and JSON keep the names that programs read them by.
_COLUMNS = {"actor": "who", "comment": "why", "handled_comment": "handled_why"}


def _as_columns(fields: dict[str, object]) -> dict[str, object]:
    return {_COLUMNS.get(name, name): value for name, value in fields.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How it went with a dead letter: its new state, and the line of its history."""

    state: DeadLetterState
    what: HistoryKind
    actor: str = ""
    comment: str = ""
    reason: str | None = None  # None: as it was
    error: str | None = None  # None: as it was
    attempts: int = 0  # how many were made at least
    next_attempt_seconds: float | None = None  # None: not by itself


@dataclass(frozen=True, slots=True)
class RequestState:
    """What the ledger knows about a request and the accounts an event names."""

    token_user: int | None  # whose token it is; None: there is no such token
    charged: int | None  # None: nothing was consumed under this request_id
    charged_user: int | None
    refunded: int  # by refunds, so far
    refund_quota: int | None  # booked under this refund_id; None: nothing
    released: bool  # its hold ended unused
    expired: bool  # ... because it ran out


@dataclass(frozen=True, slots=True)
class PostPreview:
    """What the ledger would answer to an event now, and what it knows about it."""

    outcome: PostOutcome
    state: RequestState


#: Numbers of an outbox's events: ranges, first and last, in order.
Numbers: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class OutboxCursor:
    """How far one epoch of one shard's outbox was read."""

    shard: int
    epoch: int
    seen: int
    posted: int
    updated_at: datetime
    looked_at: datetime
    open_holds: int | None  # at the last look
    backlog_limit: int | None  # likewise
    accounted: Numbers  # those that were posted or set aside
    current_from: datetime | None  # when it was first known to be the epoch Redis numbers in; None: never
    ended_at: datetime | None  # when another one had taken its place
    first_seen: datetime


@dataclass(frozen=True, slots=True)
class Incident:
    """A sign that events of an outbox were lost or came back.

    Between `events_bound` and `events_at_most` events are concerned. Those that no look saw were filed between
    `unseen_from` and `unseen_to`: the gateways' own logs of that time know them.
    """

    id: int
    shard: int
    epoch: int
    kind: str  # gap | rewind | new_epoch | restored
    from_seq: int
    to_seq: int
    events_bound: int | None  # at least; 0: nothing is known to be missing
    note: str
    noticed_at: datetime
    events_at_most: int | None = None
    unseen_from: datetime | None = None
    unseen_to: datetime | None = None
    of_epoch: int | None = None  # whose numbers from_seq to to_seq are; None: of `epoch`
    lost: Numbers = ()  # numbers that nothing else accounts for
    closed_at: datetime | None = None  # a person has seen to it
    closed_by: str = ""
    comment: str = ""  # in that person's words


@dataclass(frozen=True, slots=True)
class OpenReason:
    """How many open dead letters have this reason, and since when the oldest of them is kept, in seconds."""

    reason: str
    count: int
    oldest_seconds: int


@dataclass(frozen=True, slots=True)
class Missing:
    """What the open incidents add up to."""

    incidents: int
    events: int  # at least so many were lost


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant: what should be equal, whose it is, what the entries say, what is stored."""

    what: str
    id: str
    expected: int
    actual: int
