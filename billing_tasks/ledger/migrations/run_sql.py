"""Runs the SQL files of a revision. They lie in a folder named like the revision's own file, and never change."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa


def run_sql(connection: sa.Connection, revision: str, *names: str) -> None:
    """Run these files in their order; `revision` is the `__file__` of the revision they belong to."""
    # Without parameters, so that "%" means nothing and a file may hold many statements.
    plain = connection.execution_options(no_parameters=True)
    for name in names:
        plain.exec_driver_sql((Path(revision).with_suffix("") / f"{name}.sql").read_text(encoding="utf-8"))
