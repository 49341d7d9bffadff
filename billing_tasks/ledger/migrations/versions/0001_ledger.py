"""The ledger: tables, triggers, posting functions, the first partitions.

There is no way back: downgrading would drop the books.
"""

from pathlib import Path

from alembic import op

from billing_tasks.ledger.migrations import statements

revision = "0001"
down_revision = None


def upgrade() -> None:
    # Without parameters, so that "%" means nothing and a file may hold many statements.
    connection = op.get_bind().execution_options(no_parameters=True)
    connection.exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
    # In this order: a function written in SQL must find what it names.
    for text in statements(
        "new_entry_id.sql",
        "guard_accounts.sql",
        "maintain_partitions.sql",
        "posting_event.sql",
        "account_rows.sql",
        "move_cursor.sql",
        "post_batch.sql",
        "post_refund.sql",
        "broken_invariants.sql",
    ):
        connection.exec_driver_sql(text)
    connection.exec_driver_sql("select billing.maintain_partitions()")
