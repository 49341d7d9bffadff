"""Requests at prices of today: from the answer of an upstream to the entry that explains the charge."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import psycopg
import pytest

from billing_tasks import AsyncBookkeeper, Bookkeeper
from billing_tasks.admin import Admin
from billing_tasks.errors import InvalidRequest, ReservationClosed
from billing_tasks.pricing import UnknownModel, Usage
from tests.conftest import CHANNEL, Billing, MakeBilling, Payer

CHAT = {  # of OpenAI's documentation, with what a gpt-5 answer adds
    "id": "chatcmpl-1",
    "model": "gpt-5-2025-08-07",
    "usage": {
        "prompt_tokens": 2006,
        "completion_tokens": 300,
        "total_tokens": 2306,
        "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 256, "audio_tokens": 0},
    },
}


@pytest.fixture
def listed(make_billing: MakeBilling) -> Billing:
    """With what a new installation has: list prices, and no price for what is not listed."""
    return make_billing(catalogue="list", unknown_model="refuse", prices_every_seconds=0.2)


def charge(billing: Billing, payer: Payer, model: str = "gpt-5", **more: Any) -> Any:
    asked = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "model": model}
    return billing.bk.charge(**{**asked, "prompt_tokens": 2006, "max_tokens": 512, **more})


def explained(billing: Billing, request_id: str) -> Any:
    billing.settle()
    return Admin(billing.runtime).explain(request_id)


@pytest.mark.parametrize(
    ("model", "usd_in", "usd_out"),
    [
        ("gpt-5", "1.25", "10"),
        ("claude-sonnet-4-5", "3", "15"),
        ("claude-sonnet-4-5-20250929", "3", "15"),
        ("gemini-2.5-flash", "0.3", "2.5"),
        ("grok-4", "3", "15"),
        ("mistral-large-2411", "2", "6"),
    ],
)
def test_a_newcomers_first_request_costs_the_list_price(listed: Billing, model: str, usd_in: str, usd_out: str) -> None:
    payer = listed.payer()
    with charge(listed, payer, model) as block:
        block.usage(prompt_tokens=1000, completion_tokens=200)
    exact = (1000 * Fraction(usd_in) + 200 * Fraction(usd_out)) / 2
    assert block.receipt.quota == -(-exact.numerator // exact.denominator)
    found = explained(listed, block.request_id)
    assert found.agrees
    assert found.source.startswith("list price (")
    assert found.price_version is not None


def test_a_price_by_the_hour_is_that_of_the_moment_at_which_the_request_began(listed: Billing) -> None:
    quotas = {}
    for at in ("2026-11-27T12:00:00Z", "2026-11-27T18:00:00Z"):
        with charge(listed, listed.payer(), "deepseek-chat", facts={"at": at}) as block:
            block.usage(prompt_tokens=1000, completion_tokens=200)
        quotas[at] = block.receipt.quota
        assert explained(listed, block.request_id).agrees
    assert list(quotas.values()) == [245, 123]  # (1000 * 0.27 + 200 * 1.1) / 2, and half of it at night
    with charge(listed, listed.payer(), "deepseek-chat") as block:
        block.usage(prompt_tokens=1000, completion_tokens=200)
    assert block.receipt.quota in quotas.values()
    assert explained(listed, block.request_id).agrees


def test_an_answer_is_billed_meter_by_meter_and_its_entry_says_so(listed: Billing) -> None:
    payer = listed.payer()
    with charge(listed, payer) as block:
        block.usage(CHAT)
    listed.settle()
    [entry] = [one for one in Admin(listed.runtime).entries.of_request(block.request_id) if one.kind == "consume"]
    assert (entry.prompt_tokens, entry.completion_tokens) == (2006, 300)
    assert entry.meters == {"cache_read_tokens": 1920, "output_reasoning_tokens": 256}
    assert entry.quota == block.receipt.quota == 1674
    found = explained(listed, block.request_id)
    counts = {line.meter: line.count for line in found.lines}
    assert counts == {"input_tokens": "86", "output_tokens": "300", "cache_read_tokens": "1,920"}
    # (86 * 1.25 + 1920 * 0.125 + 300 * 10) / 2
    assert (found.total, found.computed, found.agrees) == ("1,673.75", 1674, True)


def test_the_events_of_a_stream_replace_each_other(listed: Billing) -> None:
    payer = listed.payer()
    events: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {"usage": {"input_tokens": 100, "cache_read_input_tokens": 1000, "output_tokens": 1}},
        },
        {"type": "content_block_delta", "delta": {"text": "a"}},
        {"type": "message_delta", "usage": {"output_tokens": 50}},
        {"type": "message_delta", "usage": {"output_tokens": 90}},
    ]
    with charge(listed, payer, "claude-sonnet-4-5") as block:
        for event in events:
            block.usage(event)
    # (100 * 3 + 1000 * 0.3 + 90 * 15) / 2
    assert block.receipt.quota == 975
    assert explained(listed, block.request_id).agrees


def test_a_model_without_a_price_is_refused_before_anything_is_held(listed: Billing) -> None:
    payer = listed.payer()
    with (
        pytest.raises(UnknownModel, match=r"no price of 'gpt-5-turbo-x'.*nearest"),
        charge(listed, payer, "gpt-5-turbo-x"),
    ):
        pass
    assert listed.available(payer[0]) == 1_000_000


@pytest.mark.parametrize(("policy", "charged"), [("last", 1674), ("estimate", None)])
def test_what_can_not_be_read_is_charged_by_the_last_good_word_or_as_held_and_kept(
    make_billing: MakeBilling, policy: str, charged: int | None
) -> None:
    billing = make_billing(catalogue="list", unknown_model="refuse", unreadable_usage=policy)
    payer = billing.payer()
    with charge(billing, payer) as block:
        block.usage(CHAT)
        block.usage({"usage": {"prompt_tokens": -5, "completion_tokens": 300, "total_tokens": 295}})
    assert block.receipt.quota == (charged or block.reservation.held_quota)
    billing.settle()
    [letter] = Admin(billing.runtime).dead_letters.find().rows
    assert (letter.kind, letter.reason, letter.request_id) == ("usage", "unreadable_usage", block.request_id)
    assert "prompt_tokens must be an integer from 0" in letter.error
    assert b'"prompt_tokens":-5' in letter.payload
    assert explained(billing, block.request_id).note != ""


def test_nothing_readable_at_all_is_charged_as_held_and_never_free(listed: Billing) -> None:
    payer = listed.payer()
    with charge(listed, payer) as block:
        block.usage({"usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 77}})
    assert block.receipt.quota == block.reservation.held_quota > 0
    listed.settle()
    assert [letter.reason for letter in Admin(listed.runtime).dead_letters.find().rows] == ["unreadable_usage"]


def test_the_tier_that_was_served_is_charged_not_the_one_that_was_asked_for(listed: Billing) -> None:
    payer = listed.payer()
    quotas = {}
    for tier in ("default", "flex", "priority"):
        with charge(listed, payer) as block:
            block.usage({**CHAT, "service_tier": tier})
        quotas[tier] = block.receipt.quota
        found = explained(listed, block.request_id)
        assert found.agrees
        assert found.facts == {"service_tier": tier}
    assert quotas["flex"] < quotas["default"] < quotas["priority"]


def test_a_fallback_is_priced_as_the_model_that_was_served_by_the_same_list(listed: Billing) -> None:
    payer = listed.payer()
    with charge(listed, payer) as block:
        block.usage(prompt_tokens=1000, completion_tokens=200, facts={"model": "gpt-5-mini"})
    assert block.receipt.quota == 325  # (1000 * 0.25 + 200 * 2) / 2
    found = explained(listed, block.request_id)
    assert (found.model, found.agrees) == ("gpt-5-mini", True)


def test_a_fallback_without_a_price_is_charged_like_what_was_asked_for_and_told(listed: Billing) -> None:
    payer = listed.payer()
    with charge(listed, payer) as block:
        block.usage(CHAT, facts={"model": "a-model-of-nobody"})
    assert block.receipt.quota == 1674
    listed.settle()
    assert [letter.reason for letter in Admin(listed.runtime).dead_letters.find().rows] == ["unreadable_usage"]


def test_counts_that_no_usage_object_has_are_billed(listed: Billing) -> None:
    payer = listed.payer()
    with charge(listed, payer, also={"web_searches": 2}) as block:
        block.usage(CHAT, also={"web_searches": 2})
    assert block.receipt.quota == 1674 + 2 * 5000
    assert block.reservation.held_quota >= block.receipt.quota


def test_a_usage_may_be_handed_over_whole(listed: Billing) -> None:
    payer = listed.payer()
    with charge(listed, payer) as block:
        block.usage(Usage.from_openai(CHAT))
    assert block.receipt.quota == 1674


def test_an_asyncio_gateway_charges_the_same(listed: Billing) -> None:
    payer = listed.payer()

    async def run() -> int:
        async with AsyncBookkeeper(listed.runtime) as bk:
            asked = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL}
            async with bk.charge(**asked, model="gpt-5", prompt_tokens=2006, max_tokens=512) as block:
                block.usage(CHAT)
            assert block.receipt is not None
            return block.receipt.quota

    assert asyncio.run(run()) == 1674


def until(billing: Billing, true: Callable[[], bool]) -> float:
    """How long it takes until it is so, in seconds; the limit is that of the promise, and some for a busy machine."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < 10
        time.sleep(0.02)
    return time.monotonic() - began


