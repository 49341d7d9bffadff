"""Reserving: what is granted, what is refused, and what a refusal leaves behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billing_tasks import Bookkeeper, errors
from billing_tasks.holds.store import HoldStore
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import Runtime
from tests.conftest import Billing, MakeBilling


def test_a_reservation_takes_from_what_is_available(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    assert reservation.held_quota == 300
    assert billing.available(payer[0]) == 700


def test_reserving_twice_under_one_request_id_takes_quota_once(billing: Billing) -> None:
    payer = billing.payer(1000)
    first = billing.reserve(payer, 300)
    again = billing.reserve(payer, 300, request_id=first.request_id)
    assert again.again
    assert again.expires_at_ms == first.expires_at_ms
    assert billing.available(payer[0]) == 700


def test_the_same_request_id_with_another_amount_is_refused(billing: Billing) -> None:
    payer = billing.payer(1000)
    first = billing.reserve(payer, 300)
    with pytest.raises(errors.IdempotencyConflict):
        billing.reserve(payer, 301, request_id=first.request_id)
    assert billing.available(payer[0]) == 700


def test_a_closed_reservation_is_not_opened_again(billing: Billing) -> None:
    payer = billing.payer(1000)
    first = billing.reserve(payer, 300)
    billing.bk.refund_quota(first, reason="upstream 502")
    with pytest.raises(errors.ReservationClosed) as refused:
        billing.reserve(payer, 300, request_id=first.request_id)
    assert refused.value.reason == "released"


def test_a_refusal_leaves_no_trace(billing: Billing) -> None:
    payer = billing.payer(1000, token_quota=100)
    before = billing.available(payer[0])
    with pytest.raises(errors.TokenRefused) as refused:
        billing.reserve(payer, 101)
    assert refused.value.reason == "quota"
    assert billing.available(payer[0]) == before
    assert billing.verify().open_holds == 0


@pytest.mark.parametrize("quota", [0, 1, 999, 1000])
def test_everything_up_to_the_balance_is_granted(billing: Billing, quota: int) -> None:
    assert billing.reserve(billing.payer(1000), quota).held_quota == quota


def test_one_more_than_the_balance_is_refused(billing: Billing) -> None:
    with pytest.raises(errors.InsufficientUserQuota) as refused:
        billing.reserve(billing.payer(1000, unlimited=True), 1001)
    assert (refused.value.code, refused.value.http_status) == ("insufficient_user_quota", 403)


def test_amounts_up_to_two_to_the_53_are_exact(billing: Billing) -> None:
    payer = billing.payer(2**53)
    billing.reserve(payer, 2**53 - 1)
    assert billing.available(payer[0]) == 1
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 2)
    assert billing.reserve(payer, 1).held_quota == 1


def test_an_unlimited_token_is_limited_by_its_user_alone(billing: Billing) -> None:
    payer = billing.payer(1000, token_quota=0, unlimited=True)
    assert billing.reserve(payer, 1000).held_quota == 1000


def test_a_trusted_user_is_held_like_everybody(billing: Billing) -> None:
    payer = billing.payer(1_000_000)
    reservation = billing.reserve(payer, 100)
    assert reservation.trusted
    assert reservation.pre_consumed_quota == 0  # what the reference would have said
    assert reservation.held_quota == 100
    assert billing.available(payer[0]) == 999_900


def test_trust_begins_above_a_hundred_times_the_amount(billing: Billing) -> None:
    assert not billing.reserve(billing.payer(10_000), 100).trusted
    assert billing.reserve(billing.payer(10_001), 100).trusted


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ("update billing.users set status = 'disabled'", errors.UserDisabled, None),
        ("update billing.tokens set status = 'disabled'", errors.TokenRefused, "disabled"),
        ("update billing.tokens set status = 'deleted'", errors.TokenRefused, "disabled"),
        ("update billing.tokens set expires_at = now() - interval '1 s'", errors.TokenRefused, "expired"),
    ],
)
def test_what_another_program_closes_is_refused(
    billing: Billing, change: str, error: type[errors.BillingError], reason: str | None
) -> None:
    payer = billing.payer()
    billing.sql(change)
    with pytest.raises(error) as refused:
        billing.reserve(payer, 1)
    assert refused.value.reason == reason


def test_unknown_accounts_are_refused_by_name(billing: Billing) -> None:
    user_id, token_id = billing.payer()
    with pytest.raises(errors.UserNotFound):
        billing.reserve((999, token_id), 1)
    with pytest.raises(errors.TokenRefused) as refused:
        billing.reserve((user_id, 999), 1)
    assert refused.value.reason == "unknown"


def test_another_users_token_is_refused_in_every_shard(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=2)
    owner, same_shard, other_shard = billing.payer(), None, None
    while same_shard is None or other_shard is None:
        payer = billing.payer()
        if payer[0] % 2 == owner[0] % 2:
            same_shard = payer
        else:
            other_shard = payer
    billing.reserve(owner, 1)  # the token is cached now
    for thief in (same_shard, other_shard):
        with pytest.raises(errors.TokenRefused) as refused:
            billing.reserve((thief[0], owner[1]), 1)
        assert refused.value.reason == "other_user"


def test_a_top_up_counts_at_once(billing: Billing) -> None:
    payer = billing.payer(100, unlimited=True)
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 150)
    billing.accounts.top_up(payer[0], 100, "payment-1")
    assert billing.reserve(payer, 150).held_quota == 150


def test_a_top_up_by_another_program_counts_before_a_request_is_refused(make_billing: MakeBilling) -> None:
    billing = make_billing(refusal_fresh_seconds=0)
    payer = billing.payer(100, unlimited=True)
    billing.reserve(payer, 1)
    billing.sql("update billing.users set quota = quota + 100 where id = %s", payer[0])
    assert billing.reserve(payer, 150).held_quota == 150


def test_a_full_backlog_refuses_new_work_and_nothing_else(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=1, backlog_limit=2)
    payer = billing.payer()
    held = [billing.reserve(payer, 10) for _ in range(3)]
    billing.use(held[0], 5)
    billing.use(held[1], 5)
    with pytest.raises(errors.BacklogFull) as refused:
        billing.reserve(payer, 10)
    assert (refused.value.code, refused.value.http_status) == ("billing_backlog_full", 503)
    billing.use(held[2], 5)  # what was granted is always accepted
    assert billing.settle().posted == 3
    billing.reserve(payer, 10)


@pytest.mark.parametrize("quota", [-1, 2**53 + 1, 1.0, 1.5, "10", True, None])
def test_a_bad_amount_is_refused_before_anything_is_touched(billing: Billing, quota: object) -> None:
    payer = billing.payer()
    with pytest.raises(errors.InvalidRequest, match="quota"):
        billing.reserve(payer, quota)  # type: ignore[arg-type]
    assert billing.redis("DBSIZE") == 0


@pytest.mark.parametrize(
    "request_id",
    ["", "None", "42", "00000000-0000-0000-0000-000000000000", "01890a5d-ac96-774b-bcce-b302099a8057", b"x", 7],
)
def test_ids_that_are_no_fresh_uuid7_are_refused(billing: Billing, request_id: object) -> None:
    with pytest.raises(errors.InvalidRequest, match="request_id"):
        billing.reserve(billing.payer(), 1, request_id=request_id)


def test_an_id_from_the_future_is_refused(billing: Billing) -> None:
    ahead = "ffffffff" + new_request_id()[8:]
    with pytest.raises(errors.InvalidRequest, match="ahead"):
        billing.reserve(billing.payer(), 1, request_id=ahead)


def test_enough_and_much_more_are_the_references(billing: Billing) -> None:
    user_id, _ = billing.payer(1000)
    assert billing.bk.user_has_enough_quota(user_id, 1000)
    assert not billing.bk.user_has_enough_quota(user_id, 1001)
    assert billing.bk.user_has_much_more_quota(user_id, 9)
    assert not billing.bk.user_has_much_more_quota(user_id, 10)


def test_errors_speak_openai(billing: Billing) -> None:
    with pytest.raises(errors.InsufficientUserQuota) as refused:
        billing.reserve(billing.payer(1, unlimited=True), 2)
    body = refused.value.as_openai()["error"]
    assert body["code"] == "insufficient_user_quota"
    assert "1 quota available" in str(body["message"])


def test_another_number_of_shards_is_refused_until_nothing_is_left(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=4)
    reservation = billing.reserve(billing.payer(), 10)
    other = HoldStore(billing.settings.model_copy(update={"shards": 8}))
    with pytest.raises(errors.BadSettings, match="Set BILLING_SHARDS=4"):
        other.check_layout()
    with pytest.raises(errors.BadSettings, match="1 open holds"):
        other.check_layout(change=True)
    billing.bk.refund_quota(reservation)
    billing.settle()
    with pytest.raises(errors.BadSettings):  # a look at the status must not change it
        other.check_layout()
    other.check_layout(change=True)
    other.close()
    billing.redis("SET", billing.runtime.commands.keys.layout, 4)


@pytest.mark.parametrize("found", ["-1/2", "0", "1025/2", "99999", "12/3", "twelve", b"\xff"])
def test_a_layout_that_no_release_notes_is_refused_at_once(billing: Billing, found: str | bytes) -> None:
    billing.redis("SET", billing.runtime.commands.keys.layout, found)
    for change in (False, True):
        with pytest.raises(errors.BadSettings, match="later release"):
            billing.runtime.holds.check_layout(change=change)
    billing.redis("DEL", billing.runtime.commands.keys.layout)


def test_another_layout_begins_without_keys_of_the_one_before(billing: Billing) -> None:
    payers = [billing.payer() for _ in range(40)]
    layouts = [{"shards": 16, "shard_tags": "numbered"}, {"shards": 12, "shard_tags": "spread"}]
    for layout in (*layouts, {"shards": 5}, *layouts):
        runtime = Runtime(billing.settings.model_copy(update=layout))
        runtime.holds.check_layout(change=True)
        assert billing.redis("KEYS", f"{runtime.settings.key_prefix}:{{*") == []
        there = replace(billing, settings=runtime.settings, runtime=runtime, bk=Bookkeeper(runtime))
        for payer in payers:
            there.use(there.reserve(payer, 100), 40)
        assert there.settle().posted == len(payers)
        assert there.verify().findings == []
        there.bk.close()
    assert {billing.accounts.user(user_id).used_quota for user_id, _ in payers} == {5 * 40}
    billing.runtime.holds.check_layout(change=True)
