"""PostgreSQL is stopped, not closed: who has what it needs is served at once, and nobody else waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from billing_tasks import AsyncBookkeeper, errors
from billing_tasks.lab.servers import Servers, embedded_servers
from billing_tasks.ledger.migrations import upgrade
from tests.conftest import EMPTY, Billing, MakeBilling, Payer
from tests.faults.breaking import frozen_whole

#: Of a read of an account, here; and of a connection that is opened.
READ_SECONDS = 1.0
CONNECT_SECONDS = 3.0


@pytest.fixture(scope="module")
def own_servers() -> Iterator[Servers]:
    with embedded_servers(fast=True) as servers:
        upgrade(servers.database_url)
        yield servers


@pytest.fixture
def billing(make_billing: MakeBilling, own_servers: Servers) -> Billing:
    with psycopg.connect(own_servers.database_url, autocommit=True) as connection:
        connection.execute(EMPTY)
    times = {"lock_timeout_seconds": READ_SECONDS, "statement_timeout_seconds": 2.0, "refusal_fresh_seconds": 0}
    return make_billing(database_url=own_servers.database_url, **times)


def stale(billing: Billing, payer: Payer) -> None:
    keys = billing.runtime.commands.keys
    for key in (billing.user_key(payer[0]), keys.token(keys.shard_of(payer[0]), payer[1])):
        billing.redis("HINCRBY", key, "loaded_at", -3_600_000)


def test_accounts_with_an_old_copy_are_served_at_once(billing: Billing, own_servers: Servers) -> None:
    payer = billing.payer(10_000)
    billing.reserve(payer, 1)
    stale(billing, payer)
    with frozen_whole(own_servers.postgres):
        began = time.monotonic()
        with ThreadPoolExecutor(20) as threads:
            list(threads.map(lambda _: billing.reserve(payer, 1), range(60)))
        assert time.monotonic() - began < READ_SECONDS + CONNECT_SECONDS + 1, "those that came first found out for all"
        began = time.monotonic()
        for _ in range(20):
            billing.reserve(payer, 1)
        assert time.monotonic() - began < READ_SECONDS
    assert billing.available(payer[0]) == 10_000 - 81


def test_accounts_without_a_copy_are_refused_within_the_bound(billing: Billing, own_servers: Servers) -> None:
    payers = [billing.payer(10_000) for _ in range(60)]
    refused: list[errors.BillingError] = []

    def reserve(payer: Payer) -> None:
        try:
            billing.reserve(payer, 1)
        except errors.UserQuotaUnreadable as exc:
            refused.append(exc)

    billing.reserve(payers[0], 1)  # a connection is open
    with frozen_whole(own_servers.postgres):
        began = time.monotonic()
        with ThreadPoolExecutor(60) as threads:
            list(threads.map(reserve, payers[1:]))
        assert time.monotonic() - began < READ_SECONDS + CONNECT_SECONDS + 1
        assert len(refused) == 59
    billing.reserve(payers[1], 1)


def test_under_asyncio_nobody_hangs_and_the_applications_threads_are_free(
    billing: Billing, own_servers: Servers
) -> None:
    cold, warm = [billing.payer(10_000) for _ in range(60)], billing.payer(10_000)

    async def run() -> tuple[float, list[object]]:
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            await bk.pre_consume_quota(1, user_id=warm[0], token_id=warm[1])
            stale(billing, warm)
            with frozen_whole(own_servers.postgres):
                began = asyncio.get_running_loop().time()
                asked = [bk.pre_consume_quota(1, user_id=user, token_id=token) for user, token in cold]
                waiting = asyncio.gather(*asked, return_exceptions=True)
                await asyncio.sleep(0)
                assert await asyncio.wait_for(asyncio.to_thread(threading.get_ident), READ_SECONDS)
                assert (await bk.pre_consume_quota(1, user_id=warm[0], token_id=warm[1])).held_quota == 1
                answers = list(await waiting)
                return asyncio.get_running_loop().time() - began, answers

    took, answers = asyncio.run(run())
    assert all(isinstance(answer, errors.UserQuotaUnreadable) for answer in answers)
    assert took < READ_SECONDS + CONNECT_SECONDS + 1


def test_usage_is_filed_and_booked_when_it_goes_on(billing: Billing, own_servers: Servers) -> None:
    payer = billing.payer(1000)
    hold = billing.reserve(payer, 100)
    with frozen_whole(own_servers.postgres):
        billing.use(hold, 60)
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match="did not answer"):
            billing.settle()
        assert time.monotonic() - began < 2.0 + READ_SECONDS + 3
    billing.settle()
    assert billing.available(payer[0]) == 940


def test_one_bookkeeper_in_two_running_loops_is_refused(billing: Billing) -> None:
    payer = billing.payer(1000)
    bk = AsyncBookkeeper.from_settings(billing.settings)
    inside, done = threading.Event(), threading.Event()

    async def first() -> None:
        await bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1])
        inside.set()
        while not done.is_set():
            await asyncio.sleep(0.01)
        await bk.close()

    async def second() -> None:
        with pytest.raises(errors.InvalidRequest, match="another event loop"):
            await bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1])

    thread = threading.Thread(target=asyncio.run, args=(first(),))
    thread.start()
    inside.wait()
    asyncio.run(second())
    done.set()
    thread.join()


def test_a_trip_that_is_cancelled_before_its_first_step_tells_its_callers(billing: Billing) -> None:
    payer = billing.payer(1000)

    async def run() -> None:
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            await bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1])
            while bk._holds._trips:
                await asyncio.sleep(0)
            asked = asyncio.create_task(bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1]))
            while not bk._holds._trips:
                await asyncio.sleep(0)
            for trip in bk._holds._trips:
                trip.cancel()
            with pytest.raises(errors.HoldNotWritten):
                await asyncio.wait_for(asked, 5)

    asyncio.run(run())
