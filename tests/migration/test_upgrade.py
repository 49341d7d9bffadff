"""Every released schema, with rows in it, becomes today's by `migrate`; the release before works on while it runs."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from psycopg import sql

from billing_tasks.errors import BadSettings
from billing_tasks.lab.servers import Servers
from billing_tasks.ledger import migrations
from billing_tasks.ledger.migrations import pending, upgrade
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.ids import new_request_id
from tests.migration.conftest import AsReleased
from tests.releases import catalog
from tests.releases.put_back import new_database
from tests.releases.record import HERE, releases
from tests.releases.state import ROWS, rows_of

RELEASES = releases()
BASELINE = HERE / "0.1.0"
each_release = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)


def schema(url: str) -> str:
    with psycopg.connect(url) as connection:
        return catalog.as_text(catalog.catalog(connection))


@pytest.fixture
def fresh(servers: Servers) -> str:
    """Today's schema, made at once."""
    url = new_database(servers.database_url, "fresh")
    upgrade(url)
    return url


@each_release
def test_an_upgraded_schema_is_the_one_of_a_fresh_install(release: Path, as_released: AsReleased, fresh: str) -> None:
    url = as_released(release, "upgraded")

    upgrade(url)

    assert pending(url) == []
    assert schema(url) == schema(fresh)


@each_release
def test_an_upgrade_keeps_every_row_and_the_books(release: Path, as_released: AsReleased) -> None:
    url = as_released(release, "upgraded")
    before = {name: rows_of(url, statement) for name, statement in ROWS.items()}

    upgrade(url)
    upgrade(url)  # again changes nothing

    assert {name: rows_of(url, statement) for name, statement in ROWS.items()} == before
    assert all(before[name] for name in ("users", "consume_log", "refunds", "dead_letters"))
    assert rows_of(url, "select * from billing.broken_invariants()") == []


def test_a_later_revision_may_be_called_0005_as_the_last_one_of_0_1_0(fresh: str) -> None:
    with psycopg.connect(fresh, autocommit=True) as connection:
        connection.execute("update billing.alembic_version set version_num = '0005'")
    with pytest.raises(BadSettings, match=r"later release .*0005"):  # not taken for 0001, which would begin anew
        upgrade(fresh)


def test_the_first_revision_is_release_0_1_0(servers: Servers) -> None:
    url = new_database(servers.database_url, "first_revision")
    with migrations._engine(url).connect() as connection:
        config = migrations._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

    assert schema(url) == (BASELINE / "catalog.json").read_text()


# -- the release before -----------------------------------------------------------------------------------


def consume(quota: int, *, request_id: str | None = None, **more: Any) -> dict[str, Any]:
    """An event as workers of 0.1.0 send it; the digest is of what their formula covers."""
    body = {"user_id": 42, "token_id": 7, "channel_id": 3, "model_name": "m", "prompt_tokens": 5}
    log = ConsumeLog(**body, quota=quota, request_id=request_id or new_request_id(), completion_tokens=0)
    old = events.fingerprint_of_0_1_0(events.of_log(log))
    return {"kind": "consume", "request_id": log.request_id, "fingerprint": old, "quota": quota, **body, **more}


def post(connection: psycopg.Connection[Any], *batch: dict[str, Any], cursor: tuple[Any, ...] = (None,) * 3) -> Any:
    """The statement of 0.1.0's workers."""
    return connection.execute(
        "select outcomes, users, tokens from billing.post_batch("
        "cast(%s as integer), cast(%s as text), cast(%s as bigint), cast(%s as bigint), cast(%s as bigint))",
        (10, json.dumps(batch), *cursor),
    ).fetchone()


@pytest.fixture
def upgraded(as_released: AsReleased) -> str:
    url = as_released(BASELINE, "previous_release")
    upgrade(url)
    return url


def test_calls_of_the_release_before_are_answered_as_before(upgraded: str) -> None:
    with psycopg.connect(upgraded, autocommit=True) as connection:
        [quota] = connection.execute("select quota from billing.users where id = 42").fetchone() or [0]
        charge = consume(40, usage={"cached": [1, {"a": "ä"}]}, elapsed_ms=12)
        outcomes, users, _ = post(connection, charge, cursor=(7_000_000_000_000_000, 1, 1))
        assert outcomes is None
        assert json.loads(users)[0][1] == quota - 40
        assert json.loads(post(connection, charge, consume(41, request_id=charge["request_id"]))[0]) == [
            "duplicate",
            "conflict",
        ]
        refund = {"kind": "refund", "request_id": charge["request_id"], "user_id": 42, "token_id": 0, "whole": True}
        given = connection.execute(
            "select outcome from billing.post_refund(10, %s)",
            [json.dumps({**refund, "fingerprint": "ab" * 16, "refund_id": "case-77"})],
        ).fetchone()
        assert given == ("posted",)
        [usage] = connection.execute(
            "select usage from billing.consume_log where request_id = %s", [charge["request_id"]]
        ).fetchone() or [None]
        assert usage == {"cached": [1, {"a": "ä"}]}
        look = [{"shard": 10, "epoch": 7_000_000_000_000_000, "seq": 3}]
        connection.execute("select billing.observe_outboxes(%s, 1000)", [json.dumps(look)])
        assert connection.execute("select * from billing.broken_invariants()").fetchall() == []


def test_statements_of_the_release_before_find_every_column(upgraded: str) -> None:
    relations = json.loads((BASELINE / "catalog.json").read_text())["relations"]
    with psycopg.connect(upgraded, autocommit=True) as connection:
        for relation, recorded in relations.items():
            if not relation.endswith("<month>"):
                names = sql.SQL(", ").join(map(sql.Identifier, recorded["columns"]))
                table = sql.Identifier("billing", relation)
                connection.execute(sql.SQL("select {} from {} limit 1").format(names, table))


def test_workers_of_the_release_before_go_on_while_migrate_runs(as_released: AsReleased) -> None:
    url = as_released(BASELINE, "busy")
    done, posted, failed = threading.Event(), [], []

    def work() -> None:
        with psycopg.connect(url, autocommit=True, options="-c lock_timeout=3000") as connection:
            while not done.is_set():
                event = consume(1)
                try:
                    assert post(connection, event)[0] is None
                    posted.append(event["request_id"])
                except psycopg.Error as exc:
                    failed.append(exc)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        while len(posted) < 20:
            assert not failed, failed
        upgrade(url)
        reached = len(posted)
        while len(posted) < reached + 20:
            assert not failed, failed
    finally:
        done.set()
        for worker in workers:
            worker.join()
    assert failed == []
    [booked] = rows_of(url, "select count(*) as n from billing.ledger_entries where model_name = 'm' and quota = 1")
    assert booked["n"] == len(posted)
    assert rows_of(url, "select * from billing.broken_invariants()") == []
