"""A statement planned while its tables were empty must not be slow once they are full.

Not wall time but blocks read are compared: they don't depend on the machine.
"""

from __future__ import annotations

import psycopg
import pytest

from billing_tasks.model import events

USERS = 20_000
EVENTS = 100


@pytest.fixture
def blocks(spare_url, new_spare_payer):
    """Blocks read per event by posting a batch in the session given."""
    payer = new_spare_payer()

    def call(session, batch):
        plan = session.execute(
            "explain (analyze, buffers, format json) select * from billing.post_batch_v2('[{\"shard\": 1}]', %s)",
            [events.encode_all(batch)],
        ).fetchone()[0][0]["Plan"]
        return (plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]) / len(batch)

    def batch():
        return [payer.consume(1, user_id=n, token_id=n) for n in range(1, USERS + 1, USERS // EVENTS)]

    call.new_batch = batch
    return call


def test_plans_made_while_all_was_empty_read_no_more_than_plans_made_now(spare_url, spare_sql, blocks):
    for table in ("users", "tokens", *_months(spare_sql)):
        spare_sql.execute(f"alter table billing.{table} set (autovacuum_enabled = off)")
        spare_sql.execute(f"vacuum analyze billing.{table}")  # now the planner is sure that they are tiny
    with psycopg.connect(spare_url, autocommit=True) as old:
        for _ in range(8):  # past the point where a statement's plan is kept
            event = blocks.new_batch()[0]
            blocks(old, [event, event])  # the second one takes the way of the duplicates, too
        _fill(spare_sql)
        batch, repeated = blocks.new_batch(), blocks.new_batch()
        blocks(old, repeated)

        old_plans, old_repeats = blocks(old, batch), blocks(old, repeated)
        with psycopg.connect(spare_url, autocommit=True) as new:
            new_plans, new_repeats = blocks(new, blocks.new_batch()), blocks(new, repeated)

    assert old_plans < 1.5 * new_plans
    assert old_repeats < 1.5 * new_repeats
    assert old_plans < 80
    assert old_repeats < 40


def _months(sql) -> list[str]:
    return [
        name
        for (name,) in sql.execute(
            "select relname from pg_class join pg_inherits on inhrelid = oid"
            " where inhparent = 'billing.ledger_entries'::regclass"
        )
    ]


def _fill(sql) -> None:
    """Users, tokens, and a month of entries, not analyzed yet."""
    sql.execute("insert into billing.users (id, quota) select n, 1000 from generate_series(2, %s) as n", [USERS])
    sql.execute(
        "insert into billing.tokens (id, user_id, remain_quota) select n, n, 1000 from generate_series(2, %s) as n",
        [USERS],
    )


def test_a_user_with_many_tokens_is_not_read_through(spare_url, spare_sql, blocks):
    _fill(spare_sql)
    spare_sql.execute("insert into billing.tokens (user_id) select 1 from generate_series(1, 3000)")
    spare_sql.execute("vacuum analyze")

    with psycopg.connect(spare_url) as session:
        blocks(session, blocks.new_batch()[:1])
        [read] = session.execute(
            "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'tokens'"
        ).fetchone()

    assert read < 50
