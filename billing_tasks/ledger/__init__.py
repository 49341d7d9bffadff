"""The ledger: everything PostgreSQL knows. Only this package speaks SQL.

`store.py` has the Ledger, made of the parts in the files beside it; `sql/` the functions
that run inside PostgreSQL; `migrations/` the way from an empty database to the tables.
"""

from billing_tasks.ledger.accounts import Keep
from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.ledger.rows import (
    ChannelRow,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterState,
    EntryRow,
    HistoryKind,
    Incident,
    OutboxCursor,
    Violation,
)
from billing_tasks.ledger.store import Ledger

__all__ = [
    "ChannelRow",
    "DeadLetter",
    "DeadLetterFilter",
    "DeadLetterState",
    "EntryRow",
    "HistoryKind",
    "Incident",
    "Keep",
    "Ledger",
    "LedgerRefusedData",
    "OutboxCursor",
    "Violation",
    "upgrade",
]
