"""Dates: an id's is looked at when quota is reserved for it, and never after. What happened counts when it happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from billing_tasks import ConsumeLog, errors
from billing_tasks.flows.requests import intake
from billing_tasks.model import ids
from tests.conftest import CHANNEL, Billing

DAY = 86_400
Steps = Callable[[float], None]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Set this machine's clock by so many seconds."""

    def set_by(seconds: float) -> None:
        ahead = SimpleNamespace(time=lambda: time.time() + seconds, time_ns=lambda: time.time_ns() + int(seconds * 1e9))
        monkeypatch.setattr(ids, "time", ahead)

    return set_by


def dated(billing: Billing, seconds: float, step: Steps) -> str:
    """An id that a clock so far off minted."""
    step(seconds)
    made = ids.new_request_id()
    step(0)
    return made


CLOCKS = pytest.mark.parametrize("seconds", [-360, -40 * DAY, -4000 * DAY, 32 * DAY, 4000 * DAY])


@CLOCKS
def test_a_clock_that_is_set_during_a_request_loses_nothing(billing: Billing, step: Steps, seconds: float) -> None:
    payer = billing.payer(1000)
    used, released, handed_over = (billing.reserve(payer, 100) for _ in range(3))
    with billing.bk.charge(
        user_id=payer[0], token_id=payer[1], channel_id=CHANNEL, model="gpt-4o-mini", prompt_tokens=1, max_tokens=1
    ) as charge:
        step(seconds)
        charge.usage(quota=7)
    assert charge.receipt is not None
    billing.use(used, 100)
    billing.bk.refund_quota(user_id=payer[0], request_id=released.request_id)
    billing.bk.renew(handed_over)
    log = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "quota": 50}
    billing.bk.consume(ConsumeLog(**log, request_id=handed_over.request_id))
    billing.settle()
    billing.bk.refund_charge(user_id=payer[0], request_id=used.request_id, refund_id="case", quota=30)
    billing.settle()
    assert billing.available(payer[0]) == 1000 - 7 - 100 - 50 + 30
    assert billing.sql("select count(*) from billing.dead_letters") == [(0,)]


@CLOCKS
def test_a_message_is_filed_whatever_the_clock_says(billing: Billing, step: Steps, seconds: float) -> None:
    payer = billing.payer(1000)
    reserved = billing.reserve(payer, 100)
    step(seconds)
    message = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "quota": 60}
    run, commands = billing.runtime.run, billing.runtime.commands
    asked = {"request_id": reserved.request_id}
    run(intake.consume_message({**message, **asked}, task_id="t", commands=commands))
    billing.settle()
    run(intake.refund_message({"user_id": payer[0], **asked}, task_id="t", commands=commands))
    billing.settle()
    assert billing.available(payer[0]) == 1000


@pytest.mark.parametrize("seconds", [-32 * DAY, 360, 4000 * DAY])
def test_quota_is_not_reserved_for_an_id_of_another_time(billing: Billing, step: Steps, seconds: float) -> None:
    payer = billing.payer(1000)
    with pytest.raises(errors.InvalidRequest, match="is dated more than"):
        billing.reserve(payer, 100, request_id=dated(billing, seconds, step))


@pytest.mark.parametrize("seconds", [-80 * DAY, -9000 * DAY, 400 * DAY, 200_000 * DAY])
def test_usage_of_an_id_without_a_month_is_kept(billing: Billing, step: Steps, seconds: float) -> None:
    payer = billing.payer(1000)
    log = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "quota": 60}
    strange = dated(billing, seconds, step)
    billing.bk.consume(ConsumeLog(**log, request_id=strange))
    billing.use(billing.reserve(payer, 100), 100)
    assert billing.settle().posted == 1
    reason = "archived" if seconds < 0 else "no_partition"
    assert billing.sql("select request_id, reason from billing.dead_letters") == [(strange, reason)]
    assert billing.available(payer[0]) == 900


def a_month_ago(billing: Billing, step: Steps) -> tuple[int, str, str]:
    """A user whose charge of 60 lies in a month that is archived now, and another request of that month."""
    payer = billing.payer(1000)
    month = billing.sql("select to_char(now() - interval '31 days', 'YYYY_MM')")[0][0]
    log = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "quota": 60}
    charged, late = (dated(billing, -31 * DAY + 60, step) for _ in range(2))
    billing.bk.consume(ConsumeLog(**log, request_id=charged))
    billing.settle()
    billing.sql(f"alter table billing.ledger_entries detach partition billing.ledger_entries_{month}")
    return payer[0], charged, late


@pytest.fixture
def attach_again(billing: Billing) -> Callable[[], None]:
    def attach() -> None:
        start = "date_trunc('month', now() at time zone 'UTC' - interval '31 days')"
        ((first, last, month),) = billing.sql(
            f"select billing.first_entry_id({start} at time zone 'UTC'),"
            f" billing.first_entry_id(({start} + interval '1 month') at time zone 'UTC'), to_char({start}, 'YYYY_MM')"
        )
        billing.sql(
            f"alter table billing.ledger_entries attach partition billing.ledger_entries_{month}"
            f" for values from ('{first}') to ('{last}')"
        )

    return attach


def test_nothing_is_booked_in_a_month_that_was_archived(
    billing: Billing, step: Steps, attach_again: Callable[[], None]
) -> None:
    user, charged, late = a_month_ago(billing, step)
    (token,) = billing.sql("select id from billing.tokens where user_id = %s", user)[0]
    try:
        log = {"user_id": user, "token_id": token, "channel_id": CHANNEL, "quota": 60}
        for request_id in (charged, late):
            billing.redis("DEL", billing.runtime.commands.keys.hold(user % billing.settings.shards, request_id))
            billing.bk.consume(ConsumeLog(**log, request_id=request_id))
        billing.bk.refund_charge(user_id=user, request_id=charged, refund_id="chargeback", quota=10)
        assert billing.settle().dead_lettered == 3
        assert set(billing.sql("select kind, request_id, reason, state from billing.dead_letters")) == {
            ("consume", charged, "archived", "failed"),
            ("consume", late, "archived", "failed"),
            ("refund", charged, "archived", "failed"),
        }
        assert billing.runtime.ledger.maintain_partitions() == 0
        assert billing.available(user) == 940
    finally:
        attach_again()


def test_a_refund_of_half_a_year_later_is_booked(billing: Billing, step: Steps) -> None:
    """A chargeback comes after 110 to 180 days; the limit is what the ledger keeps."""
    payer = billing.payer(1000)
    charge = billing.reserve(payer, 100)
    billing.use(charge, 100)
    billing.settle()
    step(180 * DAY)
    billing.bk.refund_charge(user_id=payer[0], request_id=charge.request_id, refund_id="chargeback")
    assert billing.settle().posted == 1
    assert billing.available(payer[0]) == 1000


def test_a_refund_that_waits_in_a_queue_counts_when_it_was_asked_for(billing: Billing) -> None:
    payer = billing.payer(1000)
    charge = billing.reserve(payer, 100)
    billing.use(charge, 100)
    billing.settle()
    asked = {"user_id": payer[0], "request_id": charge.request_id, "refund_id": "case"}
    flow = intake.refund_message(asked, task_id="t", commands=billing.runtime.commands, sent_at_ms=1_700_000_000_000)
    billing.runtime.run(flow)
    billing.settle()
    ((used_at,),) = billing.sql(
        "select extract(epoch from used_at)::bigint from billing.ledger_entries where kind = 'refund'"
    )
    assert used_at == 1_700_000_000
