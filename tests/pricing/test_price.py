"""A price turns tokens into quota exactly, refuses nonsense, and survives the journey as text."""

from __future__ import annotations

import copy
import math
import pickle
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing import MAX_QUOTA, MAX_TOKENS, Price, load_defaults, parse_ratio


def price(model_ratio: str = "1", completion_ratio: str = "1", group_ratio: str = "1", model: str = "m") -> Price:
    return Price.from_strings(
        model=model,
        group="default",
        model_ratio=model_ratio,
        completion_ratio=completion_ratio,
        group_ratio=group_ratio,
    )


def oracle(p: Price, prompt: int, completion: int) -> int:
    """The formula once more, in plain Fraction arithmetic."""
    if prompt + completion == 0:
        return 0
    ratio = p.model_ratio * p.group_ratio
    exact = (Fraction(prompt) + Fraction(completion) * p.completion_ratio) * ratio
    quota = math.ceil(exact)
    return 1 if ratio != 0 and quota <= 0 else quota


def test_a_hundred_thousand_random_usages_cost_what_the_oracle_says() -> None:
    rng = random.Random(8)
    ratios = load_defaults()
    names = sorted(ratios.tables.model)
    groups = ["1", "0.9", "4/5", "2/3", "0", "1.0000001"]
    prices = [
        Price("m", "g", ratios.model_ratio(n), ratios.completion_ratio(n), parse_ratio(rng.choice(groups)))
        for n in names
    ]
    prices.append(price("325", "2.75/0.65"))

    differences = 0
    for _ in range(100_000):
        p = rng.choice(prices)
        prompt, completion = rng.randrange(2 ** rng.randrange(1, 24)), rng.randrange(2 ** rng.randrange(1, 20))
        differences += p.quota(prompt, completion) != oracle(p, prompt, completion)

    assert differences == 0


def test_ratio_275_over_65_is_not_charged_one_too_much_as_floats_do() -> None:
    p = price("0.65", "2.75/0.65")
    wrong_in_floats = [c for c in range(1, 5000) if math.ceil(c * (2.75 / 0.65) * 0.65) != math.ceil(c * 2.75)]

    assert wrong_in_floats
    assert p.quota(0, 100) == 275
    assert [p.quota(0, c) for c in wrong_in_floats] == [math.ceil(Fraction(c * 275, 100)) for c in wrong_in_floats]


def test_quota_of_a_gpt_4o_request() -> None:
    # (374 + 44 * 4) * 2.5
    assert load_defaults().price(group="default", model="gpt-4o").quota(374, 44) == 1375


def test_a_fraction_of_a_quota_is_charged_as_a_whole() -> None:
    assert price("0.075").quota(1, 0) == 1
    assert price("0.075").quota(14, 0) == 2


def test_no_tokens_cost_nothing() -> None:
    assert price("30").quota(0, 0) == 0


def test_a_priced_request_that_comes_to_nothing_costs_one() -> None:
    assert price("15", completion_ratio="0").quota(0, 99) == 1


@pytest.mark.parametrize("free", [{"model_ratio": "0"}, {"group_ratio": "0"}])
def test_a_free_price_costs_nothing_and_holds_nothing(free: dict[str, str]) -> None:
    p = price(**free)

    assert p.free
    assert (p.quota(10**6, 10**6), p.estimate(10**6, 10**6), p.estimate_like_reference(10**6)) == (0, 0, 0)


def test_the_estimate_includes_the_completion_ratio_and_is_rounded_up() -> None:
    assert price("0.075", "4").estimate(1, 10) == math.ceil(Fraction("0.075") * 41)


@pytest.mark.parametrize("max_tokens", [None, 0])
def test_the_estimate_without_a_maximum_expects_500_tokens(max_tokens: int | None) -> None:
    assert price("2", "3").estimate(100, max_tokens) == (100 + 500 * 3) * 2


def test_the_estimate_of_a_priced_request_is_never_below_one() -> None:
    assert price("0.000025", completion_ratio="0").estimate(0) == 1


def test_the_references_estimate_forgets_the_completion_ratio_and_cuts_off() -> None:
    p = price("0.075", "4")

    assert p.estimate_like_reference(1, 10) == int(Fraction("0.075") * 511)
    assert p.estimate_like_reference(1) == int(Fraction("0.075") * 501)


