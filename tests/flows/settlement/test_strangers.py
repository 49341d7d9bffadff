"""Other programs and hostile messages: what they leave behind never blocks a shard, and never moves quota."""

from __future__ import annotations

from typing import Any

import pytest

from billing_tasks import ConsumeLog, errors
from billing_tasks.flows.dead_letters import record, retry
from billing_tasks.flows.effects import Enqueue
from billing_tasks.flows.requests import refund
from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import PostOutcome
from billing_tasks.model.refund import RefundRequest
from tests.conftest import CHANNEL, Billing, MakeBilling


def attempt(billing: Billing, number: int) -> Any:
    flow = retry.attempt(number, actor="test", commands=billing.runtime.commands, settings=billing.settings)
    return billing.runtime.run(flow).outcome


@pytest.mark.parametrize("moment", ["infinity", "20000-01-01", "-infinity"])
def test_a_moment_that_python_can_not_hold_blocks_no_shard(billing: Billing, moment: str) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    billing.sql("update billing.tokens set expires_at = %s", moment)
    billing.use(reservation, 40)
    assert billing.settle().posted == 1
    assert billing.accounts.token(payer[1]).expires_at_ms == (0 if moment == "-infinity" else None)
    if moment != "-infinity":
        billing.reserve(payer, 10)


def test_usage_nested_without_end_is_refused_before_it_is_filed(billing: Billing) -> None:
    nested: list[Any] = []
    for _ in range(250):
        nested = [nested]
    with pytest.raises(errors.InvalidRequest, match="lists and objects"):
        billing.reserve(billing.payer(), 10).log(channel_id=CHANNEL, quota=1, usage={"a": nested})


def test_a_message_that_looks_like_an_event_passes_the_checks_of_a_message(billing: Billing) -> None:
    payer = billing.payer()
    message = {
        "kind": "consume",
        "fingerprint": "ab" * 16,
        "user_id": payer[0],
        "token_id": payer[1],
        "request_id": new_request_id(),
        "quota": 2**60,
    }
    refused = errors.InvalidRequest("ConsumeLog can't be booked: quota")
    billing.runtime.run(record.keep([record.of_message("consume", message, refused, task_id="t")]))
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    with pytest.raises(errors.InvalidRequest, match="quota"):
        attempt(billing, dead_letter.id)
    assert billing.accounts.user(payer[0]).quota == 1_000_000


def test_dead_letters_that_fail_again_do_not_keep_the_others_from_their_turn(billing: Billing) -> None:
    payer = billing.payer()
    for _ in range(6):
        billing.bk.consume(
            ConsumeLog(user_id=payer[0], token_id=999, channel_id=CHANNEL, quota=5, request_id=new_request_id())
        )
    billing.settle()
    turns: list[int] = []
    for _ in range(3):
        flow = retry.send_again(reason="unknown_token", limit=2, due_only=False, settings=billing.settings)
        effect = flow.send(None)
        try:
            while True:
                reply = None
                if isinstance(effect, Enqueue):
                    turns.append(effect.kwargs["dead_letter"])
                    with pytest.raises(errors.TokenRefused):
                        attempt(billing, effect.kwargs["dead_letter"])
                else:
                    reply = billing.runtime.perform(effect)
                effect = flow.send(reply)
        except StopIteration:
            continue
    assert len(set(turns)) == 6


def test_a_conflict_is_sent_again_only_if_conflicts_are_asked_for(billing: Billing) -> None:
    reservation = billing.reserve(billing.payer(), 100)
    billing.use(reservation, 40)
    with pytest.raises(errors.IdempotencyConflict):
        billing.use(reservation, 41)
    billing.settle()

    def sent(**asked: str) -> list[int]:
        flow = retry.send_again(limit=9, due_only=False, settings=billing.settings, **asked)  # type: ignore[arg-type]
        return billing.runtime.run(flow).numbers

    assert sent() == []
    assert len(sent(kind="conflict")) == 1


@pytest.mark.parametrize("steps", range(8))
def test_a_discard_is_not_undone_by_an_attempt_that_was_under_way(billing: Billing, steps: int) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    billing.bk.refund_charge(user_id=payer[0], request_id=reservation.request_id, refund_id="case-1")
    billing.settle()
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    flow = retry.attempt(dead_letter.id, actor="worker", commands=billing.runtime.commands, settings=billing.settings)
    with pytest.raises((errors.ChargeNotFound, StopIteration)):
        effect = flow.send(None)
        for _ in range(steps):
            effect = flow.send(billing.runtime.perform(effect))
        billing.runtime.ledger.mark_dead_letter(
            dead_letter.id, DeadLetterState.DISCARDED, actor="ann", comment="by hand"
        )
        while True:
            effect = flow.send(billing.runtime.perform(effect))
    discarded = [line.what for line in billing.runtime.ledger.dead_letter_history(dead_letter.id)].count("discarded")
    state = billing.runtime.ledger.get_dead_letter(dead_letter.id).state  # type: ignore[union-attr]
    assert state == ("discarded" if discarded else "failed" if state == "failed" else "retrying")


def test_a_discard_stands_when_an_attempt_ends_that_can_not_book(billing: Billing) -> None:
    reservation = billing.reserve(billing.payer(), 100)
    billing.use(reservation, 40)
    with pytest.raises(errors.IdempotencyConflict):
        billing.use(reservation, 41)
    billing.settle()
    ledger = billing.runtime.ledger
    (dead_letter,) = ledger.dead_letters()
    attempted = retry.attempt(
        dead_letter.id, actor="worker", commands=billing.runtime.commands, settings=billing.settings
    )
    broken = retry.broke(dead_letter.id, "a bug", actor="worker", settings=billing.settings)
    effects = [flow.send(billing.runtime.perform(flow.send(None))) for flow in (attempted, broken)]  # next they mark
    ledger.mark_dead_letter(dead_letter.id, DeadLetterState.DISCARDED, actor="ann", comment="by hand")
    for flow, effect, end in zip((attempted, broken), effects, (errors.BillingError, StopIteration), strict=True):
        with pytest.raises(end):
            flow.send(billing.runtime.perform(effect))
    assert ledger.get_dead_letter(dead_letter.id).state == "discarded"  # type: ignore[union-attr]


def test_a_refund_delivered_again_after_a_late_consume_gives_nothing_more(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 100)
    wanted = RefundRequest(user_id=payer[0], request_id=reservation.request_id, reason="client gone")

    def deliver() -> None:
        billing.runtime.run(refund.refund(wanted, commands=billing.runtime.commands))
        billing.settle()

    deliver()
    billing.use(reservation, 80)
    billing.settle()
    deliver()
    assert billing.accounts.user(payer[0]).quota == 920
    billing.bk.refund_charge(user_id=payer[0], request_id=reservation.request_id, refund_id="a person's decision")
    billing.settle()
    assert billing.accounts.user(payer[0]).quota == 1000


def test_an_event_that_names_another_users_token_touches_no_account_of_that_user(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=2)
    payer, other = billing.payer(), billing.payer()
    assert payer[0] % 2 != other[0] % 2
    billing.reserve(other, 10)
    key = billing.token_key(other)
    before = billing.redis("HGETALL", key)
    billing.bk.consume(
        ConsumeLog(user_id=payer[0], token_id=other[1], channel_id=CHANNEL, quota=5, request_id=new_request_id())
    )
    assert billing.settle().dead_lettered == 1
    assert billing.redis("HGETALL", key) == before
    assert billing.runtime.ledger.dead_letters()[0].reason == PostOutcome.UNKNOWN_TOKEN
