"""Worked cases of prices: python -m tests.prices.vectors FILE prints each difference, and the count.

A case is a line of JSON: prices (`Sheet.read` says how), facts, factors and group_ratio, a usage (`style` and the
provider's own object `raw`, or `counts`), and expected_quota, null if it is to be refused. `ratios` and `groups` say
the same price in other words.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.bill import Factor
from billing_tasks.pricing.exact import parse_ratio
from billing_tasks.pricing.groups import group_ratio
from billing_tasks.pricing.meter_price import MeterPrice
from billing_tasks.pricing.ratio_sheet import sheet_of_ratios
from billing_tasks.pricing.readers import read_usage
from billing_tasks.pricing.sheet import Sheet
from billing_tasks.pricing.usage import Usage

_OF_SHEET = ("prices", "above", "variants", "per", "least", "step", "minimum_quota")


def differences(case: Mapping[str, Any]) -> Iterator[str]:
    """What differs from the case, in words; nothing if all is as it says."""
    try:
        quota, counts = _run(case)
    except InvalidRequest as refused:
        if case["expected_quota"] is not None:
            yield f"refused ({refused.message}), right is {case['expected_quota']}"
        return
    if case["expected_quota"] is None:
        yield f"costs {quota}, right is to refuse it ({case.get('refused')})"
    elif quota != case["expected_quota"]:
        yield f"costs {quota}, right is {case['expected_quota']}"
    wanted = {name: Usage.of({name: count}).get(name) for name, count in case["usage"].get("counts", {}).items()}
    if any(counts.get(name, 0) != count for name, count in wanted.items()):
        yield f"counts {dict(counts)}, right is {wanted}"
    yield from _of_prices(case)


def _run(case: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    sheet = Sheet.read({name: case[name] for name in _OF_SHEET if name in case})
    used = case["usage"]
    if "style" in used:
        usage = read_usage(used["raw"], style=used["style"])
        if "extra" in used:
            usage = usage.also(used["extra"])
    else:
        usage = Usage.of(used["counts"])
    factors = [Factor("group", parse_ratio(case["group_ratio"]))]
    factors += [
        Factor(one["name"], parse_ratio(one["by"]), frozenset(one.get("families", ())))
        for one in case.get("factors", ())
    ]
    price = MeterPrice(sheet, factors)
    facts = case.get("facts", {})
    quotas = {price.quota(usage, facts), price.quota(usage, facts), price.bill(usage, facts).quota}
    if len(quotas) != 1:
        raise AssertionError(f"the compiled price and the bill differ: {quotas}")
    return quotas.pop(), usage.counts


def _of_prices(case: Mapping[str, Any]) -> Iterator[str]:
    """The same price, said as ratios or by groups."""
    if "ratios" in case:
        sheet = sheet_of_ratios(**case["ratios"])
        wanted = {name: Fraction(text) for name, text in case["prices"].items()}
        if dict(sheet.prices) != wanted:
            yield f"ratios make {dict(sheet.prices)}, right is {wanted}"
    if "groups" in case:
        table = case["groups"]
        found = group_ratio(
            table["used_group"],
            user_group=table["user_group"],
            ratios=table["group_ratio"],
            overrides=table["group_group_ratio"],
        )
        if found != parse_ratio(case["group_ratio"]):
            yield f"the group's ratio is {found}, right is {case['group_ratio']}"


def cases(file: Path) -> Iterator[dict[str, Any]]:
    """Every line. {"$float": "nan"} is a float that JSON can't write."""

    def with_floats(value: dict[str, Any]) -> Any:
        return float(value["$float"]) if value.keys() == {"$float"} else value

    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line, object_hook=with_floats)


def main() -> int:
    """Prints; 0 if nothing differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.prices.vectors", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    different = count = 0
    for case in cases(parser.parse_args().file):
        count += 1
        found = list(differences(case))
        different += bool(found)
        for text in found:
            print(f"{case['id']}: {text} ({case.get('why', '')})")
    print(f"{count} cases, {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
