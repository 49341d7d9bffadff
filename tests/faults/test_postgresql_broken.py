"""PostgreSQL fails under real workers: they recover by themselves, reserving goes on, nothing accepted is dropped."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from billing_tasks import errors
from billing_tasks.flows.settlement import settle
from tests.conftest import CHANNEL, Payer
from tests.faults.site import Site
from tests.worker.conftest import eventually
from tests.worker.tasks import task_of

#: The workers' sessions, whichever they have by now.
SESSIONS = "application_name = 'billing_tasks' and pid <> pg_backend_pid()"


def use(site: Site, payer: Payer, times: int = 5) -> None:
    for _ in range(times):
        site.billing.use(site.billing.reserve(payer, 100), 40)


def booked(site: Site, payer: Payer, times: int) -> None:
    """Everything is booked, once, without an operator's help."""
    user_id = payer[0]
    eventually(
        lambda: site.billing.accounts.user(user_id).used_quota >= times * 40, seconds=60, what=f"{times} are booked"
    )
    site.settled()
    assert site.billing.accounts.user(user_id).used_quota == times * 40
    assert site.billing.available(user_id) == 1_000_000 - times * 40


def terminate(site: Site, which: str = SESSIONS) -> int:
    return len(site.billing.sql(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where {which}"))


@contextmanager
def foreign(site: Site, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    """Another program's transaction, open until the end of the block, then rolled back."""
    with psycopg.connect(site.billing.settings.database_url) as other:
        for statement in statements:
            other.execute(statement)  # type: ignore[arg-type]
        yield other
        other.rollback()


def waiting(site: Site) -> list[Any]:
    """Sessions of the product that wait for a lock."""
    return site.billing.sql(f"select pid from pg_stat_activity where {SESSIONS} and wait_event_type = 'Lock'")


def test_a_crash_under_traffic_loses_nothing_and_stops_nobody(site: Site) -> None:
    payers = [site.billing.payer() for _ in range(4)]
    refused: list[errors.BillingError] = []
    stop = threading.Event()
    used = [0]

    def traffic() -> None:
        while not stop.wait(0.005):
            try:
                use(site, payers[used[0] % 4], 1)
            except errors.BillingError as exc:
                refused.append(exc)
            used[0] += 1

    for payer in payers:
        use(site, payer, 1)
    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        eventually(lambda: used[0] > 20)
        site.servers.postgres.kill()
        before = used[0]
        eventually(lambda: used[0] > before + 50, what="reservations go on")
        site.servers.postgres.start()
        before = used[0]
        eventually(lambda: used[0] > before + 20)
    finally:
        stop.set()
        thread.join()
    assert refused == []
    eventually(
        lambda: sum(site.billing.accounts.user(p[0]).used_quota for p in payers) == (used[0] + 4) * 40,
        seconds=60,
        what="all that was used is booked",
    )


def test_a_drainer_that_gave_up_is_followed_by_its_own_retry_alone(site: Site) -> None:
    longest_wait = task_of("settle_shard").retry_backoff_max + site.billing.settings.statement_timeout_seconds
    assert longest_wait * 1000 < settle.QUIET_AFTER_FAILURE_MS


@pytest.mark.slow
@pytest.mark.skipif("BILLING_TEST_LONG" not in os.environ, reason="a minute; `make faults` runs it")
def test_a_long_outage_leaves_one_retrying_drainer_per_shard(site: Site) -> None:
    payer = site.billing.payer()
    use(site, payer, 1)
    booked(site, payer, 1)
    before = len(site.log("w1")), len(site.log("w2"))
    site.servers.postgres.stop()
    try:
        for _ in range(120):
            use(site, payer, 1)
            threading.Event().wait(0.5)  # the outage itself
    finally:
        site.servers.postgres.start()
    booked(site, payer, 121)
    written = site.log("w1")[before[0] :] + site.log("w2")[before[1] :]
    assert len(set(re.findall(r"billing\.settle\[([0-9a-f-]{36})\] retry", written))) == 1


def test_a_full_backlog_refuses_new_work_takes_what_was_promised_and_drains(site: Site) -> None:
    gateway = site.gateway(backlog_limit=10)
    payer = gateway.payer()
    promised = [gateway.reserve(payer, 100) for _ in range(15)]
    site.servers.postgres.stop()
    try:
        for reservation in promised[:10]:
            gateway.use(reservation, 40)
        with pytest.raises(errors.BacklogFull) as full:
            gateway.reserve(payer, 100)
        assert full.value.http_status == 503
        for reservation in promised[10:]:
            assert not gateway.use(reservation, 40).posted  # filed, not booked at once
    finally:
        site.servers.postgres.start()
    booked(site, payer, 15)
    gateway.use(gateway.reserve(payer, 100), 40)
    booked(site, payer, 16)
    gateway.bk.close()


def test_a_session_terminated_in_mid_transaction_books_once(site: Site) -> None:
    payer = site.billing.payer()
    with foreign(site, f"select from billing.users where id = {payer[0]} for update"):
        use(site, payer)
        ((pid,), *_) = eventually(lambda: waiting(site), what="a worker waits for the user's row")
        assert terminate(site, f"pid = {pid}") == 1
    booked(site, payer, 5)


def test_a_deadlock_with_another_program_ends_with_everything_booked(site: Site) -> None:
    payer = site.billing.payer()
    token = f"select from billing.tokens where id = {payer[1]} for update"
    with foreign(site, "set deadlock_timeout = '30s'", token) as other:
        use(site, payer)
        eventually(lambda: waiting(site), what="a worker has the user and waits for the token")
        other.execute(f"select from billing.users where id = {payer[0]} for update")  # type: ignore[arg-type]
    booked(site, payer, 5)


def test_without_a_free_connection_events_wait_and_are_booked_when_there_is_one(site: Site) -> None:
    payer = site.billing.payer()
    use(site, payer, 1)
    booked(site, payer, 1)
    with ExitStack() as others, psycopg.connect(site.billing.settings.database_url, autocommit=True) as admin:
        while True:  # until no worker has been faster than this
            with pytest.raises(psycopg.OperationalError, match="too many clients"):
                while True:
                    others.enter_context(psycopg.connect(site.billing.settings.database_url))
            found = admin.execute(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where {SESSIONS}")  # type: ignore[arg-type]
            if not found.fetchall():
                break
        use(site, payer)
        eventually(lambda: "too many clients" in site.log("w1") + site.log("w2"), what="a worker finds no connection")
    booked(site, payer, 6)


def test_a_server_that_was_read_only_for_a_while_is_written_to_when_it_no_longer_is(site: Site) -> None:
    payer = site.billing.payer()
    use(site, payer, 1)
    booked(site, payer, 1)
    away = site.gateway(redis_url="unix:///nonexistent/valkey.sock")
    log = site.billing.reserve(payer, 100).log(channel_id=CHANNEL, quota=40)
    site.billing.sql("alter database billing set default_transaction_read_only = on")
    terminate(site)  # as a failover would: the next sessions find a server that only reads
    try:
        use(site, payer)
        eventually(lambda: "read-only transaction" in site.log("w1") + site.log("w2"), what="a worker can't write")
        with pytest.raises(errors.NotBooked):
            away.bk.consume(log)
    finally:
        with psycopg.connect(site.billing.settings.database_url, autocommit=True) as admin:
            admin.execute("set default_transaction_read_only = off")
            admin.execute("alter database billing reset default_transaction_read_only")
    # The sessions are those of the read-only days, and stay so; new ones take their place.
    assert away.bk.consume(log).posted
    site.billing.bk.consume(log)
    booked(site, payer, 7)
    away.bk.close()


def test_a_direct_posting_meets_the_same_faults(site: Site) -> None:
    """Redis and PostgreSQL in trouble together: a typed error, and the repeat under the same id charges once."""
    away = site.gateway(redis_url="unix:///nonexistent/valkey.sock")
    payer = site.billing.payer()
    log = site.billing.reserve(payer, 100).log(channel_id=CHANNEL, quota=40)
    with (
        foreign(site, f"select from billing.users where id = {payer[0]} for update"),
        pytest.raises(errors.NotBooked) as failed,
    ):
        away.bk.consume(log)
    assert failed.value.request_id == log.request_id
    assert away.bk.consume(log).posted
    site.billing.bk.consume(log)
    booked(site, payer, 1)
    away.bk.close()