def test_a_price_that_is_set_counts_for_new_requests_and_not_for_those_under_way(listed: Billing) -> None:
    payer, admin = listed.payer(), Admin(listed.runtime)
    before = listed.bk.price(model="gpt-5")
    with charge(listed, payer) as under_way:
        done = admin.prices.set("model", "gpt-5", {"prices": {"input_tokens": "2", "output_tokens": "20"}}, actor="ann")
        assert done.made
        until(listed, lambda: listed.bk.price(model="gpt-5") != before)
        under_way.usage(CHAT)
    assert under_way.receipt.quota == 1674
    with charge(listed, payer) as after:
        after.usage(prompt_tokens=1000, completion_tokens=100)
    assert after.receipt.quota == 2000
    first, second = (explained(listed, block.request_id) for block in (under_way, after))
    assert first.agrees
    assert second.agrees
    assert second.source == "your own sheet"
    assert first.price_version != second.price_version
    assert not admin.prices.set(
        "model", "gpt-5", {"prices": {"output_tokens": "20", "input_tokens": "2"}}, actor="bob"
    ).made
    [difference] = admin.prices.diff(first.price_version)
    assert difference.name == "gpt-5"
    admin.prices.take_back("model", "gpt-5", actor="ann")
    until(listed, lambda: listed.bk.price(model="gpt-5") == before)
    assert admin.prices.history(name="gpt-5")[0].body is None


