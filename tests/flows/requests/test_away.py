"""A server is away: typed errors at once, nothing lost, and repeating with the same id is safe."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing_tasks import AsyncBookkeeper, Bookkeeper, ConsumeLog, Settings, errors
from billing_tasks.model.ids import new_request_id
from tests.conftest import CHANNEL, Billing, Payer

NO_REDIS = "unix:///nonexistent/valkey.sock"
NO_POSTGRESQL = "postgresql://user@/nothing?host=/nonexistent"


def without(billing: Billing, *, redis: bool = False, postgresql: bool = False, **more: object) -> Bookkeeper:
    """A gateway that can't reach one server, or neither."""
    urls = {
        "redis_url": NO_REDIS if redis else billing.settings.redis_url,
        "database_url": NO_POSTGRESQL if postgresql else billing.settings.database_url,
    }
    return Bookkeeper.from_settings(Settings(**{**urls, **more}))  # type: ignore[arg-type]


@pytest.fixture
def mute_redis(tmp_path: Path) -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        path = f"/tmp/{tmp_path.name[-30:]}.sock"
        listener.bind(path)
        listener.listen(64)
        yield f"unix://{path}"
    Path(path).unlink()


def log_of(payer: Payer, quota: int = 40) -> ConsumeLog:
    return ConsumeLog(user_id=payer[0], token_id=payer[1], channel_id=CHANNEL, quota=quota, request_id=new_request_id())


def test_without_redis_a_reservation_fails_at_once_and_names_its_id(billing: Billing) -> None:
    payer = billing.payer()
    request_id = new_request_id()
    with without(billing, redis=True) as bk, pytest.raises(errors.HoldNotWritten) as failed:
        bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1], request_id=request_id)
    error = failed.value
    assert (error.code, error.http_status, error.request_id) == ("decrease_user_quota_failed", 503, request_id)
    assert billing.reserve(payer, 10, request_id=request_id).held_quota == 10


def test_a_redis_that_never_answers_costs_a_time_out_and_no_more(billing: Billing, mute_redis: str) -> None:
    payer = billing.payer()
    settings = billing.settings.model_copy(update={"redis_url": mute_redis, "redis_timeout_seconds": 0.2})
    with Bookkeeper.from_settings(settings) as bk:
        began = time.monotonic()
        with pytest.raises(errors.HoldNotWritten):
            bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
        assert time.monotonic() - began < 2


def test_asyncio_gets_the_same_errors(billing: Billing) -> None:
    payer = billing.payer()
    settings = Settings(redis_url=NO_REDIS, database_url=billing.settings.database_url)

    async def run() -> None:
        async with AsyncBookkeeper.from_settings(settings) as bk:
            with pytest.raises(errors.HoldNotWritten):
                await bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
            receipt = await bk.consume(log_of(payer))
            assert receipt.posted

    asyncio.run(run())
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_usage_booked_while_redis_was_away_is_not_spent_again_when_its_hold_expires(billing: Billing) -> None:
    """The cached account still has the old balance then; only what the hold set aside stands between."""
    payer = billing.payer(100)
    reservation = billing.reserve(payer, 100)
    with without(billing, redis=True) as bk:
        assert bk.consume(reservation.log(channel_id=CHANNEL, quota=100)).posted
    keys = billing.runtime.commands.keys
    billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, reservation.request_id)
    assert billing.expire() == 1
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 100)
    billing.settle()
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 1)
    assert billing.accounts.user(payer[0]).quota == 0


def test_without_redis_usage_is_booked_straight_into_postgresql_once(billing: Billing) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    log = reservation.log(channel_id=CHANNEL, quota=40)
    with without(billing, redis=True) as bk:
        assert bk.consume(log).posted
        assert bk.consume(log).again
    assert billing.accounts.user(payer[0]).used_quota == 40
    billing.bk.consume(log)  # Redis is back, and the gateway repeats what it was not sure of
    done = billing.settle()
    assert (done.posted, done.duplicates) == (0, 1)
    assert billing.accounts.user(payer[0]).used_quota == 40
    assert billing.available(payer[0]) == 1_000_000 - 40


