"""What the ledger answers beside accounts: channels, entries, dead letters, incidents, violations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


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
    kind: str  # consume | release | refund | topup | adjust
    request_id: str | None  # refund: the charge's; topup and adjust: none
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
    usage: dict[str, Any] | None
    fingerprint: str  # hex
    created_at: datetime  # when it was booked


class LetterState(StrEnum):
    """Where a dead letter stands."""

    RETRYING = "retrying"  # tried again by itself at next_attempt_at
    FAILED = "failed"  # waits for a person
    RESOLVED = "resolved"  # booked after all
    DISCARDED = "discarded"  # a person decided that it is not booked


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
    state: LetterState
    attempts: int
    next_attempt_at: datetime | None  # None: not by itself
    handled_by: str
    handled_why: str
    first_seen: datetime
    last_seen: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class OutboxCursor:
    """How far one epoch of one shard's outbox was read."""

    shard: int
    epoch: int
    seen: int
    posted: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Incident:
    """A sign that events of an outbox were lost or came back."""

    id: int
    shard: int
    epoch: int
    kind: str  # gap | rewind | new_epoch
    from_seq: int
    to_seq: int
    events_bound: int | None
    note: str
    noticed_at: datetime


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant: what should be equal, whose it is, what the entries say, what is stored."""

    what: str
    id: str
    expected: int
    actual: int
