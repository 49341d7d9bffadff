"""A wrong price is found: charges are priced anew, and the difference is booked beside each of them, once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing_tasks.admin import Admin
from billing_tasks.admin.reprice import Repriced
from billing_tasks.ledger.corrections import Correction
from billing_tasks.model.refund import RefundRequest
from tests.conftest import CHANNEL, Billing, MakeBilling, Payer

RIGHT = {"prices": {"input_tokens": "1", "output_tokens": "10"}}
WRONG = {"prices": {"input_tokens": "2", "output_tokens": "30"}}
SINCE = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def billing(make_billing: MakeBilling) -> Billing:
    made = make_billing(catalogue="list", unknown_model="refuse")
    Admin(made.runtime).prices.set("model", "ours", WRONG, actor="ann")
    return made


def charged(billing: Billing, payer: Payer, **more: Any) -> str:
    """1,000 prompt and 200 completion tokens: 4,000 quota at the wrong price, 1,500 at the right one."""
    asked = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "model": "ours", "prompt_tokens": 1000}
    with billing.bk.charge(**{**asked, **more}) as block:
        block.usage(prompt_tokens=1000, completion_tokens=200)
    billing.settle()
    return block.request_id


def repriced(billing: Billing, **more: Any) -> dict[str, Repriced]:
    found = Admin(billing.runtime).prices.reprice(**{"since": SINCE, "actor": "ann", "comment": "typo", **more})
    return {one.request_id: one for one in found}


def set_right(billing: Billing) -> None:
    Admin(billing.runtime).prices.set("model", "ours", RIGHT, actor="ann")


def quota_of(billing: Billing, payer: Payer) -> int:
    return Admin(billing.runtime).accounts.user(payer[0]).quota


def test_the_difference_is_booked_once_beside_the_charge(billing: Billing) -> None:
    payer = billing.payer()
    request_id = charged(billing, payer)
    set_right(billing)
    looked = repriced(billing, dry_run=True)[request_id]
    assert (looked.charged, looked.quota, looked.change, looked.outcome) == (4000, 1500, -2500, "would_change")
    assert quota_of(billing, payer) == 1_000_000 - 4000

    assert repriced(billing)[request_id].outcome == "posted"
    assert repriced(billing)[request_id].outcome == "duplicate"

    assert quota_of(billing, payer) == 1_000_000 - 1500 == billing.available(payer[0])
    found = Admin(billing.runtime).explain(request_id)
    assert (found.charged, found.corrected, found.agrees) == (4000, -2500, True)
    kinds = [entry.kind for entry in Admin(billing.runtime).entries.of_request(request_id)]
    assert kinds == ["consume", "correction"]


def test_a_price_that_was_too_low_is_charged_later(billing: Billing) -> None:
    payer = billing.payer()
    set_right(billing)
    billing.bk.price_book.take_changes(billing.runtime.ledger.price_changes())
    request_id = charged(billing, payer)
    Admin(billing.runtime).prices.set("model", "ours", WRONG, actor="ann")
    assert repriced(billing)[request_id].change == 2500
    assert quota_of(billing, payer) == 1_000_000 - 4000


def test_two_lists_correct_from_what_was_corrected_before(billing: Billing) -> None:
    payer = billing.payer()
    request_id = charged(billing, payer)
    set_right(billing)
    repriced(billing)
    Admin(billing.runtime).prices.set(
        "model", "ours", {"prices": {"input_tokens": "1", "output_tokens": "0"}}, actor="a"
    )
    assert repriced(billing)[request_id].change == -1000
    assert quota_of(billing, payer) == 1_000_000 - 500


def test_a_charge_that_was_refunded_whole_gets_no_correction(billing: Billing) -> None:
    payer = billing.payer()
    request_id = charged(billing, payer)
    billing.bk.refund_charge(user_id=payer[0], request_id=request_id, refund_id="all")
    billing.settle()
    set_right(billing)
    assert repriced(billing)[request_id].outcome == "refunded"
    assert quota_of(billing, payer) == 1_000_000


def test_no_more_is_given_back_than_refunds_have_left(billing: Billing) -> None:
    payer = billing.payer()
    request_id = charged(billing, payer)
    billing.bk.refund_charge(user_id=payer[0], request_id=request_id, refund_id="most", quota=3000)
    billing.settle()
    set_right(billing)
    assert repriced(billing)[request_id].change == -1000
    assert quota_of(billing, payer) == 1_000_000


def test_what_is_left_to_refund_knows_corrections(billing: Billing) -> None:
    payer = billing.payer()
    request_id = charged(billing, payer)
    set_right(billing)
    repriced(billing)
    billing.bk.refund_charge(user_id=payer[0], request_id=request_id, refund_id="too much", quota=1501)
    billing.settle()
    [letter] = Admin(billing.runtime).dead_letters.find().rows
    assert letter.reason == "above_charge"
    assert "1,500" in Admin(billing.runtime).dead_letters.preview(letter.id).message
    billing.bk.refund_charge(user_id=payer[0], request_id=request_id, refund_id="all that is left")
    billing.settle()
    assert quota_of(billing, payer) == 1_000_000
    Admin(billing.runtime).dead_letters.discard(letter.id, actor="ann", comment="it was refunded")


def test_an_amount_that_the_gateway_said_is_left_alone(billing: Billing) -> None:
    payer = billing.payer()
    said = billing.reserve(payer, 100)
    billing.use(said, 70, model_name="ours")
    priced = billing.bk.pre_consume_quota(
        100, user_id=payer[0], token_id=payer[1], price=billing.bk.price(model="ours")
    )
    billing.bk.consume(priced.log(channel_id=CHANNEL, prompt_tokens=1000, quota=77))
    billing.settle()
    set_right(billing)
    found = repriced(billing)
    assert found[said.request_id].outcome.startswith("skipped: the gateway said an amount")
    assert found[priced.request_id].outcome.startswith("skipped: the gateway said another amount")
    assert quota_of(billing, payer) == 1_000_000 - 147


def test_factors_of_the_charge_stay_unless_they_were_the_mistake(billing: Billing) -> None:
    payer, admin = billing.payer(), Admin(billing.runtime)
    admin.prices.set("group", "vip", "0.5", actor="ann")
    billing.bk.price_book.take_changes(billing.runtime.ledger.price_changes())
    request_id = charged(billing, payer, group="vip")
    admin.prices.set("group", "vip", "0.8", actor="ann")
    set_right(billing)
    assert repriced(billing, dry_run=True)[request_id].quota == 750
    assert repriced(billing, dry_run=True, with_factors=True)[request_id].quota == 1200


def test_only_charges_of_the_time_the_model_and_the_user_are_priced_anew(billing: Billing) -> None:
    one, other = billing.payer(), billing.payer()
    mine = charged(billing, one)
    charged(billing, other)
    set_right(billing)
    assert set(repriced(billing, dry_run=True, user_id=one[0])) == {mine}
    assert repriced(billing, dry_run=True, models=["another"]) == {}
    assert repriced(billing, dry_run=True, since=datetime.now(UTC) + timedelta(hours=1)) == {}


def test_refunds_and_corrections_of_one_charge_at_once_give_back_what_there_is_and_no_more(billing: Billing) -> None:
    payer = billing.payer()
    request_id = charged(billing, payer)  # 4,000; the right price is 1,500
    set_right(billing)
    ledger, shard = billing.runtime.ledger, billing.runtime.commands.keys.shard_of(payer[0])
    version = Admin(billing.runtime).prices.current().version
    outcomes: list[str] = []

    def refund(number: int) -> None:
        wanted = RefundRequest(payer[0], request_id, quota=500, refund_id=f"part {number}")
        outcomes.append(str(ledger.post_refund(shard, wanted.event).outcomes[0]))

    def correct(number: int) -> None:
        asked = Correction(request_id, payer[0], 1500 + number, version + number, "ann", "at once")
        outcomes.append(str(ledger.correct_charges(shard, [asked]).outcomes[0][0]))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: (refund if number % 2 else correct)(number), range(16)))
    entries = Admin(billing.runtime).entries.of_request(request_id)
    left = sum(entry.used_quota for entry in entries)
    assert left >= 0
    assert quota_of(billing, payer) == 1_000_000 - left
    refunded = sum(entry.quota for entry in entries if entry.kind == "refund")
    assert refunded <= 4000
    assert outcomes.count("posted") >= 2
