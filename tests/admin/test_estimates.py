"""Holds of requests that name no maximum: as long as answers of their model are, once that is learned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from billing_tasks.admin import Admin
from billing_tasks.client.bookkeeper import Bookkeeper
from billing_tasks.model.ids import new_request_id
from billing_tasks.worker.tasks import DECLARED
from tests.conftest import CHANNEL, Billing, MakeBilling, Payer


def answers(billing: Billing, payer: Payer, model: str, tokens: list[int]) -> None:
    price = billing.bk.price(model=model)
    for count in tokens:
        held = billing.bk.pre_consume_quota(
            price.estimate(10, 100), user_id=payer[0], token_id=payer[1], price=price, request_id=new_request_id()
        )
        billing.bk.consume(held.log(channel_id=CHANNEL, prompt_tokens=10, completion_tokens=count))
    billing.settle()


def held(bk: Bookkeeper, payer: Payer, model: str) -> int:
    asked = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "model": model, "prompt_tokens": 10}
    with bk.charge(**asked) as block:
        pass
    return block.reservation.held_quota


def test_what_is_learned_is_set_aside_and_shown(make_billing: MakeBilling) -> None:
    billing = make_billing(catalogue="list", learn_estimates=True)
    payer, admin = billing.payer(), Admin(billing.runtime)
    answers(billing, payer, "gpt-5", [*range(100, 200), 5000])
    answers(billing, payer, "gpt-5-mini", [50] * 49)
    price = billing.bk.price(model="gpt-5")
    assert held(billing.bk, payer, "gpt-5") == price.estimate(10, 4096)  # nothing is learned yet

    learn = next(one for one in DECLARED if one.name == "billing.learn_estimates")
    assert learn.options["max_retries"] == 0
    assert admin.prices.learn_estimates() == 1  # 49 requests are too few

    with Bookkeeper.from_settings(billing.settings) as bk:
        assert held(bk, payer, "gpt-5") == price.estimate(10, 199)
        assert held(bk, payer, "gpt-5-mini") == bk.price(model="gpt-5-mini").estimate(10, 4096)
    said = billing.settings.model_copy(update={"max_tokens": {"gpt-5": 7, "*": 9}})
    with Bookkeeper.from_settings(said) as bk:
        assert held(bk, payer, "gpt-5") == price.estimate(10, 7)

    rows = {row.model: row for row in admin.prices.estimates(since=datetime.now(UTC) - timedelta(hours=1))}
    gpt5, mini = rows["gpt-5"], rows["gpt-5-mini"]
    assert (gpt5.requests, gpt5.under, gpt5.learned_tokens, gpt5.learned_from) == (101, 100, 199, 101)
    assert gpt5.not_covered == sum(
        price.quota(10, count) - price.estimate(10, 100) for count in [*range(101, 200), 5000]
    )
    assert (mini.under, mini.learned_tokens) == (0, None)
    assert mini.percent is not None
    assert mini.percent > 100
