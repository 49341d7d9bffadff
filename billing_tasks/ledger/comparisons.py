"""What the account cache and counters elsewhere are compared with: balances of many accounts, and totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from billing_tasks.ledger.models import Token, User
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import Missing

#: Ids per statement.
_PAGE: Final = 5000

_TOTALS: Final = sa.text(
    "select (select count(*) from billing.users) as users, (select count(*) from billing.tokens) as tokens,"
    " (select count(*) from billing.ledger_entries) as entries"
)
_MISSING: Final = sa.text(
    # Events that were new at old numbers (a rewind within one epoch) came back; they are not missing. A new epoch of
    # which nothing is missing is a restart that kept all.
    "select count(*) filter (where kind <> 'new_epoch' or events_bound > 0), "
    "coalesce(sum(events_bound) filter (where kind <> 'rewind' or unseen_from is not null), 0)::bigint"
    " from billing.incidents where closed_at is null"
)


@dataclass(frozen=True, slots=True)
class Totals:
    """How many rows there are."""

    users: int
    tokens: int
    entries: int


class Comparisons(Part):
    """Answers in bulk."""

    def balances(self, which: str, ids: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Of `user`s or `token`s: id -> (remaining quota, version). Unknown ids are left out."""
        if which == "user":
            query = sa.select(User.id, User.quota, User.version)
        else:
            query = sa.select(Token.id, Token.remain_quota, Token.version)
        found: dict[int, tuple[int, int]] = {}
        for at in range(0, len(ids), _PAGE):
            page = list(ids[at : at + _PAGE])
            rows = self._db.statement(
                query.where(query.selected_columns[0] == sa.any_(sa.literal(page, sa.ARRAY(sa.BigInteger))))
            )
            found.update((row[0], (row[1], row[2])) for row in rows)
        return found

    def totals(self) -> Totals:
        """Counts every row; for reports, not for the request path."""
        return Totals(*self._db.statement(_TOTALS)[0])

    def count_missing(self) -> Missing:
        """How many incidents are open and how many events they know to be missing."""
        return Missing(*self._db.statement(_MISSING)[0])
