"""A list of prices: which of several says what a request costs, under which version, and what names lead to."""

from __future__ import annotations

import copy
import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from billing_tasks.errors import BadRatios, InvalidRequest
from billing_tasks.pricing import Change, Price, PriceBook, PriceList, UnknownModel, Usage, check_change, unpacked
from billing_tasks.pricing.check import doubts
from billing_tasks.pricing.estimate import worst_case
from billing_tasks.pricing.tables import parse_tables


def listed(text: str = "", **more: Any) -> PriceList:
    return PriceList(file=parse_tables(text, source="test"), **more)


def test_a_ratio_of_the_operators_scales_all_of_the_list_price() -> None:
    price = listed('[model]\ngpt-5 = "1.25"\n').price(model="gpt-5")
    assert (price.model_ratio, price.completion_ratio) == (Fraction(5, 4), 8)
    assert price.list_sheet.prices["cache_read_tokens"] == Fraction("0.25")
    assert price.source == "your own ratios over the list price (openai's gpt-5)"


def test_the_completion_ratio_is_that_of_the_list_and_not_guessed(caplog: pytest.LogCaptureFixture) -> None:
    price = listed("[model]\ngemini-2_5-flash = 1\n[alias]\nx = 'gemini-2.5-flash'\n").price(model="x")
    assert price.completion_ratio == Fraction(25, 3)
    assert not caplog.records


def test_a_guessed_completion_ratio_is_said_aloud_once(caplog: pytest.LogCaptureFixture) -> None:
    prices = listed("[model]\nclaude-of-mine = 1\nmine = 1\n")
    assert prices.price(model="claude-of-mine").completion_ratio == 3
    assert prices.price(model="mine", group="default").completion_ratio == 1
    prices.price(model="mine", channel_type=3)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "The completion ratio of 'claude-of-mine' is guessed (3, by the family of its name)" in said[0]


def test_a_sheet_of_the_operators_comes_before_ratios_and_list() -> None:
    text = """
[model]
gpt-5 = 7
[prices.gpt-5]
input_tokens = 1
output_tokens = "3"
requests = 2          # USD per 1,000: a price per call
minimum_quota = 50
[[prices.gpt-5.above]]
tokens = 1000
prices = { input_tokens = 2 }
[[prices.gpt-5.variants]]
when = { region = "eu" }
prices = { input_tokens = "1.1" }
"""
    price = listed(text).price(model="gpt-5")
    assert price.quota(1000, 0) == 500 + 1000
    assert price.quota(1001, 0) == 1001 + 1000
    assert price.quota(1000, 0, facts={"region": "eu"}) == 550 + 1000
    assert price.estimate(950, 10) > price.quota(950, 10)  # close to the longer tier


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[prices."m"]\ninput_tokens = 1\n\n[prices.n]\ninput_tokenz = 1\n', 4, "no meter 'input_tokenz'"),
        ("[prices]\nm = 3\n", 2, "must be a table"),
        ("[[factor]]\nname = 'a'\nby = '-1'\n", 1, "number 1.by can't be used"),
        ("[factor]\nby = 1\n", 1, "double brackets"),
        ("[[cost]]\nmodels = ['x']\n", 1, "needs of_list"),
        ("[group_for.vip]\nvip = 'x'\n", 1, "not a ratio"),
        ("[alias]\nm = 3\n", 2, "must be text"),
        ("[[factor]]\nname = 'a'\nby = 1\nfamilies = ['tokns']\n", 1, "no family of meters"),
    ],
)
def test_a_file_that_can_not_be_used_names_line_and_reason(text: str, line: int, reason: str) -> None:
    with pytest.raises(BadRatios) as refused:
        listed(text)
    assert f"test, line {line}: " in refused.value.message
    assert reason in refused.value.message


FACTORS = """
[group]
vip = "0.9"
[group_for.staff]
vip = "0.5"
[[factor]]
name = "spring"
by = "0.8"
models = ["gpt-5*"]
[[factor]]
name = "eu"
by = "1.1"
families = ["tokens"]
channels = [7]
[[factor]]
name = "cached"
by = "0"
meters = ["cache_read_tokens"]
tokens = [42]
"""


