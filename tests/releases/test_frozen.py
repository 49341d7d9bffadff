"""A recorded release is never edited, and what is recorded of it can be put to use again."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from billing_tasks.lab.servers import Servers
from tests.releases import catalog, inside
from tests.releases.dump import dump, load
from tests.releases.put_back import new_database
from tests.releases.record import SUMS, releases, sums
from tests.releases.templates import Names

RELEASES = releases()
VERSIONS = "ledger/migrations/versions"
each_release = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)


def test_release_0_1_0_is_recorded() -> None:
    assert "0.1.0" in [release.name for release in RELEASES]


@each_release
def test_no_file_of_a_release_is_changed_added_or_removed(release: Path) -> None:
    assert sums(release).splitlines() == (release / SUMS).read_text().splitlines(), (
        "a recorded release is never edited; what is new is recorded as a new release"
    )


@each_release
def test_released_revisions_are_as_they_were(release: Path) -> None:
    """A database that ran one of them will never run what is changed in it."""
    # The five revisions of 0.1.0 are today's first one: its functions lay in a folder of their own.
    folder = "ledger/sql" if release.name == "0.1.0" else VERSIONS
    files = [file for file in (release / "sql" / folder).rglob("*") if file.is_file()]
    prefix = f"{VERSIONS}/0001_baseline" if release.name == "0.1.0" else VERSIONS
    recorded = {f"{prefix}/{file.relative_to(release / 'sql' / folder).as_posix()}": file.read_text() for file in files}
    today = inside.revisions()

    assert recorded
    assert {name for name, text in recorded.items() if today.get(name) != text} == set(), "add a revision instead"


@each_release
def test_the_recorded_sql_makes_the_recorded_schema(release: Path, servers: Servers) -> None:
    with psycopg.connect(new_database(servers.database_url, "recorded_schema")) as connection:
        connection.execute((release / "sql/schema.sql").read_text())  # type: ignore[arg-type]
        assert catalog.as_text(catalog.catalog(connection)) == (release / "catalog.json").read_text()


@each_release
def test_recorded_rows_can_be_loaded_and_the_books_are_right(release: Path, servers: Servers) -> None:
    text, names = (release / "data.sql").read_text(), Names()
    with psycopg.connect(new_database(servers.database_url, "recorded_rows")) as connection:
        connection.execute((release / "sql/schema.sql").read_text())  # type: ignore[arg-type]
        load(connection, text, names)
        assert connection.execute("select * from billing.broken_invariants()").fetchall() == []
        assert dump(connection, Names(names.ids), release=release.name) == text
        # Triggers and sequences work on from there.
        connection.execute("update billing.users set quota = quota + 1 where id = 42")
        connection.execute("insert into billing.users (quota) values (5)")
        assert connection.execute("select * from billing.broken_invariants()").fetchall() == []
