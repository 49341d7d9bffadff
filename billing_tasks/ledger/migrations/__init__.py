"""Migrations: from whatever is there to the schema this version of the program needs.

Run by `upgrade`, never by Alembic's command line, so that no alembic.ini has to travel
with the wheel. All pending revisions are one transaction: a crash leaves the old schema.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.pool import NullPool

from billing_tasks.errors import BadSettings
from billing_tasks.ledger.database import creator
from billing_tasks.ledger.failures import translate

#: Where Alembic notes what was done: in our own schema, so that the app's own migrations don't meet it.
VERSION_TABLE: Final = "alembic_version"

_FOLDER: Final = Path(__file__).parent
_one_thread: Final = Lock()  # Alembic keeps its context in module globals


def upgrade(database_url: str) -> None:
    """Bring the database to the newest revision; nothing happens if it is there already.

    Safe to call from several processes at once: they queue, and all but the first find
    nothing to do. Raises Unavailable if PostgreSQL is away or a table stays locked, BadSettings
    if a later release migrated it.
    """
    try:
        with _one_thread, _engine(database_url).connect() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise BadSettings(f"A later release migrated the database ({error}). Upgrade this program.") from error
    except sa.exc.SQLAlchemyError as error:
        meaning = translate(error)
        if meaning is None:
            raise
        raise meaning from error


def pending(database_url: str) -> list[str]:
    """The revisions that `upgrade` would run, oldest first."""
    scripts = ScriptDirectory.from_config(_config())
    with _engine(database_url).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "version_table_schema": "billing"}
        )
        current = "0001" if _is_release_0_1_0(connection) else context.get_current_revision()
    return [script.revision for script in reversed(list(scripts.iterate_revisions("head", current or "base")))]


def adopt_release_0_1_0(connection: sa.Connection) -> None:
    """Release 0.1.0 reached by five revisions what is the first one today: note it so."""
    if _is_release_0_1_0(connection):
        connection.execute(sa.text(f"update billing.{VERSION_TABLE} set version_num = '0001'"))  # noqa: S608


def _is_release_0_1_0(connection: sa.Connection) -> bool:
    """Its last revision was 0005; a later one of ours may be called so, too, and has the columns of our 0002."""
    if not connection.scalar(sa.text(f"select to_regclass('billing.{VERSION_TABLE}') is not null")):
        return False
    looks = sa.text(
        f"select version_num = '0005' and not exists ("  # noqa: S608
        "select from information_schema.columns where table_schema = 'billing'"
        " and table_name = 'ledger_entries' and column_name = 'used_at')"
        f" from billing.{VERSION_TABLE}"
    )
    return bool(connection.scalar(looks))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    return config


def _engine(database_url: str) -> sa.Engine:
    return sa.create_engine("postgresql+psycopg://", creator=creator(database_url), poolclass=NullPool)
