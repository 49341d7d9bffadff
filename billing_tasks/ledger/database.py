"""The one engine of a process: connections, transactions, and what happens when they fail.

Nothing connects before the first statement. A forked child must call
`dispose_after_fork()` before it uses what it inherited: two processes on one
connection would read each other's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.pool import QueuePool
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from billing_tasks.addresses import scrub
from billing_tasks.errors import BadSettings, Unavailable
from billing_tasks.ledger.failures import connection_lost, in_the_way, read_only, translate
from billing_tasks.ledger.watch import Watch
from billing_tasks.settings import Settings

T = TypeVar("T")

#: A row of whatever columns were asked for.
Record: TypeAlias = sa.Row[*tuple[Any, ...]]

#: A transaction that met another one is tried this often, 10 to 200 ms apart.
_ATTEMPTS = 4
_CONNECT_TIMEOUT_SECONDS = 3


class Database:
    """Runs statements and transactions, and turns PostgreSQL's errors into ours."""

    def __init__(self, settings: Settings) -> None:
        #: PostgreSQL ends a statement before that; an answer that is not there by then is of a server that is stopped.
        self._bound = settings.statement_timeout_seconds + settings.lock_timeout_seconds + 1
        #: What a reservation waits for a row: it waits for no lock.
        self.read_seconds = min(settings.statement_timeout_seconds, settings.lock_timeout_seconds)
        self._watch = Watch()
        self._engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=creator(settings.database_url, **_timeouts(settings)),
            poolclass=QueuePool,
            pool_size=settings.database_connections,
            max_overflow=0,
            pool_timeout=settings.lock_timeout_seconds,
            # No pre-ping: it costs a round trip per call. A dead connection is replaced in `_repeat`.
            pool_pre_ping=False,
        )
        sa.event.listen(self._engine, "connect", _note_unconfirmed)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    def statement(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None, *, seconds: float | None = None
    ) -> list[Record]:
        """Run one statement as a transaction of its own, in one round trip. It must be safe to repeat.

        `seconds`: give up after so long, and not only when PostgreSQL should have.
        """
        bound = self._bound if seconds is None else seconds

        def attempt() -> list[Record]:
            with self._autocommit.connect() as connection, self._watch.over(_descriptor(connection), bound):
                rows = list(connection.execute(statement, parameters or {}).all())
                _check_confirmed(connection.info)
            return rows

        return self._repeat(attempt, after_loss=lambda: True)

    def transaction(
        self, work: Callable[[sa.Connection], T], *, repeatable: bool = True, seconds: float | None = None
    ) -> T:
        """Run `work` in one transaction and commit it.

        `repeatable=False`: a connection that is lost while committing may have committed,
        so `work` is not run again then. `seconds`: how long it may take altogether.
        """
        committing = False
        bound = self._bound if seconds is None else seconds

        def attempt() -> T:
            nonlocal committing
            committing = False
            with (
                self._engine.connect() as connection,
                self._watch.over(_descriptor(connection), bound),  # around the commit, too
                connection.begin(),
            ):
                result, info = work(connection), connection.info
                committing = True
            _check_confirmed(info)
            return result

        return self._repeat(attempt, after_loss=lambda: repeatable or not committing)

    def _repeat(self, attempt: Callable[[], T], *, after_loss: Callable[[], bool]) -> T:
        """Again at once if another transaction was in the way, once more if the pooled connection was dead."""
        retrying = Retrying(
            retry=retry_if_exception(in_the_way),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random(0.01, 0.2),
            reraise=True,
        )
        try:
            try:
                return retrying(attempt)
            except sa.exc.DBAPIError as error:
                # SQLAlchemy has dropped every connection as old as the dead one, so the next one is fresh.
                if not (connection_lost(error) and after_loss()):
                    raise
            return retrying(attempt)
        except sa.exc.SQLAlchemyError as error:
            if read_only(error):
                # A session may stay read-only although the server is no longer, or is another one by now.
                self.dispose()
            meaning = translate(error)
            if meaning is None:
                raise
            raise meaning from error

    def dispose(self) -> None:
        """Close all connections. The next statement opens new ones."""
        self._engine.dispose()

    def dispose_after_fork(self) -> None:
        """Forget connections inherited from the parent without closing them: they are the parent's."""
        self._engine.dispose(close=False)


def _descriptor(connection: sa.Connection) -> int:
    """Of the socket of a connection."""
    raw: Any = connection.connection.dbapi_connection
    return int(raw.fileno())


def _note_unconfirmed(connection: psycopg.Connection[Any], record: Any) -> None:
    """Have the pool's record of a new connection say when a COMMIT did not wait for the standby that it should have."""

    def noticed(diagnostic: psycopg.errors.Diagnostic) -> None:
        # By the function, because the text is translated and the SQLSTATE is that of any warning.
        if diagnostic.source_function == "SyncRepWaitForLSN":
            record.info["unconfirmed"] = True

    connection.add_notice_handler(noticed)


def _check_confirmed(info: dict[Any, Any]) -> None:
    """A COMMIT whose wait for a standby was cancelled answers success; a failover may undo it all the same."""
    if info.pop("unconfirmed", False):
        raise Unavailable(
            "PostgreSQL committed, but did not wait until a standby had it. It may be gone after a failover."
        )


def creator(database_url: str, *, options: str = "", **defaults: int) -> Callable[[], psycopg.Connection[Any]]:
    """How to open a connection. `options` are added to the address's own, `defaults` give way to it.

    libpq reads the address itself, so all it understands works: several hosts, a socket's folder.
    """
    try:
        given = conninfo_to_dict(database_url)
    except psycopg.ProgrammingError as exc:
        said = scrub(str(exc).strip(), database_url)
        raise BadSettings(f"BILLING_DATABASE_URL can't be read: {said}") from None
    arguments: dict[str, Any] = {
        "application_name": "billing_tasks",
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        **defaults,
        **given,
        # Whatever the server's default: an answer of ours means it is on disk.
        "options": f"{given.get('options', '')} -c synchronous_commit=on {options}".strip(),
    }
    return lambda: psycopg.connect(**arguments)


def _timeouts(settings: Settings) -> dict[str, Any]:
    lock_ms = round(settings.lock_timeout_seconds * 1000)
    statement_ms = round(settings.statement_timeout_seconds * 1000)
    return {
        "options": f"-c statement_timeout={statement_ms} -c lock_timeout={lock_ms}"
        f" -c idle_in_transaction_session_timeout={statement_ms + lock_ms}",
        # A server that vanished without a word is noticed soon after its statement should have timed out.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": statement_ms + lock_ms,
    }
