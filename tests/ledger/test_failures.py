"""What the caller sees when PostgreSQL is away, slow, locked, read-only, or restarted."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa

from billing_tasks.errors import BadSettings, Unavailable
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import PostOutcome
from billing_tasks.settings import Settings


@pytest.fixture
def open_ledger(ledger_url):
    """Open the shared ledger with other settings."""
    opened = []

    def call(database_url=ledger_url, **settings):
        opened.append(Ledger.from_settings(Settings(database_url=database_url, **settings)))
        return opened[-1]

    yield call
    for ledger in opened:
        ledger.dispose()


def restart(sql) -> None:
    """To the clients of one database, a restarted server: every connection is dead."""
    sql.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


def test_a_restarted_server_is_not_noticed_by_the_next_call(ledger, payer, shard, sql):
    charge = payer.consume(1)
    calls = [
        lambda: ledger.post_batch(shard, [charge]),
        lambda: ledger.post_refund(shard, payer.refund(charge)),
        lambda: ledger.accounts(payer.user.id, payer.token.id),
        lambda: ledger.top_up(payer.user.id, 1, new_request_id()),
        ledger.create_user,
        lambda: ledger.claim_dead_letters(limit=1, lease_seconds=1, kind=new_request_id()),
    ]
    with ThreadPoolExecutor(8) as pool:  # fill the pool with connections that will be dead
        list(pool.map(lambda _: ledger.get_user(payer.user.id), range(64)))

    for call in calls:
        restart(sql)
        call()


def test_a_connection_lost_while_committing_is_not_repeated_blindly(ledger, sql, ledger_url):
    made = []

    def work(connection):
        made.append(connection.execute(sa.text("insert into billing.users default values returning id")).scalar())

    def lose(connection):
        connection.connection.driver_connection.pgconn.finish()

    sa.event.listen(ledger._db._engine, "commit", lose, once=True)
    with pytest.raises(Unavailable):
        ledger._db.transaction(work, repeatable=False)

    assert len(made) == 1


def test_no_connection_is_made_before_it_is_needed_and_a_server_that_is_away_is_unavailable(open_ledger):
    ledger = open_ledger("postgresql://user@127.0.0.1:1/none")

    began = time.monotonic()
    with pytest.raises(Unavailable, match="can't be reached"):
        ledger.get_user(1)
    assert time.monotonic() - began < 3


def test_the_password_is_not_in_the_message(open_ledger):
    ledger = open_ledger("postgresql://user:s3cret@127.0.0.1:1/none")

    with pytest.raises(Unavailable) as unavailable:
        ledger.get_user(1)
    assert "s3cret" not in str(unavailable.value)


def test_an_address_that_is_none_names_its_setting(open_ledger):
    with pytest.raises(BadSettings, match="BILLING_DATABASE_URL"):
        open_ledger("postgresql://[::1")


def test_a_locked_account_is_waited_for_once_and_then_unavailable(open_ledger, payer, shard, ledger_url):
    ledger = open_ledger(lock_timeout_seconds=1)
    with psycopg.connect(ledger_url) as other:
        other.execute("select from billing.users where id = %s for update", [payer.user.id])
        began = time.monotonic()
        with pytest.raises(Unavailable) as unavailable:
            ledger.post_batch(shard, [payer.consume(1)])

    assert unavailable.value.reason == "55P03"
    assert 1 <= time.monotonic() - began < 2


def test_a_lock_that_is_freed_in_time_is_no_error(open_ledger, payer, shard, ledger_url):
    ledger = open_ledger()
    with psycopg.connect(ledger_url) as other:
        other.execute("select from billing.users where id = %s for update", [payer.user.id])
        timer = threading.Timer(0.15, other.rollback)
        timer.start()
        assert ledger.post_batch(shard, [payer.consume(1)]).outcomes == [PostOutcome.POSTED]
        timer.join()


def test_a_deadlock_with_another_program_is_survived(ledger, payer, shard, ledger_url):
    with psycopg.connect(ledger_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("set deadlock_timeout = '30s'")  # the ledger's side is to be the victim
        other.execute("select from billing.tokens where id = %s for update", [payer.token.id])
        posting = pool.submit(ledger.post_batch, shard, [payer.consume(1)])
        time.sleep(0.3)  # now it has the user and waits for the token
        other.execute("select from billing.users where id = %s for update", [payer.user.id])
        other.rollback()

        assert posting.result(timeout=20).outcomes == [PostOutcome.POSTED]


def test_a_statement_that_takes_too_long_is_unavailable(open_ledger):
    ledger = open_ledger(statement_timeout_seconds=0.1)

    with pytest.raises(Unavailable) as unavailable:
        ledger._db.statement(sa.text("select pg_sleep(5)"))
    assert unavailable.value.reason == "57014"


def test_a_pool_that_is_used_up_is_unavailable(open_ledger):
    ledger = open_ledger(database_connections=1, lock_timeout_seconds=0.1)

    with ledger._db._engine.connect(), pytest.raises(Unavailable, match="BILLING_DATABASE_CONNECTIONS"):
        ledger.get_user(1)


def test_a_read_only_server_is_unavailable(spare_ledger, new_spare_payer, spare_sql):
    payer = new_spare_payer()
    spare_sql.execute(f"alter database {spare_sql.info.dbname} set default_transaction_read_only = on")
    spare_ledger.dispose()

    assert spare_ledger.get_user(payer.user.id) == payer.user
    with pytest.raises(Unavailable) as unavailable:
        spare_ledger.post_batch(1, [payer.consume(1)])
    assert unavailable.value.reason == "25006"


def test_our_own_mistakes_are_seen_as_they_are(ledger):
    with pytest.raises(sa.exc.ProgrammingError):
        ledger._db.statement(sa.text("selekt 1"))


def test_a_forked_child_has_connections_of_its_own(ledger, payer, shard):
    mine = _session(ledger)

    child = os.fork()
    if child == 0:
        own = False
        try:
            ledger.dispose_after_fork()
            own = _session(ledger) != mine
            ledger.post_batch(shard, [payer.consume(2)])
        finally:
            os._exit(0 if own else 1)
    _, status = os.waitpid(child, 0)

    assert status == 0
    assert _session(ledger) == mine
    assert ledger.get_user(payer.user.id).used_quota == 2


def _session(ledger) -> int:
    return ledger._db.statement(sa.text("select pg_backend_pid()"))[0][0]


def test_timeouts_and_name_reach_the_server_beside_the_addresss_own_options(open_ledger, ledger_url):
    own = psycopg.conninfo.make_conninfo(ledger_url, options="-c work_mem=7MB")
    ledger = open_ledger(own, statement_timeout_seconds=7, lock_timeout_seconds=2)

    names = ["work_mem", "statement_timeout", "lock_timeout", "application_name", "synchronous_commit"]
    shown = [ledger._db.statement(sa.text(f"show {name}"))[0][0] for name in names]
    assert shown == ["7MB", "7s", "2s", "billing_tasks", "on"]
