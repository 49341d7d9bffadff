"""A hold can grow: within what is available, in one step, and it stays the hold that was asked for first."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from billing_tasks import errors
from billing_tasks.model.reservation import Reservation
from tests.client.test_charge import ask_for
from tests.conftest import Billing, MakeBilling


def held(billing: Billing, user: int) -> int:
    return int(billing.redis("HGET", billing.user_key(user), "held") or 0)


def test_a_hold_grows_and_its_reservation_is_still_the_same(billing: Billing) -> None:
    payer = billing.payer(1000)
    first = billing.reserve(payer, 100)
    grown = billing.bk.extend(first, quota=700)
    assert (grown.held_quota, held(billing, payer[0])) == (700, 700)
    assert billing.bk.extend(first, quota=700).held_quota == 700  # again: the total is set
    assert billing.reserve(payer, 100, request_id=first.request_id).again
    with pytest.raises(errors.IdempotencyConflict):
        billing.reserve(payer, 700, request_id=first.request_id)
    billing.use(grown, 650)
    with pytest.raises(errors.ReservationClosed):
        billing.reserve(payer, 100, request_id=first.request_id)
    billing.settle()
    assert billing.available(payer[0]) == 350
    (entry,) = billing.runtime.ledger.entries_of(first.request_id)
    assert (entry.quota, entry.held_quota) == (650, 700)


@pytest.mark.parametrize("end", ["release", "expire"])
def test_a_grown_hold_that_ends_unused_gives_all_of_it_back(billing: Billing, end: str) -> None:
    payer = billing.payer(1000)
    first = billing.reserve(payer, 100)
    billing.bk.renew(first, quota=600)
    if end == "release":
        assert billing.bk.refund_quota(first).quota == 600
    else:
        keys = billing.runtime.commands.keys
        billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, first.request_id)
        assert billing.expire() == 1
    with pytest.raises(errors.ReservationClosed):
        billing.reserve(payer, 100, request_id=first.request_id)
    billing.settle()
    assert (billing.available(payer[0]), held(billing, payer[0])) == (1000, 0)


def test_growth_above_what_is_available_is_refused_and_changes_nothing(billing: Billing) -> None:
    payer = billing.payer(1000, token_quota=800)
    first = billing.reserve(payer, 100)
    with pytest.raises(errors.InsufficientUserQuota, match="would hold 1001 altogether"):
        billing.bk.extend(first, quota=1001)
    with pytest.raises(errors.TokenRefused):
        billing.bk.extend(first, quota=801)
    assert held(billing, payer[0]) == 100
    assert billing.bk.extend(first, quota=800).held_quota == 800


def test_a_top_up_made_elsewhere_lets_it_grow(billing: Billing) -> None:
    payer = billing.payer(100, unlimited=True)
    first = billing.reserve(payer, 100)
    billing.sql("update billing.users set quota = 1000 where id = %s", payer[0])
    billing.redis("HINCRBY", billing.user_key(payer[0]), "loaded_at", -2000)
    assert billing.bk.extend(first, quota=900).held_quota == 900


def test_a_total_below_what_is_held_gives_quota_back(billing: Billing) -> None:
    payer = billing.payer(1000)
    first = billing.reserve(payer, 900)
    billing.bk.extend(first, quota=200)
    assert billing.available(payer[0]) == 800
    billing.use(first, 100)
    billing.settle()


def test_a_closed_hold_or_none_does_not_grow(billing: Billing) -> None:
    payer = billing.payer(1000)
    first = billing.reserve(payer, 100)
    billing.use(first, 50)
    with pytest.raises(errors.ReservationClosed):
        billing.bk.extend(first, quota=200)
    never = Reservation("01a217be-2f41-71cb-968c-cf2911960477", payer[0], payer[1], 1, 0)
    with pytest.raises(errors.ReservationClosed, match="no open hold"):
        billing.bk.extend(never, quota=200)
    billing.settle()
    assert held(billing, payer[0]) == 0


def test_no_user_changes_another_users_hold(billing: Billing) -> None:
    payer, second = billing.payer(1000), billing.payer(1000)
    shards = billing.settings.shards
    while (other := billing.payer(1000))[0] % shards != payer[0] % shards:
        pass
    held = billing.reserve(payer, 100)
    for wrong in (other, (payer[0], other[1]), second):
        with pytest.raises(errors.Refused) as refused:
            billing.bk.extend(replace(held, user_id=wrong[0], token_id=wrong[1]), quota=300)
        assert refused.value.code in ("idempotency_conflict", "reservation_closed")
    assert billing.available(payer[0]) == 900
    billing.bk.refund_quota(held)
    billing.settle()


def test_streams_that_grow_at_once_never_hold_more_than_there_is(billing: Billing) -> None:
    payer = billing.payer(1000)
    streams = [billing.reserve(payer, 10) for _ in range(20)]
    granted: list[int] = []
    go = threading.Barrier(20)

    def grow(stream: Reservation) -> None:
        go.wait()
        for total in (100, 200, 300):
            try:
                granted.append(billing.bk.extend(stream, quota=total).held_quota)
            except errors.InsufficientUserQuota:
                return

    threads = [threading.Thread(target=grow, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 900 < held(billing, payer[0]) <= 1000
    assert granted
    assert billing.verify().findings == []


def test_without_a_bound_an_overdraft_costs_what_was_used_beyond_the_holds(billing: Billing) -> None:
    payer = billing.payer(100_000, unlimited=True)
    with billing.bk.charge(**ask_for(payer)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens=128_000)
    billing.settle()
    assert billing.available(payer[0]) < 0


def test_an_overdraft_is_bounded_by_the_setting(make_billing: MakeBilling) -> None:
    billing = make_billing(overdraft_quota=500)
    payer = billing.payer(100_000, unlimited=True)
    sent = 0
    with pytest.raises(errors.InsufficientUserQuota, match="OVERDRAFT"), billing.bk.charge(**ask_for(payer)) as charge:
        for sent in range(0, 128_000, 10):
            charge.usage(prompt_tokens=374, completion_tokens=sent)
    billing.settle()
    assert charge.receipt is not None
    assert 6055 + 500 < charge.receipt.quota <= 6055 + 500 + 100  # one chunk of 10 tokens above
    assert sent < 1000


def test_a_stream_extends_its_hold_before_it_goes_on(make_billing: MakeBilling) -> None:
    billing = make_billing(overdraft_quota=0)
    payer = billing.payer(100_000, unlimited=True)
    with billing.bk.charge(**ask_for(payer)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens=500)
        charge.extend(completion_tokens=2000)
        charge.usage(completion_tokens=2000)
        with pytest.raises(errors.InsufficientUserQuota):
            charge.extend(completion_tokens=128_000)
        with pytest.raises(errors.InvalidRequest, match="not both"):
            charge.extend(quota=1, completion_tokens=1)
    billing.settle()
    assert billing.available(payer[0]) == 100_000 - (374 + 2000 * 4) * 5 // 2
