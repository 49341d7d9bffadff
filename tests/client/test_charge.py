"""charge(): whatever ends the block, usage handed over is consumed, and without usage the hold is released."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from billing_tasks import AsyncBookkeeper, Settings, errors
from billing_tasks.runtime import Runtime
from tests.conftest import CHANNEL, Billing, MakeBilling, Payer


def ask_for(payer: Payer, **more: Any) -> dict[str, Any]:
    return {
        "user_id": payer[0],
        "token_id": payer[1],
        "channel_id": CHANNEL,
        "model": "gpt-4o",
        "prompt_tokens": 374,
        "max_tokens": 512,
        **more,
    }


def test_a_block_that_ends_well_is_consumed(billing: Billing) -> None:
    payer = billing.payer()
    with billing.bk.charge(**ask_for(payer)) as charge:
        assert billing.available(payer[0]) == 1_000_000 - 6055  # (374 + 512 * 4) * 2.5
        charge.usage(prompt_tokens=374, completion_tokens=44)
    assert charge.receipt is not None
    assert charge.receipt.quota == 1375
    assert billing.available(payer[0]) == 1_000_000 - 1375


def test_a_block_that_fails_before_usage_is_refunded(billing: Billing) -> None:
    payer = billing.payer()
    with pytest.raises(ConnectionError), billing.bk.charge(**ask_for(payer)) as charge:
        raise ConnectionError("upstream 502")
    assert billing.available(payer[0]) == 1_000_000
    billing.settle()
    (entry,) = billing.runtime.ledger.entries_of(charge.request_id)
    assert (entry.kind, entry.content) == ("release", "ConnectionError: upstream 502")


def test_a_block_that_fails_after_usage_is_consumed(billing: Billing) -> None:
    payer = billing.payer()
    with pytest.raises(ConnectionError), billing.bk.charge(**ask_for(payer)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens=10)
        raise ConnectionError("the client left")
    assert billing.available(payer[0]) == 1_000_000 - 1035


def test_the_last_usage_handed_over_counts(billing: Billing) -> None:
    payer = billing.payer()
    with billing.bk.charge(**ask_for(payer)) as charge:
        for tokens in (1, 2, 44):
            charge.usage(prompt_tokens=374, completion_tokens=tokens)
    assert billing.available(payer[0]) == 1_000_000 - 1375


def test_usage_that_can_not_be_booked_is_refused_and_what_stood_before_is_charged(billing: Billing) -> None:
    payer = billing.payer()
    with pytest.raises(errors.InvalidRequest), billing.bk.charge(**ask_for(payer)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens=44)
        charge.usage(prompt_tokens=374, completion_tokens=-44)
    assert billing.available(payer[0]) == 1_000_000 - 1375


def test_a_stream_closed_by_its_reader_is_consumed(billing: Billing) -> None:
    payer = billing.payer()

    def stream() -> Iterator[str]:
        with billing.bk.charge(**ask_for(payer)) as charge:
            for number in range(1, 100):
                charge.usage(prompt_tokens=374, completion_tokens=number)
                yield "token"

    reading = stream()
    next(reading)
    next(reading)
    reading.close()
    assert billing.available(payer[0]) == 1_000_000 - 955  # (374 + 2 * 4) * 2.5


def test_a_block_without_usage_and_without_error_is_refunded(billing: Billing) -> None:
    payer = billing.payer()
    with billing.bk.charge(**ask_for(payer)):
        pass
    assert billing.available(payer[0]) == 1_000_000


def test_a_long_block_keeps_its_hold(make_billing: MakeBilling) -> None:
    billing = make_billing()
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    with billing.bk.charge(**ask_for(payer, ttl_seconds=1)) as charge:
        due = keys.due(keys.shard_of(payer[0]))
        first = billing.redis("ZSCORE", due, charge.request_id)
        for _ in range(2000):  # half a second until the renewal, in steps that end as soon as it came
            if billing.redis("ZSCORE", due, charge.request_id) != first:
                break
            billing.redis("BLPOP", "never", 0.01)
        assert int(billing.redis("ZSCORE", due, charge.request_id)) > int(first)
        charge.usage(prompt_tokens=1)
    assert charge.receipt is not None
    assert not charge.receipt.late


def test_async_charges_end_like_sync_ones(billing: Billing) -> None:
    payer = billing.payer()

    async def run() -> list[int]:
        seen = []
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            async with bk.charge(**ask_for(payer)) as charge:
                charge.usage(prompt_tokens=374, completion_tokens=44)
            seen.append(await bk._run(bk._available(payer[0])))
            with pytest.raises(ConnectionError):
                async with bk.charge(**ask_for(payer)):
                    raise ConnectionError
            seen.append(await bk._run(bk._available(payer[0])))
        return seen

    assert asyncio.run(run()) == [1_000_000 - 1375] * 2


def test_a_cancelled_task_is_consumed_or_refunded_before_it_ends(billing: Billing) -> None:
    payer = billing.payer()

    async def request(bk: AsyncBookkeeper, started: asyncio.Event, *, tokens: int) -> None:
        async with bk.charge(**ask_for(payer)) as charge:
            if tokens:
                charge.usage(prompt_tokens=374, completion_tokens=tokens)
            started.set()
            await asyncio.Event().wait()

    async def run() -> None:
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            for tokens in (0, 44):
                started = asyncio.Event()
                task = asyncio.create_task(request(bk, started, tokens=tokens))
                await started.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(run())
    assert billing.available(payer[0]) == 1_000_000 - 1375


def test_an_async_stream_closed_by_its_reader_is_consumed(billing: Billing) -> None:
    payer = billing.payer()

    async def stream(bk: AsyncBookkeeper) -> AsyncIterator[str]:
        async with bk.charge(**ask_for(payer)) as charge:
            while True:
                charge.usage(prompt_tokens=374, completion_tokens=44)
                yield "token"

    async def run() -> None:
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            reading = stream(bk)
            await anext(reading)
            await reading.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert billing.available(payer[0]) == 1_000_000 - 1375


def test_a_detail_that_can_not_be_kept_does_not_make_the_tokens_free(billing: Billing) -> None:
    payer = billing.payer()
    with pytest.raises(errors.InvalidRequest, match="usage"), billing.bk.charge(**ask_for(payer)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens=44, usage={"detail": "x" * 5000})
    assert billing.available(payer[0]) == 1_000_000 - 1375


def test_usage_is_what_it_was_when_it_was_handed_over(billing: Billing) -> None:
    payer = billing.payer()
    detail = {"cached": 1}
    with billing.bk.charge(**ask_for(payer)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens=44, usage=detail)
        detail["cached"] = 2
    billing.settle()
    (entry,) = billing.runtime.ledger.entries_of(charge.request_id)
    assert entry.usage == {"cached": 1}


def test_the_blocks_own_error_is_not_hidden_by_a_refund_that_failed(billing: Billing) -> None:
    payer = billing.payer()
    away = Settings(redis_url="unix:///nonexistent/valkey.sock", database_url=billing.settings.database_url)
    with pytest.raises(KeyError) as raised, billing.bk.charge(**ask_for(payer)) as charge:
        billing.bk._runtime = Runtime(away)
        raise KeyError("the app's own")
    assert "expires by itself" in raised.value.__notes__[0]
    billing.bk._runtime.close()
    billing.bk._runtime = billing.runtime
    billing.bk.refund_quota(charge.reservation)


def test_a_renewal_that_finds_the_hold_closed_ends(billing: Billing) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 10, ttl_seconds=1)
    billing.bk.refund_quota(reservation)
    renewer = billing.bk._renewer
    renewer.add(reservation, 1)
    with renewer._wake:
        assert reservation.request_id in renewer._running
    for _ in range(300):
        if not renewer._running:
            break
        billing.redis("BLPOP", "never", 0.01)
    assert not renewer._running
