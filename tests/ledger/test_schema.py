"""The schema: migrations, models and partitions."""

from __future__ import annotations

import time

import msgspec
import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from billing_tasks.errors import Unavailable
from billing_tasks.ledger.database import creator
from billing_tasks.ledger.migrations import pending, upgrade
from billing_tasks.ledger.models import Base
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.ids import MAX_AGE_DAYS, MAX_AHEAD_SECONDS, check_request_id, new_request_id, reserved_at_ms
from billing_tasks.model.posting import PostOutcome
from billing_tasks.settings import Settings


def test_the_models_agree_with_the_migrations(ledger_url):
    def ours(thing, name, kind, reflected, compared):
        return not (
            kind == "table" and reflected and (name.startswith("ledger_entries_2") or name == "alembic_version")
        )

    # A role called billing has our schema as its default one, which Alembic would then leave out.
    connect = creator(ledger_url, options="-c search_path=public")
    engine = sa.create_engine("postgresql+psycopg://", creator=connect, poolclass=sa.NullPool)
    with engine.connect() as connection:
        options = {"include_schemas": True, "include_object": ours, "include_name": _only_billing}
        context = MigrationContext.configure(connection, opts={"compare_type": True, **options})
        assert compare_metadata(context, Base.metadata) == []


def _only_billing(name, kind, parents):
    return name == "billing" if kind == "schema" else True


def test_upgrading_twice_changes_nothing(new_database):
    url = new_database()
    assert pending(url)[0] == "0001"

    upgrade(url)
    upgrade(url)

    assert pending(url) == []


def test_everything_lives_in_the_schema_billing(spare_sql):
    [elsewhere] = spare_sql.execute(
        "select count(*) from pg_class where relnamespace = 'public'::regnamespace"
    ).fetchone()
    assert elsewhere == 0


def test_a_database_that_was_not_migrated_is_unavailable_and_says_so(new_database):
    ledger = Ledger.from_settings(Settings(database_url=new_database()))

    with pytest.raises(Unavailable, match="migrate"):
        ledger.get_user(1)
    with pytest.raises(Unavailable, match="migrate"):
        ledger.post_batch(1, [])
    ledger.dispose()


def test_entry_ids_made_by_the_server_are_request_ids_of_now(sql):
    for _ in range(50):
        [entry_id] = sql.execute("select billing.new_entry_id()::text").fetchone()
        assert check_request_id(entry_id) == entry_id
        assert abs(reserved_at_ms(entry_id) / 1000 - time.time()) < 5


def test_a_partition_begins_with_the_first_id_of_its_month(sql):
    [first] = sql.execute("select billing.first_entry_id('2026-11-01 00:00:00+00')::text").fetchone()

    assert reserved_at_ms(first) == 1793491200000
    assert first.endswith("-0000-0000-000000000000")


def dated(seconds_from_now: float) -> str:
    """A request id minted that far from now."""
    ms = int((time.time() + seconds_from_now) * 1000)
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}{new_request_id()[13:]}"


@pytest.mark.parametrize("seconds", [-MAX_AGE_DAYS * 86_400 + 60, -86_400, MAX_AHEAD_SECONDS, 60 * 86_400])
def test_every_id_that_is_accepted_has_a_partition(ledger, payer, shard, seconds):
    event = payer.consume(5, request_id=dated(seconds))

    assert ledger.post_batch(shard, [event]).outcomes == [PostOutcome.POSTED]
    assert ledger.post_batch(shard, [event]).outcomes == [PostOutcome.DUPLICATE]
    conflict = msgspec.structs.replace(event, fingerprint="00" * 16)
    assert ledger.post_batch(shard, [conflict]).outcomes == [PostOutcome.CONFLICT]


def test_five_months_are_there_and_maintaining_them_again_makes_none(ledger, sql):
    [months] = sql.execute(
        "select count(*) from pg_inherits where inhparent = 'billing.ledger_entries'::regclass"
    ).fetchone()

    assert months in (5, 6)  # 31 days back reach over a whole February
    assert ledger.maintain_partitions() == 0


def test_a_month_made_later_is_like_the_first_ones(spare_ledger, spare_sql):
    last = _drop_last_month(spare_sql)

    assert spare_ledger.maintain_partitions() == 1

    first = spare_sql.execute("select to_char(now() at time zone 'UTC', 'YYYY_MM')").fetchone()[0]
    assert _description(spare_sql, last) == _description(spare_sql, first)


def test_a_month_is_made_while_requests_are_being_posted(spare_ledger, new_spare_payer, spare_sql, spare_url):
    payer = new_spare_payer()
    _drop_last_month(spare_sql)

    with psycopg.connect(spare_url) as posting:
        posting.execute("select billing.book_user_change(%s, 5, 0, '', 'not committed yet')", [payer.user.id])
        assert spare_ledger.maintain_partitions() == 1
        assert spare_ledger.post_batch(1, [payer.consume(1)]).outcomes == [PostOutcome.POSTED]


def _drop_last_month(sql) -> str:
    [month] = sql.execute("select to_char(now() at time zone 'UTC' + interval '3 months', 'YYYY_MM')").fetchone()
    sql.execute(f"drop table billing.ledger_entries_{month}")
    return month


def _description(sql, month: str) -> list[str]:
    """Indexes, constraints and triggers of one month, its name left out."""
    rows = sql.execute(
        "select pg_get_indexdef(indexrelid) from pg_index where indrelid = %(t)s::regclass"
        " union all select pg_get_constraintdef(oid) from pg_constraint where conrelid = %(t)s::regclass"
        " union all select pg_get_triggerdef(oid) from pg_trigger where tgrelid = %(t)s::regclass order by 1",
        {"t": f"billing.ledger_entries_{month}"},
    ).fetchall()
    return [text.replace(month, "") for (text,) in rows]


def test_balances_are_updated_in_place(spare_ledger, new_spare_payer, spare_sql):
    payer = new_spare_payer()
    for _ in range(20):
        spare_ledger.post_batch(1, [payer.consume(1)])

    spare_ledger.dispose()  # sessions report their statistics when they end
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        counts = spare_sql.execute(
            "select relname, n_tup_upd, n_tup_hot_upd from pg_stat_user_tables"
            " where schemaname = 'billing' and relname in ('users', 'tokens', 'channel_usage')"
        ).fetchall()
        if all(updated >= 19 for _, updated, _ in counts):
            break
        time.sleep(0.05)
    assert all(updated == in_place >= 19 for _, updated, in_place in counts)
