"""Corrections: what charges should have cost by another price list, each booked once per charge and list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec
import sqlalchemy as sa

from billing_tasks.ledger import columns
from billing_tasks.ledger.models import Entry
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.reads import entry_row
from billing_tasks.ledger.rows import EntryRow
from billing_tasks.model.account import TokenRow, UserRow

_CORRECT: Final = sa.text(
    "select outcomes, users, tokens from billing.correct_charges(cast(:shard as integer), cast(:corrections as text))"
)
_ENTRY: Final = tuple(Entry.__table__.columns)
_TIME: Final = sa.func.coalesce(Entry.used_at, Entry.created_at)
#: Between the date of an id and the time of use; see ledger/usage.py.
_MOST_BETWEEN_DAYS: Final = 32


class CorrectOutcome(StrEnum):
    """What became of one correction."""

    POSTED = "posted"  # booked now
    DUPLICATE = "duplicate"  # corrected by this list before
    UNCHANGED = "unchanged"  # it comes to what was charged
    REFUNDED = "refunded"  # refunded whole: there is nothing to correct
    NO_CHARGE = "no_charge"


@dataclass(frozen=True, slots=True)
class Correction:
    """What one charge should have come to, in quota."""

    request_id: str
    user_id: int
    quota: int
    price_version: int
    actor: str
    comment: str


@dataclass(frozen=True, slots=True)
class Corrected:
    """The ledger's answer: an outcome and the signed change for each, and the accounts as they are now."""

    outcomes: list[tuple[CorrectOutcome, int]]
    users: list[UserRow]
    tokens: list[TokenRow]


class Corrections(Part):
    """See above."""

    def correct_charges(self, shard: int, corrections: Sequence[Correction]) -> Corrected:
        """Book them in one transaction; again, nothing. Raises Unavailable."""
        row = self._db.statement(
            _CORRECT, {"shard": shard, "corrections": msgspec.json.encode(list(corrections)).decode()}
        )[0]
        outcomes = [(CorrectOutcome(outcome), change) for outcome, change in msgspec.json.decode(row.outcomes)]
        return Corrected(outcomes, columns.users_from_json(row.users), columns.tokens_from_json(row.tokens))

    def charges(
        self,
        *,
        since: datetime,
        before: datetime | None = None,
        models: Sequence[str] = (),
        user_id: int | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> list[EntryRow]:
        """Charges used in that time, by entry_id, those above `after`."""
        first = sa.func.billing.first_entry_id(since - timedelta(days=_MOST_BETWEEN_DAYS))
        statement = sa.select(*_ENTRY).where(Entry.kind == "consume", since <= _TIME, Entry.entry_id >= first)
        if before is not None:
            statement = statement.where(before > _TIME)
        if models:
            statement = statement.where(Entry.model_name.in_(list(models)))
        if user_id is not None:
            statement = statement.where(Entry.user_id == user_id)
        if after is not None:
            statement = statement.where(Entry.entry_id > UUID(after))
        return [entry_row(row) for row in self._db.statement(statement.order_by(Entry.entry_id).limit(limit))]
