"""Admin: all that an operator may ask and do, over one pool of connections.

    with Admin.from_settings() as admin:
        print(admin.status().problems)

Command line, tasks and metrics present it. Thread-safe; nothing connects before the first call.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from billing_tasks.admin.accounts import Accounts
from billing_tasks.admin.audit import Audit
from billing_tasks.admin.dead_letters import DeadLetters
from billing_tasks.admin.entries import Entries
from billing_tasks.admin.explain import Explanation, explain
from billing_tasks.admin.imports import Imports
from billing_tasks.admin.incidents import Incidents
from billing_tasks.admin.neighbours import Neighbours
from billing_tasks.admin.prices import Prices
from billing_tasks.admin.status import Status, status_of
from billing_tasks.flows.audit.answers import Watched
from billing_tasks.flows.audit.backlog import watch
from billing_tasks.model.ids import check_request_id
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings, load_settings


class Admin:
    """The operator's API: a door of power, not for gateways. Thread-safe; nothing connects before the first call."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.accounts = Accounts(runtime)
        self.entries = Entries(runtime)
        self.dead_letters = DeadLetters(runtime)
        self.imports = Imports(runtime)
        self.incidents = Incidents(runtime)
        self.audit = Audit(runtime)
        self.neighbours = Neighbours(runtime)
        self.prices = Prices(runtime)

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """An Admin as BILLING_* says, or as `settings` says. Raises BadSettings."""
        return cls(Runtime(settings or load_settings()))

    def status(self, *, workers: bool = True) -> Status:
        """How much waits, what failed, which workers answer. Raises nothing: an absent server is one of `problems`.

        `workers=False` does not ask the workers, which takes a second.
        """
        return status_of(self._runtime, workers=workers)

    def explain(self, request_id: str) -> Explanation:
        """A charge as arithmetic, by the price list that its entry names. Raises ChargeNotFound, Unavailable."""
        return explain(self._runtime, check_request_id(request_id))

    def backlog(self) -> Watched:
        """Events that wait in Redis, how long the oldest has, in milliseconds, and open holds. Raises Unavailable."""
        return self._runtime.run(watch(commands=self._runtime.commands))

    def migrate(self, *, change_layout: bool = False, change_ledger: bool = False) -> int:
        """Bring both servers to this version; returns how many months of the ledger were made now. Safe to repeat.

        `change_layout` takes another number of shards or other tags, if nothing is left in the old shards, and deletes
        their keys; stop every other process before, or it goes on with the old ones. Raises BadSettings if something
        is left, or if the layout differs and was not to change; Unavailable if a server is away or a table stays
        locked. `change_ledger` has Redis belong to this database although it was another one's; likewise.
        """
        from billing_tasks.admin.schema import migrate  # noqa: PLC0415 - Alembic, which nothing else needs

        return migrate(self._runtime, change_layout=change_layout, change_ledger=change_ledger)

    def installation(self) -> str:
        """The name of these books, which Redis and the queue have to be of. Raises Unavailable."""
        return self._runtime.ledger.installation()

    def maintain_partitions(self) -> int:
        """Make the ledger's months ahead; returns how many were made now. Raises Unavailable."""
        return self._runtime.ledger.maintain_partitions()

    def close(self) -> None:
        """Give connections back."""
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