def test_factors_are_for_whom_they_say_and_are_named_in_the_price() -> None:
    prices = listed(FACTORS)
    usage = Usage.of({"input_tokens": 1000, "cache_read_tokens": 400, "web_searches": 1})
    plain = prices.price(model="gpt-4o")
    assert plain.factors == ()
    gpt5 = prices.price(model="gpt-5", group="vip", channel_id=7, token_id=42)
    assert [factor.name for factor in gpt5.all_factors] == ["group:vip", "spring", "eu", "cached"]
    exact = Fraction(9, 10) * Fraction(8, 10) * (600 * Fraction(125, 100) * Fraction(11, 10) / 2 + 5000)
    assert gpt5.quota_of(usage) == -(-exact.numerator // exact.denominator)
    staff = prices.price(model="gpt-5", group="vip", user_group="staff")
    assert staff.group_ratio == Fraction(1, 2)
    assert staff.all_factors[0].name == "group:vip for staff"
    assert prices.price(model="gpt-5", group="vip", user_group="others").group_ratio == Fraction(9, 10)


def test_what_a_channel_charges_is_a_second_price() -> None:
    text = '[[cost]]\nchannels = [3]\nof_list = "0.7"\n[[cost]]\nmodels = ["gpt-*"]\nsheet = { input_tokens = 1 }\n'
    prices = listed(text)
    usage = Usage.of({"input_tokens": 1000, "output_tokens": 0})
    assert prices.price(model="gpt-5", channel_id=3, group="default").cost_of(usage) == 438  # 1000 * 1.25 * 0.7 / 2
    assert prices.price(model="gpt-5", channel_id=4).cost_of(usage) == 500
    assert prices.price(model="claude-sonnet-4-5", channel_id=4).cost_of(usage) is None


def test_the_same_content_has_the_same_version_in_any_process_and_another_has_another() -> None:
    one, same = listed(FACTORS), listed(FACTORS)
    assert one.version == same.version
    again = PriceList.of_parts(one.parts)
    assert again.version == one.version
    asked: dict[str, Any] = {"model": "gpt-5", "group": "vip", "channel_id": 7, "token_id": 42}
    assert again.price(**asked) == one.price(**asked)
    others = [listed(), listed(FACTORS, unknown=Fraction(30)), listed(FACTORS, catalogue="one-api")]
    others.append(listed(FACTORS, changes=[Change("group", "vip", "0.8")]))
    assert len({one.version, *(other.version for other in others)}) == 5
    assert all(0 < other.version < 2**53 for other in others)


def test_what_a_hold_says_leads_to_the_same_price() -> None:
    prices = listed(FACTORS)
    for asked in (
        {"model": "gpt-5"},
        {"model": "ft:gpt-4o-mini:a b/ü::x", "group": "a group=&"},
        {"model": "gpt-5", "group": "vip", "user_group": "staff", "channel_type": 3, "channel_id": 7, "token_id": 42},
        {"model": "gpt-5", "facts": {"region": "eu west"}},
    ):
        price = prices.price(**asked)  # type: ignore[arg-type]
        assert " " not in price.packed
        assert price.packed.isascii()
        version, question = unpacked(price.packed)
        assert version == prices.version
        assert prices.price(**question) == price
    with pytest.raises(InvalidRequest):
        unpacked("nonsense")


def test_a_price_of_a_sheet_survives_text_and_pickle() -> None:
    price = listed(FACTORS).price(model="claude-sonnet-4-5", group="vip", channel_id=7, facts={"region": "eu"})
    assert Price.from_strings(**price.to_strings()) == price
    for twin in (pickle.loads(pickle.dumps(price)), copy.deepcopy(price)):
        assert twin == price
        assert twin.quota(1000, 10) == price.quota(1000, 10)


def test_a_change_begins_at_its_time_and_no_clock_holds_back_what_counts_at_once() -> None:
    book = PriceBook()
    ahead = 4_000_000_000_000
    book.take_changes(
        [Change("group", "vip", "0.5", 5, at_once=True), Change("group", "vip", "0.25", ahead, at_once=False)]
    )
    assert book.price(model="gpt-5", group="vip").group_ratio == Fraction(1, 2)
    book.take_changes([Change("group", "vip", "0.5", ahead, at_once=True)])  # a clock that is behind
    assert book.price(model="gpt-5", group="vip").group_ratio == Fraction(1, 2)
    book.take_changes([Change("group", "vip", "0.25", 5, at_once=False)])  # it has begun since
    assert book.price(model="gpt-5", group="vip").group_ratio == Fraction(1, 4)
    text = book.changes_as_text
    other = PriceBook()
    other.take_changes_as_text(text)
    assert other.prices.version == book.prices.version


def test_a_change_that_is_taken_back_leaves_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "ratios.toml"
    file.write_text("[group]\nvip = '0.9'\n")
    book = PriceBook(file)
    book.take_changes([Change("group", "vip", "0.5", 1), Change("group", "vip", None, 2)])
    assert book.price(model="gpt-5", group="vip").group_ratio == Fraction(9, 10)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        *(("model", {"prices": {"input_tokens": "-1"}}), ("model", "1.25"), ("model", {"above": 3}), ("group", "x")),
        *(("group", -1), ("alias", 3), ("factor", {"by": "x"}), ("cost", {}), ("nonsense", "1"), ("group_for", "1")),
    ],
)
def test_a_change_that_can_not_be_used_is_refused_when_it_is_made(kind: str, body: Any) -> None:
    with pytest.raises(InvalidRequest):
        check_change(kind, "name", body)


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("azure/gpt-5", "gpt-5"),
        ("gpt-5-2025-08-07", "gpt-5"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("our-deployment", "gpt-5-mini"),
    ],
)
def test_names_lead_to_models_by_written_rules_or_by_an_alias(name: str, like: str) -> None:
    prices = listed('[alias]\nour-deployment = "gpt-5-mini"\n')
    assert prices.price(model=name).list_sheet == prices.price(model=like).list_sheet


