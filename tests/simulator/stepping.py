"""Transactions that wait before COMMIT, so that others meet their locks.

A parked transaction has run all its statements on a connection of its own. A call that
needs its locks runs into lock_timeout, a few milliseconds, and gets Unavailable, or,
with the patient database, queues until the parked one commits or rolls back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from billing_tasks.errors import BillingError
from billing_tasks.ledger.database import Database, Record
from billing_tasks.ledger.failures import translate

T = TypeVar("T")


@dataclass(eq=False)
class Parked:
    """A transaction whose statements have run; what the caller will be told once it is committed."""

    connection: sa.Connection
    pid: int  # of the server process that holds the locks
    reply: Any = None
    apply: Callable[[], None] = lambda: None  # brings the oracle's books up to date

    def commit(self) -> None:
        """The books first: a call that queued for a lock of this one goes on at COMMIT, and compares with them."""
        self.apply()
        self.connection.commit()
        self.connection.close()

    def rollback(self) -> None:
        """As a crash would."""
        self.connection.rollback()
        self.connection.close()


class SteppedDatabase(Database):
    """The product's Database; while `parking`, the last transaction of an effect stays open."""

    parking = False
    open: Parked | None = None

    def statement(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None, **_: Any
    ) -> list[Record]:
        if not self.parking:
            return super().statement(statement, parameters)
        return self._park(lambda connection: list(connection.execute(statement, parameters or {}).all()))

    def transaction(self, work: Callable[[sa.Connection], T], *, repeatable: bool = True, **_: Any) -> T:
        if not self.parking:
            return super().transaction(work, repeatable=repeatable)
        return self._park(work)

    def _park(self, work: Callable[[sa.Connection], T]) -> T:
        if self.open is not None:  # an effect of several transactions waits before the last one only
            self.open.commit()
            self.open = None
        connection = self._engine.connect()
        try:
            result = work(connection)
        except (sa.exc.SQLAlchemyError, BillingError) as error:
            connection.rollback()
            connection.close()
            meaning = translate(error) if isinstance(error, sa.exc.SQLAlchemyError) else None
            if meaning is None:
                raise
            raise meaning from error
        driver: Any = connection.connection.driver_connection
        self.open = Parked(connection, driver.info.backend_pid)
        return result

    def take_open(self) -> Parked | None:
        """The transaction left open by the effect that just ran."""
        parked, self.open = self.open, None
        return parked

    def _repeat(self, attempt: Callable[[], T], *, after_loss: Callable[[], bool]) -> T:
        """Not again at once: in one thread no other actor can move meanwhile."""
        try:
            return attempt()
        except sa.exc.SQLAlchemyError as error:
            meaning = translate(error)
            if meaning is None:
                raise
            raise meaning from error
