"""The Ledger: PostgreSQL as the rest of the package sees it.

PostgreSQL is the source of truth. Every write is one transaction and safe to repeat
(but for creating an account whose id PostgreSQL chooses). Nothing connects before the
first call; the object may be shared by threads, and after a fork by calling
`dispose_after_fork()` in the child.

All methods raise errors.Unavailable if PostgreSQL did not confirm, and
LedgerRefusedData for values that it can't store.
"""

from __future__ import annotations

from typing import Self

from billing_tasks.ledger.accounts import Administration
from billing_tasks.ledger.comparisons import Comparisons
from billing_tasks.ledger.corrections import Corrections
from billing_tasks.ledger.database import Database
from billing_tasks.ledger.dead_letter_attempts import Attempts
from billing_tasks.ledger.dead_letters import DeadLetters
from billing_tasks.ledger.erasure import Erasure
from billing_tasks.ledger.estimates import Estimates
from billing_tasks.ledger.invariants import Invariants
from billing_tasks.ledger.outboxes import Outboxes
from billing_tasks.ledger.partitions import Partitions
from billing_tasks.ledger.posting import Posting
from billing_tasks.ledger.prices import Prices
from billing_tasks.ledger.reads import Reads
from billing_tasks.ledger.top_ups import TopUps
from billing_tasks.ledger.usage import Usage
from billing_tasks.settings import Settings


class Ledger(
    Posting,
    Reads,
    Usage,
    Administration,
    TopUps,
    Prices,
    Corrections,
    Estimates,
    Erasure,
    DeadLetters,
    Attempts,
    Outboxes,
    Partitions,
    Invariants,
    Comparisons,
):
    """Posting, reading, administration and upkeep over one pool of connections."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The ledger that these settings name. Does not connect."""
        return cls(Database(settings))

    def dispose(self) -> None:
        """Close all connections."""
        self._db.dispose()

    def dispose_after_fork(self) -> None:
        """In a forked child, before anything else: leave the parent's connections alone."""
        self._db.dispose_after_fork()
