"""What PostgreSQL's errors mean for the caller: refused data, an absent server, or a bug of ours.

Only SQLSTATEs are looked at, never messages, which are translated and change.
"""

from __future__ import annotations

from typing import Final

import psycopg
from sqlalchemy import exc

from billing_tasks.errors import BillingError, InvalidRequest, Unavailable

#: Two transactions got into each other's way; the same one again will do.
TRY_AGAIN: Final = frozenset({"40001", "40P01"})  # serialization, deadlock

_READ_ONLY: Final = "25006"  # a standby, or a primary that became one

#: No server, or none that can write now. The statement may have been applied.
_AWAY: Final = (
    "08",  # connection lost
    "53",  # too many connections, disk full, out of memory
    "57P",  # shut down, crashed, starting up
    "57014",  # statement_timeout
    _READ_ONLY,
    "25P03",  # idle_in_transaction_session_timeout
    "55P03",  # lock_timeout: waited for already; the transaction that has the lock may keep it for minutes
)

#: The schema is older than this program. Retrying helps as soon as the operator has migrated.
_NOT_MIGRATED: Final = ("3F000", "42P01", "42883", "42703", "42704")

#: What LedgerRefusedData.reason says if only the month for the time inside the id is missing: `migrate` makes it.
NO_PARTITION: Final = "no_partition"

#: The values can't be stored, and never will be.
_REFUSED: Final = (
    "22",  # NUL, overflow, not JSON, not a uuid, not an amount
    "23502",  # a field is missing
    "23514",  # a check
    "54",  # too long for an index, nested too deep
)


class LedgerRefusedData(InvalidRequest):
    """PostgreSQL can't store one of the values given. Nothing was booked; of a batch, find the event by halving."""


def sqlstate(error: exc.SQLAlchemyError) -> str | None:
    """The five characters, or None if the error did not come from the server."""
    return getattr(error.orig, "sqlstate", None) if isinstance(error, exc.DBAPIError) else None


def in_the_way(error: BaseException) -> bool:
    """True for an error after which the same transaction is tried again at once."""
    return isinstance(error, exc.DBAPIError) and sqlstate(error) in TRY_AGAIN


def connection_lost(error: BaseException) -> bool:
    """True if an established connection turned out to be dead."""
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def read_only(error: BaseException) -> bool:
    """True if the session can't write: a standby's, or one begun while writing was switched off."""
    return isinstance(error, exc.DBAPIError) and sqlstate(error) == _READ_ONLY


def translate(error: exc.SQLAlchemyError) -> BillingError | None:
    """The error to raise instead, or None: then it is a bug and must be seen as it is."""
    if isinstance(error, exc.TimeoutError):
        return Unavailable("All database connections of this process are busy; raise BILLING_DATABASE_CONNECTIONS.")
    if not isinstance(error, exc.DBAPIError):
        return None
    state, text = sqlstate(error), _first_line(error.orig)
    meaning: BillingError | None = None
    if state is None:
        if isinstance(error.orig, psycopg.DataError):  # psycopg itself refuses NUL in a text
            meaning = LedgerRefusedData(f"PostgreSQL can't store this: {text}")
        elif error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError):
            meaning = Unavailable(f"PostgreSQL can't be reached: {text}")
    elif state == "23514" and isinstance(error.orig, psycopg.Error) and not error.orig.diag.constraint_name:
        # A check has a name; what has none is a row without a partition.
        meaning = LedgerRefusedData(f"PostgreSQL has no partition for this; run migrate: {text}", reason=NO_PARTITION)
    elif state.startswith(_REFUSED):
        meaning = LedgerRefusedData(f"PostgreSQL can't store this: {text}", reason=state)
    elif state.startswith(_NOT_MIGRATED):
        meaning = Unavailable(
            f"The billing schema is missing or older than this program; migrate it: {text}", reason=state
        )
    elif state in TRY_AGAIN or state.startswith(_AWAY) or error.connection_invalidated:
        meaning = Unavailable(f"PostgreSQL did not confirm: {text}", reason=state)
    return meaning


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
