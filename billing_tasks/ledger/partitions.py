"""Partitions of the ledger: one month each, made ahead of time."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from billing_tasks.ledger.part import Part

_MAINTAIN: Final = sa.text("select billing.maintain_partitions()")


_IS_ARCHIVED: Final = sa.text("select billing.is_archived(cast(:request_id as uuid))")


class Partitions(Part):
    """Sees to it that every id we accept has a partition."""

    def is_archived(self, request_id: str) -> bool:
        """True if the month of this id takes no entries any more: it was archived, or is from before the ledger."""
        return bool(self._db.statement(_IS_ARCHIVED, {"request_id": request_id})[0][0])

    def maintain_partitions(self) -> int:
        """Make the months from 31 days back to three months ahead that are missing; how many that were.

        Safe to run at any time and from several workers; posting goes on meanwhile.
        Without it, events of a month without partition are refused with LedgerRefusedData.
        """
        made: int = self._db.statement(_MAINTAIN)[0][0]
        return made
