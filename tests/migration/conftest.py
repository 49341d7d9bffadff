"""Databases as recorded releases left them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from billing_tasks.lab.servers import Servers
from tests.releases.dump import load
from tests.releases.put_back import new_database
from tests.releases.templates import Names

#: A release's folder and a name -> the address of a database that has its schema and its rows.
AsReleased = Callable[[Path, str], str]


@pytest.fixture
def as_released(servers: Servers) -> AsReleased:
    """Makes a database as a release left it."""

    def make(release: Path, name: str) -> str:
        url = new_database(servers.database_url, name)
        with psycopg.connect(url) as connection:
            connection.execute((release / "sql/schema.sql").read_text())  # type: ignore[arg-type]
            load(connection, (release / "data.sql").read_text(), Names())
        return url

    return make
