"""Ends of holds that are booked already are looked up once per batch, not twice."""

from alembic import op

from billing_tasks.ledger.migrations import statements

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    connection = op.get_bind().execution_options(no_parameters=True)
    for text in statements("post_batch.sql"):
        connection.exec_driver_sql(text)
