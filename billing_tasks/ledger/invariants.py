"""Invariants: what must be true of the ledger at every moment, checked by PostgreSQL in one snapshot."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import Violation

# Reads the whole ledger, so the timeout of ordinary statements is lifted for it.
_NO_TIMEOUT: Final = sa.text("set local statement_timeout = 0")
#: Of a ledger of any size. A server that is stopped meanwhile is noticed by then.
_LONGEST_SECONDS: Final = 6 * 3600.0
_BROKEN: Final = sa.text("select what, id, expected, actual from billing.broken_invariants()")


class Invariants(Part):
    """Looks for books that don't add up."""

    def broken_invariants(self) -> list[Violation]:
        """Empty if all is right. Balances against entries, refunds against charges, overdrafts against usage."""

        def work(connection: sa.Connection) -> list[Violation]:
            connection.execute(_NO_TIMEOUT)
            return [Violation(*row) for row in connection.execute(_BROKEN)]

        return self._db.transaction(work, seconds=_LONGEST_SECONDS)
