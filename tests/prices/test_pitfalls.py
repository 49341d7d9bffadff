"""What other gateways got wrong in public, one test each."""

from __future__ import annotations

from typing import Any

import pytest

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing import MeterPrice, PriceList, Sheet, Stream, Usage, from_response, read_usage
from billing_tasks.pricing.check import doubts
from billing_tasks.pricing.tables import parse_tables
from tests.conftest import Billing

CLAUDE = {
    "input_tokens": "2",
    "cache_read_tokens": "0.2",
    "cache_write_tokens": "2.5",
    "cache_write_1h_tokens": "4",
    "output_tokens": "10",
    "web_searches": "10",
}


def cost(prices: dict[str, str], usage: Usage, facts: dict[str, str] | None = None, **more: Any) -> int:
    return MeterPrice(Sheet.read({"prices": prices, **more})).quota(usage, facts or {})


def test_cached_tokens_are_billed_once() -> None:
    """litellm#9812, #14849, #40006; new-api#7229"""
    inside = read_usage(
        {"prompt_tokens": 10_000, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 9_000}},
        style="openai-chat",
    )
    beside = read_usage(
        {"input_tokens": 1_000, "cache_read_input_tokens": 9_000, "output_tokens": 0}, style="anthropic"
    )
    assert cost(CLAUDE, inside) == cost(CLAUDE, beside) == 1_000 + 900