def test_an_unknown_model_is_refused_or_has_the_price_of_unknown_ones(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnknownModel, match=r"no price of 'gtp-5'; the nearest names are .*gpt-5"):
        listed().price(model="gtp-5")
    assert listed(unknown=Fraction(30)).price(model="gtp-5").model_ratio == 30
    assert "No ratio for model 'gtp-5': priced at 30" in caplog.text
    with pytest.raises(UnknownModel):
        listed(catalogue="one-api").price(model="gtp-5")
    assert listed(catalogue="one-api", unknown=Fraction(30)).price(model="gtp-5").model_ratio == 30


def test_parity_with_the_reference_is_a_catalogue() -> None:
    prices = listed(catalogue="one-api")
    assert prices.price(model="gpt-4o").quota(374, 44) == 1375
    assert prices.price(model="gpt-4o").source == "one-api's ratios"


DOUBTFUL = """
[model]
mine = 1
[prices.cheap-out]
input_tokens = 10
output_tokens = 5
[prices.cached]
input_tokens = 1
output_tokens = 2
cache_read_tokens = 3
[prices.gpt-5]
input_tokens = 1250
output_tokens = 10000
[prices.hour]
input_tokens = 1
output_tokens = 2
cache_write_tokens = 7
cache_write_1h_tokens = 6
[group]
free = 0
[alias]
away = "nothing-of-that-name"
"""


def test_prices_that_are_probably_mistakes_are_found() -> None:
    found = {(doubt.name, doubt.what) for doubt in doubts(listed(DOUBTFUL))}
    said = {name: " ".join(what for other, what in found if other == name) for name, _ in found}
    assert "completion ratio is guessed" in said["mine"]
    assert "output costs less than its input" in said["cheap-out"]
    assert "Cached tokens cost more" in said["cached"]
    assert "1,000 times the list price" in said["gpt-5"]
    assert "hour costs less than for 5 minutes" in said["hour"]
    assert "times its input" in said["hour"]
    assert "all is free" in said["group free"]
    assert "no price" in said["away"]


