"""Prices: what operators set, and each list of prices that a request was ever priced by.

Tables are only added, so gateways and workers of 0.1.0 to 0.3.0 go on while this runs and after it.
"""

from alembic import op

from billing_tasks.ledger.migrations.run_sql import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql(op.get_bind(), __file__, "price_changes", "price_lists", "corrections", "broken_invariants", "estimates")
