"""A repetition is known by the older of two formulas, whichever release booked the request and whichever repeats it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from billing_tasks.errors import IdempotencyConflict
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.fingerprint import consume_fingerprint, formula_of
from tests.conftest import Billing, Payer

BODY = {"user_id": 1, "token_id": 2, "channel_id": 3, "model_name": "m", "prompt_tokens": 4, "completion_tokens": 5}


@pytest.fixture
def payer(billing: Billing) -> Payer:
    return billing.payer()


def log(billing: Billing, payer: Payer, request_id: str, quota: int = 40, **more: Any) -> ConsumeLog:
    user_id, token_id = payer
    return ConsumeLog(
        user_id=user_id, token_id=token_id, channel_id=3, quota=quota, request_id=request_id, prompt_tokens=9, **more
    )


def as_0_1_0(consume: ConsumeLog) -> dict[str, Any]:
    """The event of release 0.1.0, which had the header's fields in it and another formula."""
    event = events.of_log(consume)
    sent: dict[str, Any] = json.loads(events.encode(event))
    return {**sent, "fingerprint": events.fingerprint_of_0_1_0(event)}


def test_a_fingerprint_carries_its_formula_and_a_zero_counts_as_not_there() -> None:
    plain = consume_fingerprint(**BODY, quota=6)
    assert formula_of(plain) == 2
    assert formula_of(consume_fingerprint(**BODY, quota=6, formula=1)) == 1
    assert consume_fingerprint(**BODY, quota=6, usage={"a": 0}) == plain
    assert consume_fingerprint(**BODY, quota=6, usage={"a": 1}) != plain
    assert consume_fingerprint(**BODY, quota=6, usage={"b": 2, "a": 1}) == consume_fingerprint(
        **BODY, quota=6, usage={"a": 1, "b": 2, "c": 0}
    )
    assert consume_fingerprint(**BODY, quota=6) != consume_fingerprint(**BODY, quota=7)


def test_what_the_release_before_booked_is_not_booked_again(billing: Billing, payer: Payer) -> None:
    first = log(billing, payer, billing.reserve(payer, 100).request_id)
    billing.sql("select billing.post_batch(0, %s, null, null, null)", json.dumps([as_0_1_0(first)]))

    billing.bk.consume(first)
    other = log(billing, payer, billing.reserve(payer, 100).request_id)
    billing.sql("select billing.post_batch(0, %s, null, null, null)", json.dumps([as_0_1_0(other)]))
    billing.bk.consume(log(billing, payer, other.request_id, 41))
    done = billing.settle()

    assert (done.duplicates, done.dead_lettered) == (1, 1)
    assert billing.accounts.user(payer[0]).used_quota == 80


def test_what_this_release_booked_is_a_repetition_for_the_release_before(billing: Billing, payer: Payer) -> None:
    first = log(billing, payer, billing.reserve(payer, 100).request_id)
    billing.bk.consume(first)
    billing.settle()

    batch = [as_0_1_0(first), as_0_1_0(log(billing, payer, first.request_id, 41))]
    [(answer,)] = billing.sql("select outcomes from billing.post_batch(0, %s, null, null, null)", json.dumps(batch))

    assert json.loads(answer) == ["duplicate", "conflict"]
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_a_tombstone_of_the_release_before_answers_the_repetition(billing: Billing, payer: Payer) -> None:
    first = log(billing, payer, billing.reserve(payer, 100).request_id)
    billing.bk.consume(first)
    keys = billing.runtime.commands.keys
    hold = keys.hold(keys.shard_of(payer[0]), first.request_id)
    state, user, token, held, _ = billing.redis("GET", hold).decode().split()
    old = events.fingerprint_of_0_1_0(events.of_log(first))
    billing.redis("SET", hold, f"{state} {user} {token} {held} {old}", "KEEPTTL")

    assert billing.bk.consume(first).again
    with pytest.raises(IdempotencyConflict):
        billing.bk.consume(log(billing, payer, first.request_id, 41))
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 40
