"""What the vectors do not say: common parts, factors, facts, sheets that can't be."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.bill import Factor
from billing_tasks.pricing.meter_price import MeterPrice
from billing_tasks.pricing.sheet import Sheet
from billing_tasks.pricing.usage import Usage

AUDIO = {"input_tokens": "2", "cache_read_tokens": "1", "input_audio_tokens": "40", "output_tokens": "8"}


def price(prices: Mapping[str, str], *factors: Factor, **more: Any) -> MeterPrice:
    return MeterPrice(Sheet.read({"prices": prices, **more}), factors)


def lines(of: MeterPrice, usage: Mapping[str, Any]) -> dict[str, Any]:
    return {line.meter: line.count for line in of.bill(Usage.of(usage)).lines}


def test_a_part_of_two_priced_meters_is_billed_once_at_the_dearer() -> None:
    usage = {"input_tokens": 1000, "cache_read_tokens": 500, "input_audio_tokens": 700, "cache_audio_read_tokens": 300}
    of = price(AUDIO)
    assert lines(of, usage) == {
        "input_tokens": 100,
        "cache_read_tokens": 200,
        "input_audio_tokens": 400,
        "cache_audio_read_tokens": 300,
    }
    for _ in range(2):  # compiled at the first
        assert of.quota(Usage.of(usage)) == 100 + 100 + 700 * 20


def test_parts_that_must_overlap_are_billed_once_though_nobody_counted_how_much() -> None:
    usage = {"input_tokens": 1000, "cache_read_tokens": 600, "input_audio_tokens": 700}
    of = price(AUDIO)
    assert lines(of, usage) == {"cache_read_tokens": 300, "input_audio_tokens": 700}
    assert [of.quota(Usage.of(usage)) for _ in range(2)] == [150 + 700 * 20] * 2


def test_a_factor_for_a_family_leaves_the_others() -> None:
    uplift = Factor("region:eu", Fraction(11, 10), frozenset({"tokens"}))
    usage = Usage.of({"input_tokens": 1000, "web_searches": 2})
    of = price({"input_tokens": "2", "web_searches": "10"}, uplift, Factor("group:vip", Fraction(1, 2)))
    assert of.quota(usage) == (1100 + 2 * 5000) / 2
    assert [[factor.name for factor in line.factors] for line in of.bill(usage).lines] == [
        ["region:eu", "group:vip"],
        ["group:vip"],
    ]


@pytest.mark.parametrize(
    ("facts", "quota"),
    [
        ({"service_tier": "flex", "at": "2026-11-28T12:00:00Z"}, 500),  # a Saturday: the first that fits
        ({"at": "2026-11-28T12:00:00Z"}, 100),
        ({"at": "2026-11-27T12:00:00Z"}, 1000),
        ({"at": "2027-01-01T00:00:00Z"}, 1000),  # a Friday, and the day on which it ends
        ({"at": "2027-01-02T00:00:00Z"}, 1000),
    ],
)
def test_the_first_variant_that_fits_has_the_price(facts: dict[str, str], quota: int) -> None:
    variants = [
        {"when": {"service_tier": "flex"}, "prices": {"input_tokens": "1"}},
        {"when": {"weekdays": [6, 7], "until": "2027-01-01"}, "prices": {"input_tokens": "0.2"}},
    ]
    assert price({"input_tokens": "2"}, variants=variants).quota(Usage.of({"input_tokens": 1000}), facts) == quota


def test_a_price_that_goes_by_time_has_to_know_it() -> None:
    variants = [{"when": {"utc": ["16:30-00:30"]}, "prices": {"input_tokens": "1"}}]
    with pytest.raises(InvalidRequest, match="say when the request began"):
        price({"input_tokens": "2"}, variants=variants).quota(Usage.of({"input_tokens": 1}), {"region": "eu"})


def test_units_without_a_price_are_no_gift() -> None:
    with pytest.raises(InvalidRequest, match="3 of web_searches were used, and there is no price for that"):
        price({"input_tokens": "2"}).quota(Usage.of({"input_tokens": 1, "web_searches": 3}))


def test_more_than_an_amount_can_be_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than 9007199254740992 quota"):
        price({"input_tokens": "1000000000"}).quota(Usage.of({"input_tokens": 2**40}))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"prices": {"banana_tokens": "1"}}, "There is no meter 'banana_tokens'"),
        ({"prices": {"input_tokens": 0.5}}, "prices.input_tokens: 0.5 is a binary float"),
        ({"prices": {"input_tokens": "-1"}}, "prices.input_tokens: '-1' is negative"),
        ({"prices": []}, "prices must be a table"),
        ({"prices": {}, "tiers": []}, "A price sheet has no 'tiers'"),
        ({"above": [{"tokens": -1}]}, r"above\[0\].tokens must be an integer"),
        ({"variants": [{"when": {"utc": ["25:00-26:00"]}}]}, r"variants\[0\].when.utc has '25:00-26:00'"),
        ({"variants": [{"when": {"weekdays": [0]}}]}, r"variants\[0\].when.weekdays must be numbers from 1"),
        ({"variants": [{"when": {"from": "soon"}}]}, r"variants\[0\].when.from must be a date or a moment"),
        ({"step": {"audio_seconds": "0"}}, "step must be above 0"),
        ({"prices": {"output_images[size=1,size=2]": "1"}}, "says a dimension twice"),
        ({"minimum_quota": True}, "minimum_quota must be an integer"),
    ],
)
def test_a_sheet_that_can_not_be_says_where(data: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        Sheet.read(data)


@pytest.mark.parametrize("count", [-1, True, "5", 1.5, float("nan"), 2**40 + 1, None, [1]])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(InvalidRequest, match="input_tokens must be"):
        Usage.of({"input_tokens": count})


@pytest.mark.parametrize(("seconds", "exact"), [("1.5", Fraction(3, 2)), (1.1, Fraction(11, 10)), ("90", 90), (2.0, 2)])
def test_seconds_are_exact(seconds: Any, exact: Fraction | int) -> None:
    assert Usage.of({"input_audio_seconds": seconds}).get("audio_seconds") == exact
