"""Runs the revisions on the connection that `upgrade` hands over. No offline mode."""

from alembic import context
from sqlalchemy import text

from billing_tasks.ledger.migrations import VERSION_TABLE, adopt_release_0_1_0
from billing_tasks.ledger.migrations.consume_log_view import refresh
from billing_tasks.ledger.models import SCHEMA, Base

connection = context.config.attributes["connection"]

#: What revisions change, in the order in which posting locks it: it goes on beside them, and neither must wait for the
#: other in a circle.
IN_THIS_ORDER = ("users", "tokens", "ledger_entries", "channel_usage", "outbox_cursors", "incidents")

with connection.begin():
    # Two that migrate at once queue here, however long the first one takes.
    connection.execute(text("set local lock_timeout = 0"))
    connection.execute(text("select pg_advisory_xact_lock(hashtext('billing.migrations'))"))
    # From here on a lock that isn't had soon is given up: a session that waits for an
    # exclusive lock on a table stops all that come later.
    connection.execute(text("set local lock_timeout = '5s'"))
    connection.execute(text(f"create schema if not exists {SCHEMA}"))
    adopt_release_0_1_0(connection)
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        version_table_schema=SCHEMA,
        include_schemas=True,
    )
    if context.get_context().get_current_revision() not in (None, context.get_head_revision()):
        tables = ", ".join(f"{SCHEMA}.{name}" for name in IN_THIS_ORDER)
        connection.execute(text(f"lock table {tables} in access exclusive mode"))
    context.run_migrations()
    if context.get_context().get_current_revision() == context.get_head_revision():
        refresh(connection)  # it names columns of the newest revision
