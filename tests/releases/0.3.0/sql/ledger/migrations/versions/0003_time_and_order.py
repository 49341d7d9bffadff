"""Time and order that go backwards: what the ledger notices, refuses or sets right.

Columns and functions are only added, and functions keep their arguments, so workers of 0.1.0 and 0.2.0 go on while
this runs and after it.
"""

from alembic import op

from billing_tasks.ledger.migrations.run_sql import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        __file__,
        "outbox_accounts",
        "move_cursor",
        "observe_outboxes",
        "post_batch_v2",
        "server_run",
        "guard_versions",
        "archived_months",
        "openings",
        "broken_invariants",
        "erase_person",
    )