def test_another_process_consumes_at_the_price_that_was_fixed(listed: Billing, tmp_path: Path) -> None:
    payer = listed.payer()
    price = listed.bk.price(model="gpt-5", group="default")
    held = listed.bk.pre_consume_quota(10_000, user_id=payer[0], token_id=payer[1], price=price)
    program = tmp_path / "worker.py"
    program.write_text(
        "import json, sys\n"
        "from billing_tasks import Bookkeeper\n"
        "from billing_tasks.pricing import Usage\n"
        "with Bookkeeper.from_settings() as bk:\n"
        "    bk.price_book.set_overrides(model={'gpt-5': 1000})\n"
        "    found = bk.find_reservation(user_id=int(sys.argv[1]), request_id=sys.argv[2])\n"
        "    log = found.log(channel_id=3, used=Usage.from_response(json.loads(sys.argv[3])))\n"
        "    print(bk.consume(log).quota)\n"
    )
    answered = subprocess.run(
        [sys.executable, str(program), str(payer[0]), held.request_id, json.dumps(CHAT)],
        env={**os.environ, **listed.environment, "BILLING_CATALOGUE": "list", "BILLING_UNKNOWN_MODEL": "refuse"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answered.stdout.strip() == "1674"
    assert explained(listed, held.request_id).agrees
    with pytest.raises(ReservationClosed):
        listed.bk.find_reservation(user_id=payer[0], request_id=held.request_id)


def test_a_hold_that_grows_keeps_its_price(listed: Billing) -> None:
    payer = listed.payer()
    price = listed.bk.price(model="gpt-5")
    held = listed.bk.pre_consume_quota(100, user_id=payer[0], token_id=payer[1], price=price, client_key="mine 1")
    listed.bk.extend(held, quota=500)
    found = listed.bk.find_reservation(user_id=payer[0], request_id=held.request_id)
    assert (found.price, found.held_quota, found.client_key) == (price, 500, "mine 1")
    listed.bk.refund_quota(found)


def test_a_gateway_that_starts_while_postgresql_is_away_has_the_prices_that_were_set(
    make_billing: MakeBilling,
) -> None:
    billing = make_billing(catalogue="list", unknown_model="refuse")
    Admin(billing.runtime).prices.set("group", "vip", "0.5", actor="ann")
    assert billing.bk.price(model="gpt-5", group="vip").group_ratio == Fraction(1, 2)  # it reads, and tells Redis
    cut_off = billing.settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    with Bookkeeper.from_settings(cut_off) as bk:
        assert bk.price(model="gpt-5", group="vip").group_ratio == Fraction(1, 2)


def test_a_list_that_can_not_be_stored_goes_along_with_the_charge(make_billing: MakeBilling) -> None:
    billing = make_billing(catalogue="list", unknown_model="refuse")
    payer = billing.payer()
    billing.reserve(payer, 1)  # the account is cached from here on
    cut_off = billing.settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    with Bookkeeper.from_settings(cut_off) as bk:
        asked = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL}
        with bk.charge(**asked, model="gpt-5", prompt_tokens=2006, max_tokens=512) as block:
            block.usage(CHAT)
        assert block.receipt is not None
        assert block.receipt.quota == 1674
    found = explained(billing, block.request_id)
    assert (found.agrees, found.price_version) == (True, None)


def test_a_usage_without_a_price_is_told_to_the_caller_of_log(listed: Billing) -> None:
    payer = listed.payer()
    held = listed.bk.pre_consume_quota(
        10, user_id=payer[0], token_id=payer[1], price=listed.bk.price(model="text-embedding-3-small")
    )
    with pytest.raises(InvalidRequest, match="no price for that"):
        held.log(channel_id=CHANNEL, prompt_tokens=5, completion_tokens=5)
    listed.bk.refund_quota(held)


def test_lists_in_use_are_stored_again_when_postgresql_came_back_without_them(listed: Billing) -> None:
    payer = listed.payer()
    with charge(listed, payer) as block:
        block.usage(CHAT)
    version = block.price.version
    assert version is not None
    lists = "select count(*) from billing.price_lists where version = %s"
    assert listed.sql(lists, version) == [(1,)]
    # As a restore to an earlier time leaves it; the server's run is another one after that.
    with psycopg.connect(listed.settings.database_url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("truncate billing.price_lists, billing.price_parts")
    listed.bk._prices._server = "another run"
    until(listed, lambda: listed.sql(lists, version) == [(1,)])
    assert explained(listed, block.request_id).agrees


def test_the_region_that_was_served_has_its_factor(make_billing: MakeBilling, tmp_path: Path) -> None:
    file = tmp_path / "ratios.toml"
    file.write_text('[[factor]]\nname = "eu"\nby = "1.1"\nfamilies = ["tokens"]\nwhen = { region = "eu" }\n')
    billing = make_billing(catalogue="list", unknown_model="refuse", ratios_file=file)
    with charge(billing, billing.payer()) as block:
        block.usage(CHAT, facts={"region": "eu"})
    assert block.receipt.quota == 1842  # 1,673.75 * 1.1
    found = explained(billing, block.request_id)
    assert found.agrees
    assert found.lines[0].factors == ("eu 1.1",)


def test_what_is_no_answer_at_all_is_noted_and_not_passed_over(listed: Billing) -> None:
    with charge(listed, listed.payer()) as block:
        block.usage("the usage")
    assert block.receipt.quota == block.reservation.held_quota
    listed.settle()
    assert [letter.reason for letter in Admin(listed.runtime).dead_letters.find().rows] == ["unreadable_usage"]


def test_a_batch_of_anthropics_has_the_batch_price(listed: Billing) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 100, "service_tier": "batch"}
    with charge(listed, listed.payer(), "claude-sonnet-4-5") as block:
        block.usage({"type": "message", "usage": usage})
    assert block.receipt.quota == 1125  # (1000 * 1.5 + 100 * 7.5) / 2