def test_the_catalogue_itself_is_hardly_doubtful() -> None:
    assert list(doubts(listed())) == []
    assert len(list(doubts(listed(), everything=True))) < 120


@pytest.mark.parametrize("model", ["gpt-5", "claude-sonnet-4-5", "gemini-2.5-pro", "deepseek-chat", "grok-4"])
def test_the_short_way_to_an_estimate_and_a_quota_agrees_with_the_long_one(model: str) -> None:
    price = listed(FACTORS).price(model=model, channel_id=7)
    at = {"at": "2026-11-27T12:00:00Z"}
    for prompt in (0, 1, 374, 99_999, 181_000, 199_999, 200_000, 200_001, 272_001, 5_000_000):
        long_way = worst_case(price._by_meter, at, prompt, 512, {})
        assert price.estimate(prompt, 512, facts=at) == long_way
        assert price.goes_by_time or price.estimate(prompt, 512) == long_way
        usage = Usage.of({"input_tokens": prompt, "output_tokens": 44})
        assert price.goes_by_time or price.quota(prompt, 44) == price.quota_of(usage)
        assert (
            price.quota(prompt, 44, facts=at) == price.bill_of(usage, at).quota <= price.estimate(prompt, 44, facts=at)
        )


def test_what_comes_beside_the_text_is_held_on_top_of_it() -> None:
    price = listed().price(model="gpt-4o")
    plain = price.estimate(100, 50)
    assert price.estimate(100, 50, also={"input_image_tokens": 765}) == price.estimate(865, 50)
    assert price.estimate(100, 50, also={"web_searches": 1}) > plain
    video = listed("[prices.v]\noutput_video_seconds = '0.1'\n").price(model="v")
    assert video.estimate(100, 50, also={"output_video_seconds": 8}) == 400_000
    with pytest.raises(InvalidRequest, match="web_searches"):
        price.estimate(100, 50, also={"web_searches": -1})


def test_a_factor_may_go_by_a_fact() -> None:
    prices = listed('[[factor]]\nname = "eu"\nby = "1.1"\nfamilies = ["tokens"]\nwhen = { region = "eu" }\n')
    assert prices.price(model="gpt-5").factors == ()
    assert [factor.name for factor in prices.price(model="gpt-5", facts={"region": "eu"}).factors] == ["eu"]
    with pytest.raises(BadRatios, match="takes facts, no times"):
        listed('[[factor]]\nname = "eu"\nby = 1\nwhen = { utc = ["00:00-01:00"] }\n')


def test_changes_that_can_not_be_used_leave_the_prices_as_they_were() -> None:
    book = PriceBook()
    book.take_changes([Change("group", "vip", "0.5", 1)])
    with pytest.raises(InvalidRequest, match="can't be used"):
        book.take_changes([Change("group", "vip", "0.5", 1), Change("model", "m", {"of_a_later_release": 1}, 2)])
    assert book.price(model="gpt-5", group="vip").group_ratio == Fraction(1, 2)


@pytest.mark.parametrize("catalogue", ["list", "one-api"])
def test_a_list_of_another_release_has_that_release_s_catalogue(catalogue: Any) -> None:
    parts = dict(listed(catalogue=catalogue).parts)
    told = json.loads(parts["catalogue"])
    if catalogue == "list":
        [row] = [row for row in told["models"] if (row["provider"], row["model"]) == ("openai", "gpt-5")]
        row["sheet"] = {"prices": {"input_tokens": "7", "output_tokens": "14"}}
    else:
        told["model"]["gpt-5"] = "7/2"
        told["completion"]["gpt-5"] = "2"
    parts["catalogue"] = json.dumps(told)
    old = PriceList.of_parts(parts)
    assert old.price(model="gpt-5").quota(1000, 1000) == 10_500
    assert old.version != listed(catalogue=catalogue).version
    assert PriceList.of_parts(old.parts).version == old.version
