"""A balance below zero is explained, too, by requests that were under way when Redis came back older."""

from alembic import op

from billing_tasks.ledger.migrations import statements

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    connection = op.get_bind().execution_options(no_parameters=True)
    for text in statements("broken_invariants.sql"):
        connection.exec_driver_sql(text)
