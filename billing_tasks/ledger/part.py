"""What every part of the Ledger has: the database."""

from __future__ import annotations

from billing_tasks.ledger.database import Database


class Part:
    """Base of the classes that together are the Ledger; each speaks about one thing."""

    def __init__(self, database: Database) -> None:
        self._db = database
