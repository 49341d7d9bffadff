"""The ledger of release 0.1.0: tables, triggers, posting functions, the first partitions.

There is no way back: downgrading would drop the books.
"""

from alembic import op

from billing_tasks.ledger.migrations.run_sql import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    # In this order: a function written in SQL must find what it names.
    run_sql(
        op.get_bind(),
        __file__,
        "tables",
        "new_entry_id",
        "guard_accounts",
        "maintain_partitions",
        "posting_event",
        "account_rows",
        "move_cursor",
        "observe_outboxes",
        "post_batch",
        "post_refund",
        "broken_invariants",
    )
    op.get_bind().exec_driver_sql("select billing.maintain_partitions()")
