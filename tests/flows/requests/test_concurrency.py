"""Races for one balance: exactly what is there is granted, by threads, by asyncio and by processes.

Named for what went wrong elsewhere: check, then unguarded decrement (one-api#2440,
new-api#5690, #6609), the trust bypass, and holds per process (litellm#33325).
"""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from billing_tasks import AsyncBookkeeper, Bookkeeper, Settings
from billing_tasks.errors import Refused
from tests.conftest import Billing, Payer

RESERVATIONS = 2000
AMOUNT = 100


def try_one(bk: Bookkeeper, payer: Payer, amount: int = AMOUNT) -> bool:
    try:
        bk.pre_consume_quota(amount, user_id=payer[0], token_id=payer[1])
    except Refused:
        return False
    return True


def by_threads(billing: Billing, payer: Payer) -> int:
    with ThreadPoolExecutor(32) as threads:
        return sum(threads.map(lambda _: try_one(billing.bk, payer), range(RESERVATIONS)))


def by_asyncio(billing: Billing, payer: Payer) -> int:
    async def one(bk: AsyncBookkeeper) -> bool:
        try:
            await bk.pre_consume_quota(AMOUNT, user_id=payer[0], token_id=payer[1])
        except Refused:
            return False
        return True

    async def run() -> int:
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            return sum(await asyncio.gather(*(one(bk) for _ in range(RESERVATIONS))))

    return asyncio.run(run())


def in_a_process(arguments: tuple[dict[str, Any], Payer, int]) -> int:
    settings, payer, count = arguments
    with Bookkeeper.from_settings(Settings(**settings)) as bk, ThreadPoolExecutor(8) as threads:
        return sum(threads.map(lambda _: try_one(bk, payer), range(count)))


def by_processes(billing: Billing, payer: Payer) -> int:
    share = (billing.settings.model_dump(), payer, RESERVATIONS // 4)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        return sum(pool.map(in_a_process, [share] * 4))


EACH_KIND = pytest.mark.parametrize("race", [by_threads, by_asyncio, by_processes])


@EACH_KIND
def test_racing_reservations_never_hold_more_than_the_user_has(billing: Billing, race: Any) -> None:
    payer = billing.payer(100_000, unlimited=True)
    assert race(billing, payer) == 1000
    assert billing.available(payer[0]) == 0


@EACH_KIND
def test_racing_reservations_never_hold_more_than_the_token_has(billing: Billing, race: Any) -> None:
    payer = billing.payer(100_000, 50_000)
    assert race(billing, payer) == 500
    assert billing.available(payer[0]) == 50_000


def test_users_the_reference_would_trust_race_no_further_than_their_quota(billing: Billing) -> None:
    # 1,000 quota and requests of 9: more than a hundred times the amount, so one-api would hold nothing.
    payer = billing.payer(1000, unlimited=True)
    assert billing.bk.user_has_much_more_quota(payer[0], 9)
    with ThreadPoolExecutor(16) as threads:
        granted = sum(threads.map(lambda _: try_one(billing.bk, payer, 9), range(300)))
    assert granted == 111
    assert billing.available(payer[0]) == 1


def test_fifty_requests_of_100_against_1000_let_ten_through(billing: Billing) -> None:
    payer = billing.payer(1000, unlimited=True)
    with ThreadPoolExecutor(50) as threads:
        assert sum(threads.map(lambda _: try_one(billing.bk, payer), range(50))) == 10


def test_one_request_repeated_by_many_threads_holds_once(billing: Billing) -> None:
    payer = billing.payer(1000)
    request_id = billing.reserve(payer, 10).request_id
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: billing.reserve(payer, 10, request_id=request_id), range(100)))
    assert billing.available(payer[0]) == 990


def test_consume_racing_its_refund_and_its_expiry_ends_the_hold_once(billing: Billing) -> None:
    payer = billing.payer(100_000)
    keys = billing.runtime.commands.keys

    def race(_: int) -> None:
        reservation = billing.reserve(payer, 100)
        billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, reservation.request_id)
        with ThreadPoolExecutor(3) as three:
            ends = [
                three.submit(billing.use, reservation, 60),
                three.submit(billing.bk.refund_quota, reservation),
                three.submit(billing.expire),
            ]
            for end in ends:
                assert end.exception() is None or isinstance(end.exception(), Refused)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(race, range(40)))
    billing.settle()
    # Usage is charged in either order; the hold is released by the one that closed it.
    assert billing.available(payer[0]) == 100_000 - 40 * 60
    assert billing.accounts.user(payer[0]).quota == 100_000 - 40 * 60


def test_a_forked_gateway_reserves_over_connections_of_its_own(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 10), 10)  # connections and the ringer thread exist before the fork

    def child(send: Any) -> None:
        reservation = billing.reserve(payer, 20)
        billing.use(reservation, 20)
        billing.runtime.doorbell.close()
        send.send(reservation.request_id)

    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(send,))
    process.start()
    assert receive.poll(30)
    receive.recv()
    process.join(30)
    assert process.exitcode == 0
    billing.use(billing.reserve(payer, 30), 30)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 60
