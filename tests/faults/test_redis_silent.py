"""Redis is away, refusing, silent or frozen: no call waits for more than about one time-out, however many wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from billing_tasks import AsyncBookkeeper, Bookkeeper, Settings, errors
from billing_tasks.holds.async_store import MOST_TOGETHER, MOST_TRIPS
from tests.conftest import CHANNEL, Billing, MakeBilling
from tests.faults.breaking import OwnValkey, blackhole, frozen

TIMEOUT = 0.5
#: Far below what waiting for each other's time-outs would take: 200 callers, 8 connections, 12 s.
AT_ONCE = 5.0
CALLERS = 200


@pytest.fixture
def billing(make_billing: MakeBilling, own: OwnValkey) -> Billing:
    return make_billing(redis_url=own.url, shards=2, redis_timeout_seconds=TIMEOUT)


@contextmanager
def refused(own: OwnValkey) -> Iterator[str]:
    yield "unix:///nonexistent/valkey.sock"


@contextmanager
def silent(own: OwnValkey) -> Iterator[str]:
    with frozen(own.server):
        yield own.url


@contextmanager
def unreachable(own: OwnValkey) -> Iterator[str]:
    with blackhole() as url:
        yield url


FAULTS = pytest.mark.parametrize("fault", [refused, silent, unreachable])


def broken(billing: Billing, url: str) -> Settings:
    return billing.settings.model_copy(update={"redis_url": url, "redis_connections": 8})


@FAULTS
def test_many_threads_learn_within_a_time_out_that_redis_is_away(
    billing: Billing, own: OwnValkey, fault: Callable[..., Iterator[str]]
) -> None:
    payer = billing.payer()

    def reserve(bk: Bookkeeper) -> str | None:
        try:
            bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
        except errors.HoldNotWritten as exc:
            return exc.request_id
        return None

    with fault(own) as url, Bookkeeper.from_settings(broken(billing, url)) as bk:  # type: ignore[attr-defined]
        for _ in range(2):  # a process that never reached Redis, and one that met it away before
            began = time.monotonic()
            with ThreadPoolExecutor(CALLERS) as threads:
                ids = list(threads.map(lambda _: reserve(bk), range(CALLERS)))
            assert time.monotonic() - began < AT_ONCE
            assert len({i for i in ids if i}) == CALLERS


@FAULTS
def test_many_coroutines_learn_within_a_time_out_that_redis_is_away(
    billing: Billing, own: OwnValkey, fault: Callable[..., Iterator[str]]
) -> None:
    payer = billing.payer()

    async def run(url: str) -> None:
        async with AsyncBookkeeper.from_settings(broken(billing, url)) as bk:
            for _ in range(2):
                began = time.monotonic()
                calls = [bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]) for _ in range(CALLERS)]
                answers = await asyncio.gather(*calls, return_exceptions=True)
                assert time.monotonic() - began < AT_ONCE
                assert all(isinstance(answer, errors.HoldNotWritten) for answer in answers)

    with fault(own) as url:  # type: ignore[attr-defined]
        asyncio.run(run(url))


def test_coroutines_behind_a_time_out_give_up_with_it(billing: Billing, own: OwnValkey) -> None:
    payer = billing.payer()
    many, under_way = 1000, MOST_TRIPS * MOST_TOGETHER

    async def run() -> list[object]:
        async with AsyncBookkeeper.from_settings(broken(billing, own.url)) as bk:
            await bk.refund_quota(await bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]))
            with frozen(own.server):
                calls = [bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]) for _ in range(many)]
                return list(await asyncio.gather(*calls, return_exceptions=True))

    told = [str(answer) for answer in asyncio.run(run())]
    assert sum("for the calls before this one" in text for text in told) >= many - under_way
    assert all("did not answer" in text for text in told)


def test_a_redis_that_falls_silent_under_connected_threads_stops_none_of_them(billing: Billing, own: OwnValkey) -> None:
    payer = billing.payer()
    with Bookkeeper.from_settings(broken(billing, own.url)) as bk, ThreadPoolExecutor(CALLERS) as threads:

        def reserve(_: int) -> object:
            try:
                return bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
            except errors.HoldNotWritten as exc:
                return exc

        assert not [e for e in threads.map(reserve, range(CALLERS)) if isinstance(e, Exception)]
        with frozen(own.server):
            began = time.monotonic()
            silent = list(threads.map(reserve, range(CALLERS)))
            assert time.monotonic() - began < AT_ONCE
        assert all(isinstance(answer, errors.HoldNotWritten) for answer in silent)
        # It is back: no call is refused because of what was.
        assert not [e for e in threads.map(reserve, range(CALLERS)) if isinstance(e, Exception)]


@pytest.mark.parametrize("way", ["threads", "asyncio"])
def test_usage_reported_while_redis_is_frozen_is_charged_once(billing: Billing, own: OwnValkey, way: str) -> None:
    payers = [billing.payer(1_000_000) for _ in range(4)]
    logs = [billing.reserve(payers[number % 4], 100).log(channel_id=CHANNEL, quota=40) for number in range(CALLERS)]

    async def consume_all() -> list[bool]:
        async with AsyncBookkeeper.from_settings(broken(billing, own.url)) as bk:
            receipts = await asyncio.gather(*(bk.consume(log) for log in logs))
            return [receipt.posted for receipt in receipts]

    with ExitStack() as stack:
        bk = stack.enter_context(Bookkeeper.from_settings(broken(billing, own.url)))
        with frozen(own.server):
            if way == "asyncio":
                posted = asyncio.run(consume_all())
            else:
                with ThreadPoolExecutor(CALLERS) as threads:
                    posted = [receipt.posted for receipt in threads.map(bk.consume, logs)]
        assert all(posted)
        assert sum(billing.accounts.user(user_id).used_quota for user_id, _ in payers) == CALLERS * 40
        # What reached the frozen server's sockets is carried out now; the gateway repeats all of it, too.
        for log in logs:
            bk.consume(log)
    billing.settle()
    assert sum(billing.accounts.user(user_id).used_quota for user_id, _ in payers) == CALLERS * 40
    assert sum(billing.available(user_id) for user_id, _ in payers) == 4_000_000 - CALLERS * 40


def test_callers_of_a_round_trip_that_is_cancelled_are_told(billing: Billing, own: OwnValkey) -> None:
    """As the end of an event loop cancels it; before its first step: test_postgresql_silent.py."""
    payer = billing.payer()

    async def run() -> None:
        async with AsyncBookkeeper.from_settings(broken(billing, own.url)) as bk:
            await bk.refund_quota(await bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]))
            while bk._holds._trips:
                await asyncio.sleep(0)
            with frozen(own.server):
                asked = asyncio.create_task(bk._holds.send(billing.runtime.commands.balance(user_id=payer[0])))
                while not bk._holds._trips:
                    await asyncio.sleep(0)
                (trip,) = bk._holds._trips
                trip.get_loop().call_soon(trip.cancel)
                with pytest.raises(errors.Unavailable, match="the program ends"):
                    await asyncio.wait_for(asked, 5)

    asyncio.run(run())


def test_a_cancelled_call_never_leaves_its_answer_to_another(billing: Billing) -> None:
    payer = billing.payer(10_000_000)

    async def one(bk: AsyncBookkeeper, number: int) -> None:
        reservation = await bk.pre_consume_quota(number, user_id=payer[0], token_id=payer[1])
        assert reservation.held_quota == number
        receipt = await bk.consume(reservation.log(channel_id=CHANNEL, quota=number))
        assert (receipt.request_id, receipt.quota) == (reservation.request_id, number)

    async def run() -> None:
        settings = billing.settings.model_copy(update={"redis_connections": 4})
        async with AsyncBookkeeper.from_settings(settings) as bk:
            await one(bk, 1)
            for spread in range(40):
                tasks = [asyncio.create_task(one(bk, number)) for number in range(1, 30)]
                for _ in range(spread % 7):
                    await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert not [e for e in done if isinstance(e, Exception)]

    asyncio.run(run())
    billing.settle()
    for request_id in billing.redis("ZRANGE", billing.runtime.commands.keys.due(payer[0] % 2), 0, -1):
        billing.bk.refund_quota(user_id=payer[0], request_id=request_id.decode(), reason="cancelled")
    billing.settle()