@settings(deadline=None)  # a busy machine is no failure
@given(
    prompt=st.integers(0, 10**7),
    max_tokens=st.integers(1, 10**6),
    used=st.integers(0, 10**6),
    ratios=st.tuples(*[st.fractions(0, 100, max_denominator=1000)] * 3),
)
def test_a_request_that_keeps_to_its_maximum_never_costs_more_than_was_held(
    prompt: int, max_tokens: int, used: int, ratios: tuple[Fraction, Fraction, Fraction]
) -> None:
    p = Price("m", "g", *ratios)

    assert p.quota(prompt, min(used, max_tokens)) <= p.estimate(prompt, max_tokens)


@pytest.mark.parametrize(
    "bad", [-1, MAX_TOKENS + 1, True, 1.0, "1", None, pytest.param(10**5000, id="of-5000-digits"), float("nan")]
)
def test_counts_that_are_no_token_counts_are_refused(bad: Any) -> None:
    p = price()

    for call in (
        lambda: p.quota(bad, 1),
        lambda: p.quota(1, bad),
        lambda: p.estimate(bad),
        lambda: p.estimate_like_reference(bad),
    ):
        with pytest.raises(InvalidRequest, match="must be an integer from 0"):
            call()
    if bad is not None:
        with pytest.raises(InvalidRequest, match="max_tokens"):
            p.estimate(1, bad)
        with pytest.raises(InvalidRequest, match="max_tokens"):
            p.estimate_like_reference(1, bad)


def test_the_largest_count_is_accepted_and_an_amount_above_2_to_the_53_refused() -> None:
    p = price("8192")  # 2**40 tokens at 2**13 come to 2**53 exactly

    assert p.quota(MAX_TOKENS, 0) == MAX_QUOTA
    assert p.estimate_like_reference(MAX_TOKENS - 500) == MAX_QUOTA
    for call in (p.quota, p.estimate, p.estimate_like_reference):
        with pytest.raises(InvalidRequest, match="more than 9007199254740992 quota"):
            call(MAX_TOKENS, 1)


@settings(deadline=None)  # a busy machine is no failure
@given(ratios=st.tuples(*[st.fractions(0, 10**9, max_denominator=10**20)] * 3))
def test_a_price_comes_back_from_text_exactly(ratios: tuple[Fraction, Fraction, Fraction]) -> None:
    p = Price("gpt-4o", "vip", *ratios)

    assert Price.from_strings(**p.to_strings()) == p


def test_a_price_is_written_as_plain_fractions() -> None:
    assert price("1.25", "2.75/0.65").to_strings() == {
        "model": "m",
        "group": "default",
        "model_ratio": "5/4",
        "completion_ratio": "55/13",
        "group_ratio": "1",
    }


def test_a_copied_price_still_costs_the_same() -> None:
    p = price("1.25", "2.75/0.65", "0.9")

    for twin in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p)):
        assert twin == p
        assert twin.quota(1000, 1000) == p.quota(1000, 1000)


def test_a_price_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        price().model_ratio = Fraction(0)  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ["-1", "1/0", "nan", "inf", "", "1/2/3", "0x10", "1e999", "٣", "1 2", "9" * 200, "1e10"]
)
def test_text_that_is_no_ratio_makes_no_price(text: str) -> None:
    with pytest.raises(InvalidRequest, match="model_ratio"):
        price(text)


@pytest.mark.parametrize("ratio", [1.5, 1, "1", None, Fraction(-1), Fraction(10**9 + 1), Fraction(1, 10**31)])
def test_a_price_takes_only_fractions_in_range(ratio: Any) -> None:
    with pytest.raises(InvalidRequest, match="group_ratio"):
        Price("m", "g", Fraction(1), Fraction(1), ratio)


@pytest.mark.parametrize("name", ["a\nb", "a\x00", "\x7f", "\x9b31m", "\ud800", "x" * 201, None, 5, b"gpt"])
def test_malformed_names_make_no_price(name: Any) -> None:
    with pytest.raises(InvalidRequest, match="model"):
        Price(name, "g", Fraction(1), Fraction(1), Fraction(1))
    with pytest.raises(InvalidRequest, match="group"):
        Price("m", name, Fraction(1), Fraction(1), Fraction(1))


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("2.75/0.65", Fraction(55, 13)),
        (" 1 / 3 ", Fraction(1, 3)),
        ("0.1", Fraction(1, 10)),
        ("+2", Fraction(2)),
        ("25e-6", Fraction(1, 40_000)),
        ("0", Fraction(0)),
        (7, Fraction(7)),
    ],
)
def test_a_ratio_is_read_exactly(text: object, exact: Fraction) -> None:
    assert parse_ratio(text) == exact


def test_a_binary_float_is_no_ratio() -> None:
    with pytest.raises(ValueError, match="write it as text"):
        parse_ratio(0.1)
