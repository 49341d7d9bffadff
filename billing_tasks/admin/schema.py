"""The schema, brought to this version. Loads Alembic; who does not migrate does not load this."""

from __future__ import annotations

from billing_tasks.flows.account_cache import meet_server
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.runtime import Runtime

__all__ = ["migrate", "upgrade"]


def migrate(runtime: Runtime, *, change_layout: bool, change_ledger: bool) -> int:
    """The database's schema, the ledger's months ahead, the layout of Redis. Returns how many months were made now."""
    upgrade(runtime.settings.database_url)
    created = runtime.ledger.maintain_partitions()
    if change_ledger:
        runtime.holds.check_installation(change=True)
        *_, server = runtime.ledger.accounts(0, None)
        runtime.run(meet_server(server, runtime.commands))
    runtime.holds.check_layout(change=change_layout)
    return created
