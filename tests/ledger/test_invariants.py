"""The invariants see what is wrong, each kind of it, and nothing where all is right."""

from __future__ import annotations

import time

import psycopg
import pytest

from billing_tasks.ledger.rows import Violation
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import OutboxPart

DAY_US = 86_400_000_000

CONTRADICTS, REFUND = "an entry that contradicts itself", "refunds without their entry"
USED = {"users.used_quota", "tokens.used_quota"}
BELOW = "tokens.remain_quota below zero without a reason"


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
        ("update billing.users set request_count = request_count + 1", {"users.request_count"}),
        ("update billing.users set request_count = 0", {"users.request_count"}),
        ("delete from billing.refunds", {"refund entries that billing.refunds does not know"}),
        ("delete from billing.top_ups", {"entries that billing.top_ups does not know"}),
        ("update billing.users set version = version + 1000", {"versions above their sequence"}),
        ("update billing.tokens set version = version + 1000", {"versions above their sequence"}),
        ("select setval('billing.versions', 1)", {"versions above their sequence"}),
        ("update billing.ledger_entries set quota = quota + 1 where kind = 'consume'", {CONTRADICTS}),
        ("update billing.ledger_entries set used_quota = 1 where kind = 'release'", {CONTRADICTS, *USED}),
        ("update billing.ledger_entries set quota = 41 where kind = 'refund'", {CONTRADICTS, REFUND}),
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

    assert what(spare_ledger) == {"users.quota below zero without a reason", BELOW}


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
    payer, now_us = new_spare_payer(quota=100, unlimited_quota=True), time.time_ns() // 1000
    before, after = now_us - 9 * DAY_US, now_us + days * DAY_US
    for epoch in (before, after):  # the quota that Redis had forgotten was granted again
        spare_ledger.post_outboxes([payer.consume(100, held_quota=100)], [OutboxPart(1, epoch, ((1, 1),))])

    assert what(spare_ledger) == (set() if explained else {"users.quota below zero without a reason"})


def test_a_token_spent_above_its_quota_is_named(spare_ledger, new_spare_payer):
    payer = new_spare_payer(quota=10_000, remain_quota=100)
    spare_ledger.post_batch(1, [payer.consume(500, held_quota=500)])

    assert spare_ledger.broken_invariants() == [Violation(BELOW, str(payer.token.id), 0, -400)]


def test_a_token_below_zero_is_explained_by_late_usage_a_correction_or_a_time_without_a_limit(
    spare_ledger, new_spare_payer
):
    late, corrected, unlimited = (new_spare_payer(quota=10_000, remain_quota=100) for _ in range(3))
    spare_ledger.post_batch(1, [late.consume(500, held_quota=0)])
    spare_ledger.adjust_token(corrected.token.id, -101, new_request_id())
    spare_ledger.set_token(unlimited.token.id, unlimited_quota=True)
    spare_ledger.post_batch(1, [unlimited.consume(500, held_quota=500)])
    spare_ledger.set_token(unlimited.token.id, unlimited_quota=False)

    assert spare_ledger.broken_invariants() == []


def test_what_accounts_bring_with_them_breaks_nothing(spare_ledger, spare_sql, new_spare_payer):
    spare_sql.execute(
        "insert into billing.users (id, quota, used_quota, request_count) values (4001, 1000, 500, 12);"
        "insert into billing.tokens (id, user_id, remain_quota, used_quota) values (4001, 4001, 1000, 500);"
        "insert into billing.channels (id, name) values (77, 'of before');"
        "insert into billing.channel_usage (channel_id, shard, used_quota) values (77, 1, 123456)"
    )
    payer = new_spare_payer(quota=1000)
    spare_ledger.post_batch(1, [payer.consume(100, channel_id=77), payer.consume(1, channel_id=78)])
    spare_ledger.post_batch(2, [payer.consume(10, channel_id=77)])

    assert spare_ledger.broken_invariants() == []
    spare_sql.execute(
        "update billing.channel_usage set used_quota = used_quota + 1 where channel_id = 77 and shard = 1"
    )
    assert spare_ledger.broken_invariants() == [Violation("channel_used_quota", "77", 123566, 123567)]


@pytest.mark.parametrize("table", ["users", "tokens", "channels"])
@pytest.mark.parametrize("number", [2**53, 2**63 - 1, 0, -1])
def test_an_id_that_lua_and_json_can_not_hold_poisons_no_sequence(spare_sql, new_spare_payer, table, number):
    payer = new_spare_payer(quota=100)
    rest = f", user_id) values ({number}, {payer.user.id})" if table == "tokens" else f") values ({number})"
    with pytest.raises(psycopg.errors.CheckViolation, match="id_is_exact"):
        spare_sql.execute(f"insert into billing.{table} (id{rest}")
    assert new_spare_payer(quota=100).user.id < 2**53
