"""Consuming and refunding: what is charged, what is released, and what a repeat does."""

from __future__ import annotations

import pytest

from billing_tasks import ConsumeLog, errors
from billing_tasks.model.ids import new_request_id
from tests.conftest import CHANNEL, Billing, MakeBilling


def test_consuming_less_than_was_held_releases_the_rest(billing: Billing) -> None:
    payer = billing.payer(1000)
    receipt = billing.use(billing.reserve(payer, 300), 120)
    assert (receipt.quota, receipt.late, receipt.again) == (120, False, False)
    assert billing.available(payer[0]) == 880
    billing.settle()
    assert billing.accounts.user(payer[0]).quota == 880
    assert billing.available(payer[0]) == 880


def test_consuming_more_than_was_held_charges_all_of_it(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 300), 1200)
    billing.settle()
    user = billing.accounts.user(payer[0])
    assert (user.quota, user.used_quota, user.request_count) == (-200, 1200, 1)


def test_a_consume_books_user_token_channel_and_log(billing: Billing) -> None:
    payer = billing.payer(1_000_000)
    price = billing.bk.price(model="gpt-4o", group="vip")
    reservation = billing.reserve(payer, price.estimate(374, 512), price=price, client_key="order-7")
    usage = {"cached_tokens": 12}
    billing.bk.consume(
        reservation.log(
            channel_id=CHANNEL, prompt_tokens=374, completion_tokens=44, elapsed_ms=812, is_stream=True, usage=usage
        )
    )
    billing.settle()
    user, token = billing.accounts.user(payer[0]), billing.accounts.token(payer[1])
    charged = 1375  # ceil((374 + 44 * 4) * 2.5 / 2 ...): 550 prompt-token equivalents at ratio 2.5
    assert (user.used_quota, token.used_quota, token.remain_quota) == (charged, charged, 1_000_000 - charged)
    assert billing.sql("select used_quota from billing.channel_used_quota where channel_id = %s", CHANNEL) == [
        (charged,)
    ]
    (entry,) = billing.accounts.entries(client_key="order-7")
    assert (entry.kind, entry.quota, entry.prompt_tokens, entry.completion_tokens) == ("consume", charged, 374, 44)
    assert (entry.model_name, entry.group_name, entry.model_ratio, entry.completion_ratio) == (
        "gpt-4o",
        "vip",
        "5/2",
        "4",
    )
    assert (entry.elapsed_ms, entry.is_stream, entry.usage) == (812, True, usage)


def test_the_price_of_a_reservation_outlives_a_change_of_the_table(billing: Billing) -> None:
    price = billing.bk.price(model="gpt-4o")
    reservation = billing.reserve(billing.payer(), 100, price=price)
    billing.bk.ratio_book.set_overrides(model={"gpt-4o": "1000"})
    assert billing.bk.price(model="gpt-4o").quota(1, 0) == 1000
    assert reservation.log(channel_id=CHANNEL, prompt_tokens=4).quota == price.quota(4, 0) == 10