def test_without_redis_usage_that_contradicts_is_refused_and_kept(billing: Billing) -> None:
    payer = billing.payer()
    log = log_of(payer)
    with without(billing, redis=True) as bk:
        bk.consume(log)
        with pytest.raises(errors.IdempotencyConflict):
            bk.consume(log.model_copy(update={"quota": 41}))
        with pytest.raises(errors.UserNotFound):
            bk.consume(log_of((999, payer[1])))
        with pytest.raises(errors.TokenRefused):
            bk.consume(log_of((payer[0], 999)))
    reasons = {dead_letter.reason for dead_letter in billing.runtime.ledger.dead_letters()}
    assert reasons == {"conflict", "unknown_user", "unknown_token"}


def test_without_redis_a_charge_is_refunded_straight_in_postgresql_once(billing: Billing) -> None:
    payer = billing.payer()
    log = log_of(payer)
    billing.bk.consume(log)
    billing.settle()
    refund = {"user_id": payer[0], "request_id": log.request_id, "refund_id": "case-17", "quota": 15}
    with without(billing, redis=True) as bk:
        assert bk.refund_charge(**refund).posted
        assert bk.refund_charge(**refund).posted
    billing.bk.refund_charge(**refund)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 25


def test_a_refund_task_finds_the_charge_behind_a_hold_that_stayed_open(billing: Billing) -> None:
    from billing_tasks.flows.requests import refund
    from billing_tasks.model.refund import RefundRequest

    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    with without(billing, redis=True) as bk:
        bk.consume(reservation.log(channel_id=CHANNEL, quota=40))
    wanted = RefundRequest(user_id=payer[0], request_id=reservation.request_id, reason="slow")
    billing.runtime.run(refund.refund(wanted, commands=billing.runtime.commands))
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 0
    assert billing.available(payer[0]) == 1_000_000


def test_without_either_server_the_error_says_so_and_a_repeat_books_once(billing: Billing) -> None:
    payer = billing.payer()
    log = log_of(payer)
    with without(billing, redis=True, postgresql=True) as bk, pytest.raises(errors.NotBooked) as failed:
        bk.consume(log)
    assert failed.value.request_id == log.request_id
    billing.bk.consume(log)
    billing.bk.consume(log)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_without_postgresql_loaded_accounts_go_on(billing: Billing) -> None:
    payer, cold = billing.payer(), billing.payer()
    billing.reserve(payer, 1)
    with without(billing, postgresql=True) as bk:
        reservation = bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
        bk.consume(reservation.log(channel_id=CHANNEL, quota=4))
        bk.refund_quota(bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]))
        with pytest.raises(errors.UserQuotaUnreadable) as failed:
            bk.pre_consume_quota(10, user_id=cold[0], token_id=cold[1])
        assert (failed.value.code, failed.value.http_status) == ("get_user_quota_failed", 503)
        # An old cached row is used as it is, and a refusal from it stands.
        billing.redis(
            "HINCRBY",
            billing.user_key(payer[0]),
            "loaded_at",
            -70_000,
        )
        bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
        with pytest.raises(errors.InsufficientUserQuota):
            bk.pre_consume_quota(1_000_000, user_id=payer[0], token_id=payer[1])
    billing.settle()


def test_without_a_broker_nothing_waits_and_everything_is_booked_later(billing: Billing) -> None:
    payer = billing.payer()
    with without(billing, broker_url="redis+socket:///nonexistent/broker.sock?virtual_host=0") as bk:
        began = time.monotonic()
        for _ in range(20):
            reservation = bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
            bk.consume(reservation.log(channel_id=CHANNEL, quota=4))
        assert time.monotonic() - began < 2
    assert billing.settle().posted == 20


def test_without_a_broker_a_request_that_wanted_a_task_is_filed_at_once(billing: Billing) -> None:
    payer = billing.payer()
    broker = "redis+socket:///nonexistent/broker.sock?virtual_host=0"
    with without(billing, broker_url=broker, dispatch="request") as bk:
        reservation = bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
        bk.consume(reservation.log(channel_id=CHANNEL, quota=4))
        bk.refund_quota(bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]))
    assert billing.settle().posted == 2


def test_a_bookkeeper_prices_without_any_server() -> None:
    with Bookkeeper.from_settings(Settings(redis_url=NO_REDIS, database_url=NO_POSTGRESQL)) as bk:
        assert bk.price(model="gpt-4o").quota(374, 44) == 1375
        assert bk.model_ratio("no-such-model") == 30
        assert bk.ratio("vip", "gpt-4o") * 2 == 5
        assert bk.completion_ratio("gpt-4o") == 4
        assert bk.group_ratio("unknown") == 1
