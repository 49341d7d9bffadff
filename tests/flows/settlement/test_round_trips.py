"""What a request and its booking cost in round trips: shown by counting commands."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis

from billing_tasks import Bookkeeper, Settings
from billing_tasks.flows.settlement.settle import drain
from tests.conftest import CHANNEL, Billing

NOWHERE = "postgresql://user@/nothing?host=/nonexistent"


def commands_of(billing: Billing, call: Callable[[], object]) -> list[str]:
    """The commands that clients sent during the call, as the server saw them; what scripts call is left out."""
    with redis.Redis.from_url(billing.settings.cache_url) as client, client.monitor() as monitor:
        call()
        billing.redis("ECHO", "end of the call")
        seen = []
        for command in monitor.listen():
            if command["command"] == "ECHO end of the call":
                return seen
            if command["client_type"] != "lua":
                seen.append(command["command"].split(" ")[0])
    raise AssertionError("the monitor ended early")


def test_a_warm_reservation_is_one_script_call_and_no_sql(billing: Billing) -> None:
    payer = billing.payer()
    billing.reserve(payer, 1)  # loads the account, teaches the script, opens the connection
    without_sql = Settings(redis_url=billing.settings.redis_url, database_url=NOWHERE)
    with Bookkeeper.from_settings(without_sql) as bk:
        bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1])
        seen = commands_of(billing, lambda: bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1]))
    assert seen == ["EVALSHA"]


def test_a_consume_is_one_script_call_and_no_sql(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 10), 4)
    log = billing.reserve(payer, 10).log(channel_id=CHANNEL, quota=4)
    billing.runtime.doorbell.close()  # its messages are another connection's
    assert commands_of(billing, lambda: billing.bk.consume(log)) == ["EVALSHA"]


def test_a_refund_is_one_script_call_and_no_sql(billing: Billing) -> None:
    payer = billing.payer()
    billing.bk.refund_quota(billing.reserve(payer, 10))
    reservation = billing.reserve(payer, 10)
    billing.runtime.doorbell.close()
    assert commands_of(billing, lambda: billing.bk.refund_quota(reservation)) == ["EVALSHA"]


def test_booking_one_event_is_four_commands(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 10), 4)
    billing.settle()  # teaches the scripts
    billing.use(billing.reserve(payer, 10), 4)
    billing.runtime.doorbell.close()
    shard = billing.runtime.commands.keys.shard_of(payer[0])
    flow = drain(shard, owner="me", commands=billing.runtime.commands, settings=billing.settings, now=time.monotonic)
    assert commands_of(billing, lambda: billing.runtime.run(flow)) == ["EVALSHA", "XRANGE", "EVALSHA", "EVALSHA"]
