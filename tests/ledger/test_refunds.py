"""Refunds after the charge: reversing entries, never more than was charged."""

from __future__ import annotations

import msgspec
import pytest

from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.model.posting import PostOutcome


@pytest.fixture
def charge(ledger, payer, shard):
    event = payer.consume(100, channel_id=ledger.create_channel().id, model_name="gpt-4o")
    ledger.post_batch(shard, [event])
    return event


def test_a_refund_returns_quota_to_user_token_and_channel(ledger, payer, shard, charge):
    answer = ledger.post_refund(shard, payer.refund(charge, 40))

    assert answer.outcomes == [PostOutcome.POSTED]
    user, token, _ = ledger.accounts(payer.user.id, payer.token.id)
    assert (answer.users, answer.tokens) == ([user], [token])
    assert (user.quota, user.used_quota, user.request_count) == (1_000_000 - 60, 60, 1)
    assert (token.remain_quota, token.used_quota) == (1_000_000 - 60, 60)
    assert ledger.get_channel(charge.channel_id).used_quota == 60


def test_a_refund_is_an_entry_that_names_its_charge(ledger, payer, shard, charge):
    refund = payer.refund(charge, 40)
    refund.content = "case 17"
    ledger.post_refund(shard, refund)

    _, entry = ledger.entries_of(charge.request_id)

    assert (entry.kind, entry.request_id) == ("refund", charge.request_id)
    assert (entry.quota, entry.user_quota, entry.token_quota, entry.used_quota) == (40, 40, 40, -40)
    assert (entry.content, entry.model_name, entry.channel_id) == ("case 17", "gpt-4o", charge.channel_id)


def test_a_refund_repeated_is_booked_once(ledger, payer, shard, charge):
    refund = payer.refund(charge, 40)

    answers = [ledger.post_refund(shard, refund) for _ in range(3)]

    assert [a.outcomes for a in answers] == [[PostOutcome.POSTED], [PostOutcome.DUPLICATE], [PostOutcome.DUPLICATE]]
    assert answers[2].users == answers[0].users


def test_the_same_refund_id_with_another_amount_is_a_conflict(ledger, payer, shard, charge):
    ledger.post_refund(shard, payer.refund(charge, 40, refund_id="case-1-" + charge.request_id))

    other = payer.refund(charge, 41, refund_id="case-1-" + charge.request_id)

    assert ledger.post_refund(shard, other).outcomes == [PostOutcome.CONFLICT]


def test_refunds_in_parts_stop_at_the_charge(ledger, payer, shard, charge):
    outcomes = [ledger.post_refund(shard, payer.refund(charge, n)).outcomes[0] for n in (60, 41, 40, 1)]

    assert outcomes == [PostOutcome.POSTED, PostOutcome.ABOVE_CHARGE, PostOutcome.POSTED, PostOutcome.ABOVE_CHARGE]
    assert ledger.get_user(payer.user.id).quota == 1_000_000


def test_a_whole_refund_gives_what_is_left_and_then_there_is_nothing_left(ledger, payer, shard, charge):
    ledger.post_refund(shard, payer.refund(charge, 30))
    whole = payer.refund(charge)

    assert ledger.post_refund(shard, whole).outcomes == [PostOutcome.POSTED]
    assert ledger.get_user(payer.user.id).quota == 1_000_000
    assert ledger.post_refund(shard, whole).outcomes == [PostOutcome.DUPLICATE]
    assert ledger.post_refund(shard, payer.refund(charge)).outcomes == [PostOutcome.ABOVE_CHARGE]


def test_nothing_is_refunded_that_was_not_charged(ledger, payer, shard):
    release = payer.release(100)
    ledger.post_batch(shard, [release])

    answer = ledger.post_refund(shard, payer.refund(release))

    assert answer.outcomes == [PostOutcome.NO_CHARGE]
    assert answer.users == [payer.user]


def test_another_users_charge_is_not_refunded(ledger, new_payer, shard, charge):
    thief = new_payer()

    assert ledger.post_refund(shard, thief.refund(charge)).outcomes == [PostOutcome.CONFLICT]
    assert ledger.get_user(thief.user.id) == thief.user


def test_an_unknown_user_is_named(ledger, payer, shard, charge):
    refund = msgspec.structs.replace(payer.refund(charge), user_id=10**15)

    assert ledger.post_refund(shard, refund).outcomes == [PostOutcome.UNKNOWN_USER]


def test_the_token_that_paid_gets_the_quota_back_whatever_the_refund_names(ledger, new_payer, payer, shard, charge):
    refund = msgspec.structs.replace(payer.refund(charge), token_id=0)

    answer = ledger.post_refund(shard, refund)

    assert [(t.id, t.remain_quota) for t in answer.tokens] == [(payer.token.id, 1_000_000)]


@pytest.mark.parametrize("fields", [{"quota": 0}, {"quota": -5}, {"refund_id": ""}, {"content": "\x00"}])
def test_a_malformed_refund_is_refused(ledger, payer, shard, charge, fields):
    refund = msgspec.structs.replace(payer.refund(charge, 10), **fields)

    with pytest.raises(LedgerRefusedData):
        ledger.post_refund(shard, refund)

    assert ledger.get_user(payer.user.id).quota == 1_000_000 - 100
