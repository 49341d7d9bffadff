"""Looking ratios up: which key wins, what unknown names cost, and that they are logged once."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from billing_tasks.errors import BadRatios, InvalidRequest
from billing_tasks.pricing import PriceBook, Ratios, load_defaults, load_overrides
from billing_tasks.pricing.ratios import MAX_CACHED_PRICES, MAX_LOGGED_NAMES


def with_overrides(**tables: dict[str, str | int | Fraction]) -> Ratios:
    book = PriceBook(catalogue="one-api", unknown="30")
    book.set_overrides(**tables)
    return book.prices.ratios


@pytest.mark.parametrize(
    ("custom", "channel_type", "ratio"),
    [
        ({}, 33, "0.15"),
        ({}, 0, "0.000025"),
        ({}, None, "0.000025"),
        ({"llama3-8b-8192": "7"}, 33, "0.15"),  # the default of name(33) beats our own `name`
        ({"llama3-8b-8192": "7"}, 0, "7"),
        ({"llama3-8b-8192(33)": "8", "llama3-8b-8192": "7"}, 33, "8"),
        ({"llama3-8b-8192(33)": "8", "llama3-8b-8192": "7"}, None, "7"),
    ],
)
def test_a_channel_types_name_comes_before_the_name_and_ours_before_the_default(
    custom: dict[str, str | int | Fraction], channel_type: int | None, ratio: str
) -> None:
    ratios = with_overrides(model=custom, completion=custom)

    assert ratios.model_ratio("llama3-8b-8192", channel_type) == Fraction(ratio)


def test_completion_ratios_of_a_channel_type_come_before_the_family() -> None:
    assert load_defaults().completion_ratio("llama3-70b-8192", 33) == Fraction(350, 265)
    assert load_defaults().completion_ratio("llama3-70b-8192", 1) == Fraction(79, 59)


def test_an_override_of_a_completion_ratio_comes_before_the_family() -> None:
    assert with_overrides(completion={"gpt-4o": "5"}).completion_ratio("gpt-4o") == 5


def test_internet_is_dropped_from_qwen_for_both_ratios_and_from_command_for_the_model_ratio() -> None:
    ratios = with_overrides(completion={"qwen-max": "6", "command-r": "3"})

    assert ratios.model_ratio("qwen-max-internet") == Fraction("0.1704")
    assert ratios.completion_ratio("qwen-max-internet") == 6
    assert ratios.model_ratio("command-r-plus-internet") == Fraction("1.5")
    assert ratios.completion_ratio("command-r-internet") == 1
    assert ratios.model_ratio("gpt-4o-internet") == 30
    assert ratios.model_ratio("qwen2-7b-instruct-internet") == 30


def test_internet_is_dropped_before_the_channel_type_is_added() -> None:
    assert with_overrides(model={"qwen-max(17)": "9"}).model_ratio("qwen-max-internet", 17) == 9


def test_an_unknown_model_costs_30_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    ratios = load_defaults()

    assert {ratios.model_ratio("brand-new", c) for c in (None, 1, 2)} == {30}
    assert [(r.levelno, "brand-new" in r.getMessage()) for r in caplog.records] == [(logging.WARNING, True)]


def test_an_unknown_group_pays_the_list_price_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    ratios = load_defaults()

    assert {ratios.group_ratio("staff") for _ in range(3)} == {1}
    assert ["staff" in r.getMessage() for r in caplog.records] == [True]


def test_known_names_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    load_defaults().price(group="vip", model="gpt-4o", channel_type=1)

    assert caplog.records == []


def test_callers_can_not_flood_the_log_or_the_memory_with_invented_names(caplog: pytest.LogCaptureFixture) -> None:
    ratios = load_defaults()
    for i in range(MAX_CACHED_PRICES + 10):
        ratios.price(group="default", model=f"invented-{i}")

    assert len(caplog.records) <= MAX_LOGGED_NAMES + 2
    assert len(ratios._prices) <= MAX_CACHED_PRICES


def test_ratio_is_group_ratio_times_model_ratio() -> None:
    ratios = with_overrides(group={"vip": "0.9"})

    assert ratios.ratio("vip", "gpt-4o") == Fraction("2.25")
    assert ratios.ratio("vip", "llama3-8b-8192", 33) == Fraction("0.135")


def test_a_price_is_made_of_the_three_ratios_and_only_once() -> None:
    ratios = with_overrides(group={"vip": "0.9"})
    price = ratios.price(group="vip", model="claude-2.1", channel_type=14)

    assert (price.model, price.group) == ("claude-2.1", "vip")
    assert (price.model_ratio, price.completion_ratio, price.group_ratio) == (4, 3, Fraction("0.9"))
    assert ratios.price(group="vip", model="claude-2.1", channel_type=14) is price


@pytest.mark.parametrize("bad", ["a\nb", "x" * 201, None, 5, ["gpt-4o"]])
def test_malformed_names_are_refused(bad: Any) -> None:
    ratios = load_defaults()

    for call in (
        lambda: ratios.model_ratio(bad),
        lambda: ratios.completion_ratio(bad),
        lambda: ratios.group_ratio(bad),
        lambda: ratios.price(group=bad, model="gpt-4o"),
        lambda: ratios.price(group="default", model=bad),
    ):
        with pytest.raises(InvalidRequest, match=r"model|group"):
            call()


@pytest.mark.parametrize("bad", [-1, True, 1.0, "33", 2**40, pytest.param(10**5000, id="of-5000-digits")])
def test_malformed_channel_types_are_refused_even_if_an_equal_one_is_cached(bad: Any) -> None:
    ratios = load_defaults()
    ratios.price(group="default", model="gpt-4o", channel_type=1)

    for call in (
        lambda: ratios.model_ratio("gpt-4o", bad),
        lambda: ratios.completion_ratio("gpt-4o", bad),
        lambda: ratios.price(group="default", model="gpt-4o", channel_type=bad),
    ):
        with pytest.raises(InvalidRequest, match="channel_type"):
            call()


def test_the_tables_can_not_be_changed() -> None:
    with pytest.raises(TypeError):
        load_defaults().tables.model["gpt-4o"] = Fraction(0)  # type: ignore[index]


def test_decimals_in_a_file_are_exact_quoted_or_not(tmp_path: Path) -> None:
    file = tmp_path / "ratios.toml"
    file.write_text('[model]\na = 1.1\nb = "1.1"\nc = 1_0.1\nd = 3\n"e.5" = "2.75/0.65"\n[group]\nvip = 9e-1\n')
    tables = load_overrides(file)

    assert tables.model["a"] == tables.model["b"] == Fraction(11, 10)
    assert (tables.model["c"], tables.model["d"]) == (Fraction(101, 10), 3)
    assert tables.model["e.5"] == Fraction(55, 13)
    assert tables.group == {"vip": Fraction(9, 10)}


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(tmp_path: Path) -> None:
    file = tmp_path / "ratios.toml"
    file.write_bytes(b"\xef\xbb\xbf[group]\r\nvip = 0.9\r\n")

    assert load_overrides(file).group == {"vip": Fraction(9, 10)}


def test_the_example_in_config_can_be_used_with_and_without_its_comment_signs(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "config" / "ratios.toml"
    entries = [line.removeprefix("# ") for line in example.read_text().splitlines() if _is_toml(line)]
    file = tmp_path / "ratios.toml"
    file.write_text("\n".join(entries))

    assert not load_overrides(example).model
    tables = load_overrides(file)
    assert (len(tables.model), len(tables.completion), len(tables.group)) == (4, 2, 2)


def _is_toml(line: str) -> bool:
    return line.startswith("# [") or (line.startswith("# ") and " = " in line and "USD per 1M tokens" not in line)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[model]\na = 1\n\nb = -0.5\n", 4, "negative"),
        ("[model]\na = '1/0'\n", 2, "divides by zero"),
        ("[model]\n\n'a' = nan\n", 3, "not a ratio"),
        ("[model]\na = inf\n", 2, "not a ratio"),
        ('[group]\nvip = 1\n[model]\nvip = "cheap"\n', 4, "not a ratio"),
        ("[model]\na = true\n", 2, "not True"),
        ("[model]\na = [1]\n", 2, "a ratio is a number"),
        ("[model]\na = 2020-01-01\n", 2, "a ratio is a number"),
        ("[model]\na = 1\ngpt-3.5-turbo = 2\n", 3, 'needs quotes: "gpt-3.5-turbo"'),
        ("[model]\na = 2000000000\n", 2, "above 1,000,000,000"),
        ("[model]\na = 1e-60\n", 2, "digits"),
        ('[model]\na = 1\n"b\\u0000" = 1\n', 3, "control character"),
        ("[model]\na = 1\n[model.'gpt-4']\n5 = 1\n", 3, "needs quotes"),
        ("[completion]\na = 1\n# a = -1\n[model]\na = 1\n[group]\na = -1\n", 7, "[group] 'a'"),
        ("[[model]]\na = 1\n", 1, "is a table"),
        ("[model]\na = 1\n[models]\nb = 1\n", 3, "none of the tables"),
        ("# prices\ngpt-4o = 1\n", 2, "none of the tables"),
        ("model = 1\n", 1, "is a table"),
        ("[model]\na = 1\na = 2\n", 3, "overwrite"),
        ("[model]\na = \n", 2, "Invalid value"),
        ("[model]\na = 1\n[mod", 3, "ends too early"),
        ('# b\nmodel = { b = "-1" }\n', 2, "negative"),
        ("[model]\na = " + "9" * 5000 + "\n", 2, "digits"),
    ],
)
def test_a_bad_table_is_refused_with_file_line_and_reason(tmp_path: Path, text: str, line: int, reason: str) -> None:
    file = tmp_path / "ratios.toml"
    file.write_text(text)

    with pytest.raises(BadRatios) as caught:
        load_overrides(file)

    assert caught.value.message.startswith(f"{file}, line {line}: ")
    assert reason in caught.value.message


def test_a_file_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "ratios.toml"
    file.write_bytes(b"[model]\na = 1\n# caf\xe9\n")

    with pytest.raises(BadRatios, match="line 3: not UTF-8"):
        load_overrides(file)


@pytest.mark.parametrize("where", ["missing.toml", "."])
def test_a_file_that_can_not_be_read_is_refused_by_name(tmp_path: Path, where: str) -> None:
    with pytest.raises(BadRatios, match="can't be read"):
        load_overrides(tmp_path / where)