def test_consuming_twice_charges_once(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    billing.use(reservation, 120)
    assert billing.use(reservation, 120).again
    billing.settle()
    assert billing.use(reservation, 120).again
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 120


def test_consuming_twice_charges_once_after_the_tombstone_is_gone(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    billing.use(reservation, 120)
    keys = billing.runtime.commands.keys
    billing.redis("DEL", keys.hold(keys.shard_of(payer[0]), reservation.request_id))
    assert billing.use(reservation, 120).late
    done = billing.settle()
    assert (done.posted, done.duplicates) == (1, 1)
    assert billing.accounts.user(payer[0]).used_quota == 120
    assert billing.available(payer[0]) == 880


def test_the_same_request_with_another_usage_is_refused_and_kept(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    billing.use(reservation, 120)
    with pytest.raises(errors.IdempotencyConflict):
        billing.use(reservation, 121)
    done = billing.settle()
    assert (done.posted, done.dead_lettered) == (1, 1)
    assert billing.accounts.user(payer[0]).used_quota == 120
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    assert (dead_letter.kind, dead_letter.request_id, dead_letter.state) == (
        "conflict",
        reservation.request_id,
        "failed",
    )
    assert b'"quota":121' in dead_letter.payload


def test_a_late_consume_still_charges(make_billing: MakeBilling) -> None:
    billing = make_billing()
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300, ttl_seconds=1)
    _make_due(billing, payer[0], reservation.request_id)
    assert billing.expire() == 1
    billing.settle()
    assert billing.available(payer[0]) == 1000
    assert billing.use(reservation, 120).late
    billing.settle()
    assert billing.accounts.user(payer[0]).quota == 880
    kinds = {entry.kind: entry for entry in billing.runtime.ledger.entries_of(reservation.request_id)}
    assert kinds["release"].expired
    assert kinds["consume"].held_quota == 0


def _make_due(billing: Billing, user_id: int, request_id: str) -> None:
    """Turn the hold's clock back instead of waiting."""
    keys = billing.runtime.commands.keys
    billing.redis("ZADD", keys.due(keys.shard_of(user_id)), 1, request_id)


def test_only_what_is_due_expires(billing: Billing) -> None:
    payer = billing.payer(1000)
    due, running = billing.reserve(payer, 300), billing.reserve(payer, 200)
    _make_due(billing, payer[0], due.request_id)
    assert billing.expire() == 1
    assert billing.available(payer[0]) == 500, "the quota of an expired hold waits for its release to be booked"
    billing.settle()
    assert billing.available(payer[0]) == 800
    assert not billing.use(running, 10).late


def test_a_renewed_hold_does_not_expire(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    _make_due(billing, payer[0], reservation.request_id)
    billing.bk.renew(reservation)
    assert billing.expire() == 0
    assert billing.available(payer[0]) == 700


def test_a_closed_hold_can_not_be_renewed(billing: Billing) -> None:
    reservation = billing.reserve(billing.payer(), 300)
    billing.use(reservation, 1)
    with pytest.raises(errors.ReservationClosed):
        billing.bk.renew(reservation)


def test_more_holds_than_one_page_expire_in_one_run(billing: Billing) -> None:
    payer = billing.payer(1000)
    for _ in range(250):
        _make_due(billing, payer[0], billing.reserve(payer, 1).request_id)
    assert billing.expire() == 250
    assert billing.settle().posted == 250
    assert billing.available(payer[0]) == 1000


def test_a_consume_without_a_reservation_is_charged(billing: Billing) -> None:
    user_id, token_id = billing.payer(1000)
    log = ConsumeLog(user_id=user_id, token_id=token_id, channel_id=CHANNEL, quota=70, request_id=new_request_id())
    assert billing.bk.consume(log).late
    assert billing.available(user_id) == 930
    billing.settle()
    assert billing.accounts.user(user_id).quota == 930


def test_a_free_request_is_booked_with_nothing(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 0), 0)
    billing.settle()
    user = billing.accounts.user(payer[0])
    assert (user.quota, user.request_count) == (1000, 1)


def test_refunding_a_reservation_releases_all_of_it_once(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    assert billing.bk.refund_quota(reservation, reason="upstream 502").quota == 300
    assert billing.bk.refund_quota(reservation).again
    assert billing.available(payer[0]) == 1000
    billing.settle()
    (entry,) = billing.runtime.ledger.entries_of(reservation.request_id)
    assert (entry.kind, entry.quota, entry.content, entry.user_quota) == ("release", 300, "upstream 502", 0)


def test_refunding_a_trusted_reservation_frees_its_hold(billing: Billing) -> None:
    payer = billing.payer(1_000_000)
    reservation = billing.reserve(payer, 100)
    assert reservation.trusted
    assert billing.bk.refund_quota(reservation).quota == 100
    assert billing.available(payer[0]) == 1_000_000


def test_a_reservation_can_be_refunded_by_its_id_alone(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    receipt = billing.bk.refund_quota(user_id=payer[0], request_id=reservation.request_id, reason="by hand")
    assert receipt.quota == 300
    assert billing.available(payer[0]) == 1000


def test_a_consumed_reservation_is_not_refunded_as_a_reservation(billing: Billing) -> None:
    reservation = billing.reserve(billing.payer(), 300)
    billing.use(reservation, 120)
    with pytest.raises(errors.ReservationClosed, match="refund_charge"):
        billing.bk.refund_quota(reservation)


def test_a_charge_is_refunded_in_parts_up_to_the_charge(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    billing.use(reservation, 120)
    refund = {"user_id": payer[0], "request_id": reservation.request_id}
    billing.bk.refund_charge(**refund, refund_id="a", quota=20, reason="slow")
    billing.bk.refund_charge(**refund, refund_id="a", quota=20, reason="slow")  # the same one again
    billing.bk.refund_charge(**refund, refund_id="b", quota=101)  # above what is left
    billing.bk.refund_charge(**refund, refund_id="c")  # all that is left
    billing.settle()
    assert billing.accounts.user(payer[0]).quota == 1000
    assert billing.accounts.token(payer[1]).used_quota == 0
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    assert (dead_letter.kind, dead_letter.reason, dead_letter.state) == ("refund", "above_charge", "failed")


def test_a_refund_that_comes_before_its_charge_waits(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    billing.bk.refund_charge(user_id=payer[0], request_id=reservation.request_id, refund_id="early", quota=20)
    billing.settle()
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    assert (dead_letter.reason, dead_letter.state) == ("no_charge", "retrying")
    billing.use(reservation, 120)
    billing.settle()
    assert _retry(billing, dead_letter.id) == "posted"
    assert _retry(billing, dead_letter.id) == "already resolved"
    assert billing.accounts.user(payer[0]).quota == 900


def _retry(billing: Billing, number: int) -> str:
    from billing_tasks.flows.dead_letters import retry

    flow = retry.attempt(number, actor="test", commands=billing.runtime.commands, settings=billing.settings)
    return billing.runtime.run(flow).outcome


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quota", -1),
        ("quota", 1.5),
        ("quota", 2**53 + 1),
        ("quota", True),
        ("quota", float("nan")),
        ("prompt_tokens", -1),
        ("completion_tokens", 10**30),
        ("completion_tokens", "44"),
        ("user_id", 0),
        ("user_id", -5),
        ("model_name", "x" * 201),
        ("model_name", "nul\x00"),
        ("content", "\ud800"),
        ("content", "x" * 1_000_000),
        ("usage", {"a": "\x00"}),
        ("usage", {"a": "x" * 5000}),
        ("usage", {"a": object()}),
        ("request_id", "None"),
        ("unknown_field", 1),
    ],
)
def test_usage_from_outside_is_checked_field_by_field(field: str, value: object) -> None:
    good = {"user_id": 1, "token_id": 1, "channel_id": 1, "quota": 1, "request_id": new_request_id()}
    ConsumeLog(**good)
    with pytest.raises(errors.InvalidRequest, match=field) as refused:
        ConsumeLog(**{**good, field: value})
    assert len(refused.value.message) < 500


def test_a_log_without_a_price_needs_its_quota(billing: Billing) -> None:
    reservation = billing.reserve(billing.payer(), 10)
    with pytest.raises(errors.InvalidRequest, match="price"):
        reservation.log(channel_id=CHANNEL, prompt_tokens=1)
