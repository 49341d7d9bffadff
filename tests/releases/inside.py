"""The only module of the recorder that knows the inside of the package: where scripts and SQL lie, how it migrates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from billing_tasks.holds.scripts import script
from billing_tasks.ledger.migrations import upgrade


def lua_scripts() -> dict[str, str]:
    """Each script by its name, exactly as Redis gets it."""
    folder = resources.files("billing_tasks.holds") / "lua"
    names = [file.name.removesuffix(".lua") for file in folder.iterdir() if file.name.endswith(".lua")]
    return {name: script(name).body for name in sorted(names)}


def revisions() -> dict[str, str]:
    """Each file of a revision, its SQL and its Python, by where it lies below the package."""
    package = Path(str(resources.files("billing_tasks")))
    versions = package / "ledger" / "migrations" / "versions"
    files = sorted([*versions.glob("*/*.sql"), *versions.glob("0*.py")])
    return {file.relative_to(package).as_posix(): file.read_text(encoding="utf-8") for file in files}


def migrate(database_url: str) -> list[str]:
    """Bring an empty database to this release's schema; returns the statements that changed something, as they ran."""
    with _statements() as seen:
        upgrade(database_url)
    reading = ("select pg_catalog", "select pg_advisory", "set local", "show ", "select billing.alembic_version")
    return [text for text in seen if not text.lower().lstrip().startswith(reading)]


@contextmanager
def _statements() -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        assert not parameters or statement.lower().lstrip().startswith("select pg_catalog"), statement
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
