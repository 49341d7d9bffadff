"""The price list: what it says agrees with the worked cases, and how a name leads to a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from billing_tasks.errors import InvalidRequest, UnknownModel
from billing_tasks.pricing.catalogue import RULES, Catalogue
from billing_tasks.pricing.sheet import Sheet
from tests.prices.vectors import cases

REAL = [case for case in cases(Path(__file__).parent / "vectors.jsonl") if case["set"] == "real"]
LIST = Catalogue.shipped()


@pytest.mark.parametrize("case", REAL, ids=lambda case: str(case["id"]))
def test_the_price_of_a_worked_case_is_in_the_list(case: dict[str, Any]) -> None:
    """Those were made of the same list two days before: a price that has begun since may differ."""
    found = LIST.find(case["model"], case["provider"]).sheet
    wanted = Sheet.read({name: case[name] for name in ("prices", "above", "variants", "least") if name in case})
    facts = {"at": "2026-11-25T12:00:00Z", **case.get("facts", {})}
    for prompt in (0, 10**7):
        assert found.choose(facts, prompt) == wanted.choose(facts, prompt)
    assert found.least == wanted.least


def test_every_model_has_prices_and_is_found_by_its_own_name() -> None:
    assert len(LIST) > 2000
    for listed in LIST:
        assert listed.sheet.prices
        found = LIST.find(listed.model, listed.provider)
        assert (found.provider, found.model.lower()) == (listed.provider, listed.model.lower())


@pytest.mark.parametrize(
    ("name", "provider", "model"),
    [
        ("gpt-5", "openai", "gpt-5"),
        ("GPT-5", "openai", "gpt-5"),
        ("openai/gpt-5", "openai", "gpt-5"),
        ("openrouter/openai/gpt-5", "openrouter", "openai/gpt-5"),
        ("gpt-5-2025-08-07", "openai", "gpt-5"),
        ("azure/gpt-5", "openai", "gpt-5"),
        ("claude-sonnet-4-5-20250929", "anthropic", "claude-sonnet-4-5"),
        ("gemini/gemini-2.5-flash", "google", "gemini-2.5-flash"),
        ("us.amazon.nova-lite-v1:0", "aws", "amazon.nova-lite-v1:0"),
        ("bedrock/eu.amazon.nova-lite-v1:0", "aws", "amazon.nova-lite-v1:0"),
        ("vertex_ai/claude-sonnet-4-5@20250929", "google", "claude-sonnet-4-5"),
        ("ft:gpt-4o-mini:acme::abc123", "openai", "ft:gpt-4o-mini"),
        ("deepseek/deepseek-chat", "deepseek", "deepseek-chat"),
        ("meta-llama/llama-3.3-70b-instruct", "huggingface_fireworks-ai", "meta-llama/Llama-3.3-70B-Instruct"),
    ],
)
def test_a_name_leads_to_a_model(name: str, provider: str, model: str) -> None:
    found = LIST.find(name)
    assert (found.provider, found.model) == (provider, model)


def test_a_name_that_nobody_has_is_told_with_those_that_are_near() -> None:
    with pytest.raises(UnknownModel, match="of 'gpt-5-minni'; the nearest names are gpt-5-mini"):
        LIST.find("gpt-5-minni")
    with pytest.raises(UnknownModel, match=r"There is no list price of 'zzzzqqq'\."):
        LIST.find("zzzzqqq")
    with pytest.raises(UnknownModel, match="has no provider 'acme'; it has openai, anthropic"):
        LIST.find("gpt-5", "acme")
    with pytest.raises(InvalidRequest):
        LIST.find("gpt\x00")


@pytest.mark.parametrize(("_", "pattern", "rest"), RULES)
def test_no_rule_takes_a_whole_name(_: str, pattern: Any, rest: str) -> None:
    for listed in LIST:
        assert pattern.sub(rest, listed.model.lower(), count=1)


def test_the_list_is_read_when_it_is_asked_for() -> None:
    program = "import billing_tasks.pricing as p, sys; from billing_tasks.pricing.catalogue import Catalogue as c;"
    program += "print(c.shipped.cache_info().currsize); c.shipped(); print(c.shipped.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
