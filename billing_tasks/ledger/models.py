"""The tables of schema `billing`, as SQLAlchemy knows them.

The revisions (`migrations/versions/*/*.sql`) made them and say what the columns mean;
a test compares the two. Change a table by a new revision, then here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, INT8MULTIRANGE, JSONB, Range
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA: Final = "billing"

#: Numbers of an outbox's events.
Numbers = Sequence[Range[int]]

#: Every change of an account takes its next number.
versions = sa.Sequence("versions", schema=SCHEMA)


class Base(DeclarativeBase):
    """Root of the models."""

    metadata = sa.MetaData(schema=SCHEMA)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own convention
        int: sa.BigInteger(),
        str: sa.Text(),
        bytes: BYTEA(),
        datetime: sa.DateTime(timezone=True),
        UUID: sa.Uuid(),
    }


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    group_name: Mapped[str] = mapped_column(server_default="default")
    quota: Mapped[int] = mapped_column(server_default="0")
    used_quota: Mapped[int] = mapped_column(server_default="0")
    request_count: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[str] = mapped_column(server_default="enabled")
    version: Mapped[int] = mapped_column(server_default=versions.next_value())
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    opening_requests: Mapped[int | None] = mapped_column(server_default="0")


class Token(Base):
    __tablename__ = "tokens"
    __table_args__ = (sa.Index("tokens_by_user", "user_id"),)

    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey(User.id))
    name: Mapped[str] = mapped_column(server_default="")
    remain_quota: Mapped[int] = mapped_column(server_default="0")
    used_quota: Mapped[int] = mapped_column(server_default="0")
    unlimited_quota: Mapped[bool] = mapped_column(server_default=sa.false())
    status: Mapped[str] = mapped_column(server_default="enabled")
    expires_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default=versions.next_value())
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    unlimited_until: Mapped[datetime | None]


class ErasureRecord(Base):
    __tablename__ = "erasures"

    id: Mapped[int] = mapped_column(sa.Identity(always=True), primary_key=True)
    user_id: Mapped[int]
    actor: Mapped[str]
    comment: Mapped[str] = mapped_column(server_default="")
    entries: Mapped[int]
    tokens: Mapped[int]
    top_ups: Mapped[int]
    dead_letters: Mapped[int]
    erased_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Installation(Base):
    __tablename__ = "installation"

    name: Mapped[UUID] = mapped_column(primary_key=True, server_default=sa.func.gen_random_uuid())
    made_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    only_one: Mapped[bool] = mapped_column(server_default=sa.true(), unique=True)


class Channel(Base):
    __tablename__ = "channels"

    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class ChannelUsage(Base):
    __tablename__ = "channel_usage"

    channel_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shard: Mapped[int] = mapped_column(sa.Integer(), primary_key=True, autoincrement=False)
    used_quota: Mapped[int] = mapped_column(server_default="0")
    opening_quota: Mapped[int] = mapped_column(server_default="0")


class Entry(Base):
    __tablename__ = "ledger_entries"
    __table_args__ = (
        sa.Index("ledger_entries_by_user", "user_id", "entry_id"),
        sa.Index(
            "ledger_entries_by_client_key", "client_key", "entry_id", postgresql_where=sa.text("client_key <> ''")
        ),
        {"postgresql_partition_by": "RANGE (entry_id)"},
    )

    entry_id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[UUID | None]
    user_id: Mapped[int]
    token_id: Mapped[int | None]
    channel_id: Mapped[int | None]
    quota: Mapped[int]
    held_quota: Mapped[int] = mapped_column(server_default="0")
    user_quota: Mapped[int] = mapped_column(server_default="0")
    token_quota: Mapped[int] = mapped_column(server_default="0")
    used_quota: Mapped[int] = mapped_column(server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    completion_tokens: Mapped[int] = mapped_column(server_default="0")
    model_name: Mapped[str] = mapped_column(server_default="")
    token_name: Mapped[str] = mapped_column(server_default="")
    group_name: Mapped[str] = mapped_column(server_default="")
    content: Mapped[str] = mapped_column(server_default="")
    client_key: Mapped[str] = mapped_column(server_default="")
    model_ratio: Mapped[str] = mapped_column(server_default="")
    completion_ratio: Mapped[str] = mapped_column(server_default="")
    group_ratio: Mapped[str] = mapped_column(server_default="")
    pre_consumed_quota: Mapped[int] = mapped_column(server_default="0")
    elapsed_ms: Mapped[int] = mapped_column(server_default="0")
    is_stream: Mapped[bool] = mapped_column(server_default=sa.false())
    expired: Mapped[bool] = mapped_column(server_default=sa.false())
    usage: Mapped[dict[str, Any] | None] = mapped_column(JSONB())
    fingerprint: Mapped[bytes] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    used_at: Mapped[datetime | None] = mapped_column(server_default=sa.func.now())
    price_version: Mapped[int | None]
    cost: Mapped[int | None]
    price: Mapped[dict[str, Any] | None] = mapped_column(JSONB())
    details: Mapped[dict[str, Any] | None] = mapped_column(JSONB())


class TopUp(Base):
    __tablename__ = "top_ups"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    user_id: Mapped[int]
    token_id: Mapped[int | None]
    quota: Mapped[int]
    note: Mapped[str] = mapped_column(server_default="")
    entry_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Refund(Base):
    __tablename__ = "refunds"
    __table_args__ = (sa.Index("refunds_by_request", "request_id"),)

    refund_id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[UUID]
    user_id: Mapped[int]
    quota: Mapped[int]
    fingerprint: Mapped[bytes]
    entry_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class CorrectionRecord(Base):
    __tablename__ = "corrections"

    request_id: Mapped[UUID] = mapped_column(primary_key=True)
    price_version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[int]
    quota: Mapped[int]
    entry_id: Mapped[UUID]
    actor: Mapped[str]
    comment: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Cursor(Base):
    __tablename__ = "outbox_cursors"

    shard: Mapped[int] = mapped_column(sa.Integer(), primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seen: Mapped[int]
    posted: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    looked_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    open_holds: Mapped[int | None]
    backlog_limit: Mapped[int | None]
    accounted: Mapped[Numbers] = mapped_column(INT8MULTIRANGE(), server_default="{}")
    current_from: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    first_seen: Mapped[datetime] = mapped_column(server_default=sa.func.clock_timestamp())


class IncidentRecord(Base):
    __tablename__ = "incidents"
    __table_args__ = (
        sa.Index(
            "incidents_with_loss",
            "shard",
            sa.text("coalesce(of_epoch, epoch)"),
            postgresql_where=sa.text("lost <> '{}'::int8multirange"),
        ),
    )

    id: Mapped[int] = mapped_column(sa.Identity(always=True), primary_key=True)
    shard: Mapped[int] = mapped_column(sa.Integer())
    epoch: Mapped[int]
    kind: Mapped[str]
    from_seq: Mapped[int]
    to_seq: Mapped[int]
    events_bound: Mapped[int | None]
    note: Mapped[str] = mapped_column(server_default="")
    noticed_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    events_at_most: Mapped[int | None]
    unseen_from: Mapped[datetime | None]
    unseen_to: Mapped[datetime | None]
    of_epoch: Mapped[int | None]
    lost: Mapped[Numbers] = mapped_column(INT8MULTIRANGE(), server_default="{}")
    closed_at: Mapped[datetime | None]
    closed_by: Mapped[str] = mapped_column(server_default="")
    comment: Mapped[str] = mapped_column(server_default="")


class ArchivedMonth(Base):
    __tablename__ = "archived_months"

    month: Mapped[date] = mapped_column(sa.Date(), primary_key=True)
    archived_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    note: Mapped[str] = mapped_column(server_default="")


class PriceChangeRecord(Base):
    __tablename__ = "price_changes"
    __table_args__ = (sa.Index("price_changes_by_name", "kind", "name", "valid_from", "id"),)

    id: Mapped[int] = mapped_column(sa.Identity(always=True), primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    body: Mapped[dict[str, Any] | None] = mapped_column(JSONB())
    valid_from: Mapped[datetime]
    actor: Mapped[str]
    comment: Mapped[str] = mapped_column(server_default="")
    made_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class PricePart(Base):
    __tablename__ = "price_parts"

    digest: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[str]


class PriceListRecord(Base):
    __tablename__ = "price_lists"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parts: Mapped[dict[str, Any]] = mapped_column(JSONB())
    stored_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class EstimateRecord(Base):
    __tablename__ = "estimates"

    model_name: Mapped[str] = mapped_column(primary_key=True)
    requests: Mapped[int]
    completion_tokens: Mapped[int]
    median_tokens: Mapped[int]
    learned_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class DeadLetterRecord(Base):
    __tablename__ = "dead_letters"
    __table_args__ = (
        sa.UniqueConstraint("kind", "request_id", "fingerprint", name="dead_letters_are_kept_once"),
        sa.Index("dead_letters_open", "next_attempt_at", postgresql_where=sa.text("state in ('retrying', 'failed')")),
    )

    id: Mapped[int] = mapped_column(sa.Identity(always=True), primary_key=True)
    kind: Mapped[str]
    request_id: Mapped[str]
    user_id: Mapped[int | None]
    fingerprint: Mapped[str]
    payload: Mapped[bytes]
    reason: Mapped[str]
    error: Mapped[str]
    state: Mapped[str]
    attempts: Mapped[int] = mapped_column(sa.Integer(), server_default="0")
    next_attempt_at: Mapped[datetime | None]
    handled_by: Mapped[str] = mapped_column(server_default="")
    handled_comment: Mapped[str] = mapped_column("handled_why", key="handled_comment", server_default="")
    first_seen: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    last_seen: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class HistoryRecord(Base):
    __tablename__ = "dead_letter_history"
    __table_args__ = (sa.Index("dead_letter_history_by_letter", "letter_id", "id"),)

    id: Mapped[int] = mapped_column(sa.Identity(always=True), primary_key=True)
    letter_id: Mapped[int] = mapped_column(sa.ForeignKey(DeadLetterRecord.id))
    at: Mapped[datetime] = mapped_column(server_default=sa.func.clock_timestamp())
    what: Mapped[str]
    actor: Mapped[str] = mapped_column("who", key="actor", server_default="")
    comment: Mapped[str] = mapped_column("why", key="comment", server_default="")
    reason: Mapped[str] = mapped_column(server_default="")
    error: Mapped[str] = mapped_column(server_default="")
    attempt: Mapped[int | None] = mapped_column(sa.Integer())
