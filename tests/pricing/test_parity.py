"""Our ratios are the reference's: one-api (commit 8df4a26), whose answers `tests/data` holds.

The floats in the fixture check our exact ratios; they are not where those come from.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest

from billing_tasks.pricing import Ratios, load_defaults

REFERENCE: dict[str, list[float]] = json.loads(
    (Path(__file__).parent.parent / "data" / "one_api_ratios.json").read_text(encoding="utf-8")
)["models"]

# The only difference we want: the reference's -500000 would hand out quota.
NEGATIVE_IN_THE_REFERENCE = {"openrouter/auto"}

# The reference's rules for names in no table, as (name, completion ratio).
FAMILY_CASES = [
    ("gpt-3.5-turbo", 3),
    ("gpt-3.5-next-0125", 3),
    ("gpt-3.5-next-1106", 2),
    ("gpt-3.5-next", 4 / 3),
    ("gpt-4o-2024-05-13", 3),
    ("gpt-4o-next", 4),
    ("gpt-4o-audio-preview", 4),
    ("gpt-4-turbo-next", 3),
    ("gpt-4-next-preview", 3),
    ("gpt-4-next", 2),
    ("gpt-4.5", 2),
    ("o1-next", 4),
    ("chatgpt-4o-latest", 3),
    ("chatgpt-4o-next", 1),
    ("claude-3-next", 5),
    ("claude-next", 3),
    ("claude", 1),
    ("mistral-next", 3),
    ("gemini-next", 3),
    ("deepseek-next", 2),
    ("deepseek-chat", 0.28 / 0.14),
    ("deepseek-reasoner", 2.19 / 0.55),
    ("whisper-1", 0),
    ("llama2-70b-4096", 0.8 / 0.64),
    ("llama3-8b-8192", 2),
    ("llama3-70b-8192", 0.79 / 0.59),
    ("llama3-8b-8192(33)", 2),
    ("llama3-70b-8192(33)", 0.0035 / 0.00265),
    ("command", 2),
    ("command-light", 2),
    ("command-nightly", 2),
    ("command-light-nightly", 2),
    ("command-r", 3),
    ("command-r-plus", 5),
    ("command-next", 1),
    ("grok-beta", 3),
    ("grok-next", 1),
    ("ibm-granite/granite-3.0-2b-instruct", 8.333333333333334),
    ("ibm-granite/granite-20b-code-instruct-8k", 5),
    ("ibm-granite/granite-3.0-8b-instruct", 5),
    ("ibm-granite/granite-8b-code-instruct-128k", 5),
    ("meta/llama-2-7b", 5),
    ("meta/llama-2-7b-chat", 5),
    ("meta/llama-2-13b", 5),
    ("meta/llama-2-13b-chat", 5),
    ("meta/meta-llama-3-8b", 5),
    ("meta/meta-llama-3-8b-instruct", 5),
    ("meta/llama-2-70b", 2.75 / 0.65),
    ("meta/llama-2-70b-chat", 2.75 / 0.65),
    ("meta/meta-llama-3-70b", 2.75 / 0.65),
    ("meta/meta-llama-3-70b-instruct", 2.75 / 0.65),
    ("meta/meta-llama-3.1-405b-instruct", 1),
    ("mistralai/mistral-7b-instruct-v0.2", 5),
    ("mistralai/mistral-7b-v0.1", 5),
    ("mistralai/mixtral-8x7b-instruct-v0.1", 1 / 0.3),
    ("a-model-of-no-family", 1),
    ("", 1),
]


@pytest.fixture
def ratios() -> Ratios:
    return load_defaults()


def _differs(ours: Fraction, theirs: float) -> bool:
    return not math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-15)


def test_the_fixture_holds_every_name_of_the_reference() -> None:
    assert len(REFERENCE) == 566


def test_every_model_ratio_is_the_references(ratios: Ratios) -> None:
    names = REFERENCE.keys() - NEGATIVE_IN_THE_REFERENCE
    different = [n for n in names if _differs(ratios.model_ratio(n, 0), REFERENCE[n][0])]

    assert different == []


def test_every_completion_ratio_is_the_references(ratios: Ratios) -> None:
    different = [n for n in REFERENCE if _differs(ratios.completion_ratio(n, 0), REFERENCE[n][1])]

    assert different == []


def test_every_name_of_the_reference_is_listed_and_none_falls_to_the_unknown_price(ratios: Ratios) -> None:
    assert ratios.tables.model.keys() == REFERENCE.keys()


def test_the_references_negative_price_is_the_unknown_models_price_here(ratios: Ratios) -> None:
    assert {n for n, (ratio, _) in REFERENCE.items() if ratio < 0} == NEGATIVE_IN_THE_REFERENCE
    assert ratios.model_ratio("openrouter/auto") == 30


@pytest.mark.parametrize(("name", "theirs"), FAMILY_CASES)
def test_completion_ratio_of_a_family_is_the_references(ratios: Ratios, name: str, theirs: float) -> None:
    assert not _differs(ratios.completion_ratio(name), theirs)


@pytest.mark.parametrize("group", ["default", "vip", "svip"])
def test_groups_of_the_reference_pay_the_list_price(ratios: Ratios, group: str) -> None:
    assert ratios.tables.group[group] == 1


def test_long_floats_of_the_reference_are_exact_fractions_here(ratios: Ratios) -> None:
    assert ratios.completion_ratio("meta/meta-llama-3-70b") == Fraction(275, 65)
    assert ratios.completion_ratio("ibm-granite/granite-3.0-2b-instruct") == Fraction(25, 3)
    assert ratios.completion_ratio("deepseek-reasoner") == Fraction(219, 55)
    assert ratios.model_ratio("360GPT_S2_V9") == Fraction(8572, 10_000)
    assert ratios.model_ratio("gemma-7b-it") == Fraction(35, 1_000_000)
