"""A Bookkeeper that is closed leaves nothing behind: tests and tools make thousands of them."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

from billing_tasks import AsyncBookkeeper, Bookkeeper
from tests.conftest import Billing


def growth(make_and_close: object, times: int = 40) -> float:
    """Bytes that stay of each, after a few that fill caches."""
    assert callable(make_and_close)
    for _ in range(8):
        make_and_close()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(times):
        make_and_close()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / times


def test_a_bookkeeper_that_is_closed_leaves_nothing_behind(billing: Billing) -> None:
    payer = billing.payer()

    def plain() -> None:
        bk = Bookkeeper.from_settings(billing.settings)
        bk.refund_quota(bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1]))
        bk.close()

    assert growth(plain) < 8000


def test_an_async_bookkeeper_that_is_closed_leaves_nothing_behind(billing: Billing) -> None:
    payer = billing.payer()

    async def use() -> None:
        bk = AsyncBookkeeper.from_settings(billing.settings)
        await bk.refund_quota(await bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1]))
        await bk.close()

    assert growth(lambda: asyncio.run(use())) < 8000
