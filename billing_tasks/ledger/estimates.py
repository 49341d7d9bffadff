"""Estimates: how long a model's answers are, learned from charges, and how well holds fitted what was used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from billing_tasks.ledger.models import Entry, EstimateRecord
from billing_tasks.ledger.part import Part

_LEARN: Final = sa.text("select billing.learn_estimates()")
_TIME: Final = sa.func.coalesce(Entry.used_at, Entry.created_at)
_LONGEST_SECONDS: Final = 600.0
_NO_TIMEOUT: Final = sa.text(f"set local statement_timeout = {round(_LONGEST_SECONDS * 1000)}")


@dataclass(frozen=True, slots=True)
class EstimateRow:
    """Of one model: what was set aside against what was used, in quota, and what is learned of its answers."""

    model: str
    requests: int  # that had a hold
    reserved: int
    used: int
    under: int  # requests that used more than was held
    not_covered: int  # what they used beyond it, in quota
    learned_tokens: int | None  # 99 of 100 answers have no more; None: not learned
    learned_from: int | None  # requests

    @property
    def percent(self) -> int | None:
        """Reserved, in percent of what was used; None: nothing was."""
        return self.reserved * 100 // self.used if self.used else None


class Estimates(Part):
    """See above."""

    def learn_estimates(self) -> int:
        """How many models were learned now. Safe to repeat."""
        learned: int = self._db.statement(_LEARN)[0][0]
        return learned

    def learned(self) -> dict[str, int]:
        """Completion tokens to set aside, by model."""
        statement = sa.select(EstimateRecord.model_name, EstimateRecord.completion_tokens)
        return {row[0]: int(row[1]) for row in self._db.statement(statement, seconds=self._db.read_seconds)}

    def estimates(self, *, since: datetime) -> list[EstimateRow]:
        """By model, those with the most quota first. Reads every charge of that time."""
        beyond = Entry.quota - Entry.held_quota
        sums = (
            sa.select(
                Entry.model_name.label("model"),
                sa.func.count().label("requests"),
                sa.func.sum(Entry.held_quota).label("reserved"),
                sa.func.sum(Entry.quota).label("used"),
                sa.func.count().filter(beyond > 0).label("under"),
                sa.func.coalesce(sa.func.sum(beyond).filter(beyond > 0), 0).label("not_covered"),
            )
            .where(
                Entry.kind == "consume",
                Entry.held_quota > 0,
                since <= _TIME,
                Entry.entry_id >= sa.func.billing.first_entry_id(since - timedelta(days=32)),
            )
            .group_by(Entry.model_name)
            .subquery()
        )
        statement = (
            sa.select(sums, EstimateRecord.completion_tokens, EstimateRecord.requests)
            .join(EstimateRecord, EstimateRecord.model_name == sums.c.model, isouter=True)
            .order_by(sums.c.used.desc(), sums.c.model)
        )

        def work(connection: sa.Connection) -> list[EstimateRow]:
            connection.execute(_NO_TIMEOUT)
            return [EstimateRow(row[0], *map(int, row[1:6]), *row[6:]) for row in connection.execute(statement)]

        return self._db.transaction(work, seconds=_LONGEST_SECONDS)