def test_more_cached_than_prompt_is_no_negative_input() -> None:
    """new-api#5003, #3259"""
    with pytest.raises(InvalidRequest, match="contradicts itself"):
        read_usage({"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}, style="openai-chat")


def test_cumulative_events_of_a_stream_are_not_summed() -> None:
    """ai-gateway#2236, langchainjs#10249"""
    stream = Stream("anthropic")
    stream.add({"message": {"usage": {"input_tokens": 100, "output_tokens": 1}}})
    for tokens in (10, 20, 30):
        stream.add({"usage": {"output_tokens": tokens}})
    assert stream.usage is not None
    assert cost(CLAUDE, stream.usage) == 100 + 30 * 5


def test_writes_for_an_hour_have_their_own_price_and_count_once() -> None:
    split = {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 700}
    raw = {"input_tokens": 0, "cache_creation_input_tokens": 1000, "cache_creation": split, "output_tokens": 0}
    assert cost(CLAUDE, read_usage(raw, style="anthropic")) == 300 * 1.25 + 700 * 2


def test_a_tier_goes_by_the_whole_prompt_and_prices_cached_tokens_too() -> None:
    """litellm#16377"""
    above = [{"tokens": 200_000, "prices": {"input_tokens": "4", "cache_read_tokens": "0.4"}}]
    usage = Usage.of({"input_tokens": 200_001, "cache_read_tokens": 200_000})
    assert cost(CLAUDE, usage, above=above) == 2 + 200_000 * 0.2


def test_a_batch_has_tiers_too() -> None:
    """litellm#39861"""
    batch = {"when": {"processing": "batch"}, "prices": {"input_tokens": "1"}}
    batch["above"] = [{"tokens": 1000, "prices": {"input_tokens": "3"}}]
    sheet: dict[str, Any] = {"variants": [batch], "above": [{"tokens": 1000, "prices": {"input_tokens": "6"}}]}
    long = Usage.of({"input_tokens": 1002})
    assert cost(CLAUDE, long, {"processing": "batch"}, **sheet) == 1503
    assert cost(CLAUDE, long, **sheet) == 3006


def test_the_tier_that_was_served_has_the_price() -> None:
    """litellm#31837"""
    variants = [{"when": {"service_tier": "flex"}, "prices": {"input_tokens": "1"}}]
    usage = Usage.of({"input_tokens": 1000})
    assert cost(CLAUDE, usage, {"service_tier": "default"}, variants=variants) == 1000
    assert cost(CLAUDE, usage, {"service_tier": "flex"}, variants=variants) == 500


def test_thoughts_and_what_tools_read_are_not_lost() -> None:
    """sub2api#5771, new-api#2935"""
    raw = {"promptTokenCount": 10, "toolUsePromptTokenCount": 90, "candidatesTokenCount": 5, "thoughtsTokenCount": 15}
    assert cost(CLAUDE, from_response({"usageMetadata": raw}, provider="gemini")) == 100 + 20 * 5


def test_images_out_have_the_price_of_images() -> None:
    """litellm#31142"""
    answer = {"data": [{}], "usage": {"input_tokens": 10, "output_tokens": 100}}
    prices = {"input_tokens": "2", "output_tokens": "10", "output_image_tokens": "40"}
    assert cost(prices, from_response(answer, provider="openai")) == 10 + 100 * 20


def test_a_search_that_was_offered_and_not_made_costs_nothing() -> None:
    """litellm#10384"""
    answer = {
        "tools": [{"type": "web_search"}],
        "output": [{"type": "message"}],
        "usage": {"input_tokens": 10, "output_tokens": 0},
    }
    assert cost(CLAUDE, from_response(answer, provider="openai")) == 10


def test_a_search_that_was_made_costs_something() -> None:
    """litellm#31316"""
    answer = {"output": [{"type": "web_search_call"}], "usage": {"input_tokens": 10, "output_tokens": 0}}
    assert cost(CLAUDE, from_response(answer, provider="openai")) == 10 + 5000


def test_without_a_price_of_its_own_a_cached_token_is_a_token() -> None:
    """litellm#26806 took it for free."""
    usage = Usage.of({"input_tokens": 100, "cache_read_tokens": 90})
    assert cost({"input_tokens": "2"}, usage) == 100


def test_a_price_of_0_is_a_price() -> None:
    """litellm#38815 took it for a missing one."""
    usage = Usage.of({"input_tokens": 100, "cache_read_tokens": 90})
    assert cost({"input_tokens": "2", "cache_read_tokens": "0"}, usage) == 10


def test_an_explicit_zero_is_zero() -> None:
    """litellm#37992 charged an estimate."""
    usage = read_usage({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, style="openai-chat")
    assert cost(CLAUDE, usage) == 0


def test_a_negative_price_mints_no_credit() -> None:
    """LibreChat#2359"""
    with pytest.raises(InvalidRequest, match="'-1' is negative"):
        Sheet.read({"prices": {"input_tokens": "-1"}})


@pytest.mark.parametrize(("at", "quota"), [("2026-11-27T02:00:00Z", 200), ("2026-11-28T02:00:00Z", 100)])
def test_a_weekend_has_no_peak(at: str, quota: int) -> None:
    """genai-prices#582"""
    peak = {"when": {"weekdays": [1, 2, 3, 4, 5], "utc": ["01:00-04:00"]}, "prices": {"input_tokens": "4"}}
    assert cost(CLAUDE, Usage.of({"input_tokens": 100}), {"at": at}, variants=[peak]) == quota


def test_a_window_that_ends_where_it_begins_is_the_whole_day() -> None:
    """litellm#31725: it matched nothing."""
    always = {"when": {"utc": ["00:00-00:00"]}, "prices": {"input_tokens": "1"}}
    usage = Usage.of({"input_tokens": 100})
    assert cost(CLAUDE, usage, {"at": "2026-11-27T13:00:00Z"}, variants=[always]) == 50


def test_an_hour_price_that_was_copied_from_another_model_is_found() -> None:
    """litellm#38056: one model's 1h price, 12 times over"""
    text = "[prices.dear]\ninput_tokens = 15\noutput_tokens = 75\ncache_write_1h_tokens = 30\n"
    text += "[prices.cheap]\ninput_tokens = 1\noutput_tokens = 5\ncache_write_1h_tokens = 30\n"
    found = list(doubts(PriceList(file=parse_tables(text, source="test"))))
    assert [(doubt.name, doubt.what) for doubt in found] == [
        ("cheap", "Tokens written for an hour cost 30 times its input, as those of dear: copied?")
    ]


def test_after_a_retry_the_group_that_was_used_pays(billing: Billing) -> None:
    """new-api#6480: the ratio was that of the group of the first try"""
    payer = billing.payer()
    bk = billing.bk
    bk.price_book.set_overrides(group={"dear": 2, "cheap": 1}, model={"m": 1})
    price = bk.price(model="m", group="dear")
    held = bk.pre_consume_quota(price.estimate(100, 10), user_id=payer[0], token_id=payer[1], price=price)
    log = held.log(channel_id=1, prompt_tokens=100, facts={"group": "cheap"})
    assert (log.group, log.group_ratio, log.quota) == ("cheap", "1", 100)
    bk.consume(log)
    billing.settle()


def test_user_and_token_pay_the_same(billing: Billing) -> None:
    """sub2api#5229: balance and key were rounded in opposite directions"""
    payer = billing.payer()
    billing.bk.price_book.set_overrides(model={"m": "1/3"})
    price = billing.bk.price(model="m")
    held = billing.bk.pre_consume_quota(price.estimate(1), user_id=payer[0], token_id=payer[1], price=price)
    billing.bk.consume(held.log(channel_id=1, prompt_tokens=1))
    billing.settle()
    user, token = billing.accounts.user(payer[0]), billing.accounts.token(payer[1])
    assert (user.quota, token.remain_quota) == (999_999, 999_999)
    assert (user.used_quota, token.used_quota) == (1, 1)
