"""The time of use, a price version, and room for what later releases record: usage, price and details as JSON.

Columns and functions are only added, so workers of release 0.1.0 go on while this runs and after it.
"""

from alembic import op

from billing_tasks.ledger.migrations.run_sql import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql(op.get_bind(), __file__, "columns", "posting_event_v2", "post_batch_v2", "post_refund_v2", "calls_of_0_1_0")
