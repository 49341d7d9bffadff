"""Incidents with both bounds and the time nobody saw; holds that end once; looks at outboxes in bulk."""

from pathlib import Path

from alembic import op

from billing_tasks.ledger.migrations import statements

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    connection = op.get_bind().execution_options(no_parameters=True)
    connection.exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
    for text in statements("move_cursor.sql", "observe_outboxes.sql", "post_batch.sql"):
        connection.exec_driver_sql(text)
