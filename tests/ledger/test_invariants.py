"""The invariants see what is wrong, each kind of it, and nothing where all is right."""

from __future__ import annotations

import time

import pytest

from billing_tasks.ledger.rows import Violation
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import OutboxPart

DAY_US = 86_400_000_000


@pytest.fixture
def books(spare_ledger, new_spare_payer, spare_sql):
    """Books with a bit of everything, and SQL that passes by all triggers."""
    payer = new_spare_payer(quota=1000)
    channel = spare_ledger.create_channel()
    charge = payer.consume(100, channel_id=channel.id)
    spare_ledger.post_batch(1, [charge, payer.release(50)])
    spare_ledger.post_refund(1, payer.refund(charge, 40, refund_id="case-1"))
    spare_ledger.top_up(payer.user.id, 7, "top-up-1")
    assert spare_ledger.broken_invariants() == []
    spare_sql.execute("set session_replication_role = replica")
    return payer, channel, charge


def what(ledger) -> set[str]:
    return {violation.what for violation in ledger.broken_invariants()}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("update billing.users set quota = quota + 1", {"users.quota"}),
        ("update billing.users set used_quota = used_quota + 1", {"users.used_quota"}),
        ("update billing.tokens set remain_quota = remain_quota - 1", {"tokens.remain_quota"}),
        ("update billing.tokens set used_quota = 0", {"tokens.used_quota"}),
        ("update billing.channel_usage set used_quota = used_quota * 2", {"channel_used_quota"}),
        ("delete from billing.channel_usage", {"channel_used_quota"}),
        ("delete from billing.users", {"users.quota"}),
        ("delete from billing.tokens", {"tokens.remain_quota"}),
        ("update billing.refunds set quota = 101", {"refunds above their charge", "refunds without their entry"}),
        (
            "delete from billing.ledger_entries where kind = 'refund'",
            {
                "refunds without their entry",
                "users.quota",
                "users.used_quota",
                "tokens.remain_quota",
                "tokens.used_quota",
                "channel_used_quota",
            },
        ),
        ("delete from billing.ledger_entries where kind = 'topup'", {"users.quota", "top_ups without their entry"}),
    ],
)
def test_damage_is_seen_and_named(spare_ledger, spare_sql, books, damage, expected):
    spare_sql.execute(damage)

    assert what(spare_ledger) == expected


def test_a_violation_says_whose_and_by_how_much(spare_ledger, spare_sql, books):
    payer, *_ = books
    spare_sql.execute("update billing.users set quota = 5")

    assert spare_ledger.broken_invariants() == [Violation("users.quota", str(payer.user.id), 947, 5)]


def test_a_hold_consumed_and_released_is_seen(spare_ledger, spare_sql, books):
    payer, *_ = books
    release = payer.release(10)
    spare_ledger.post_batch(1, [release, payer.consume(10, request_id=release.request_id)])
    spare_sql.execute("update billing.ledger_entries set held_quota = 10 where entry_id = %s", [release.request_id])

    assert what(spare_ledger) == {"a hold both consumed and released"}


def test_a_balance_below_zero_needs_usage_beyond_its_hold(spare_ledger, books):
    payer, *_ = books
    spare_ledger.post_batch(1, [payer.consume(2000, held_quota=2000)])

    assert what(spare_ledger) == {"users.quota below zero without a reason"}


def test_a_balance_below_zero_is_explained_by_late_usage_or_a_correction(spare_ledger, new_spare_payer):
    late, corrected, both = (new_spare_payer(quota=100) for _ in range(3))
    spare_ledger.post_batch(1, [late.consume(300, held_quota=0), both.consume(150, held_quota=100)])
    spare_ledger.adjust_user(corrected.user.id, -101, new_request_id())
    spare_ledger.adjust_user(both.user.id, -10, new_request_id())

    assert spare_ledger.broken_invariants() == []


@pytest.mark.parametrize(("days", "explained"), [(0, True), (-3, False), (3, False)])
def test_a_balance_below_zero_is_explained_by_requests_under_way_when_redis_came_back_older(
    spare_ledger, new_spare_payer, days, explained
):
    payer, now_us = new_spare_payer(quota=100), time.time_ns() // 1000
    before, after = now_us - 9 * DAY_US, now_us + days * DAY_US
    for epoch in (before, after):  # the quota that Redis had forgotten was granted again
        spare_ledger.post_outboxes([payer.consume(100, held_quota=100)], [OutboxPart(1, epoch, ((1, 1),))])

    assert what(spare_ledger) == (set() if explained else {"users.quota below zero without a reason"})
