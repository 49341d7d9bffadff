"""Random usages over random sheets cost what the oracle says; `BILLING_TEST_PRICES=100000` for many."""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from billing_tasks.pricing.bill import Factor
from billing_tasks.pricing.meter_price import MeterPrice
from billing_tasks.pricing.sheet import Sheet
from billing_tasks.pricing.usage import Usage
from tests.prices import oracle
from tests.prices.oracle import Case

CASES = int(os.environ.get("BILLING_TEST_PRICES", "3000"))


def sheet_of(case: Case) -> Sheet:
    above = [{"tokens": limit, "prices": dict(prices)} for limit, prices in case.above]
    return Sheet.read({"prices": dict(case.prices), "above": above})


def cost(case: Case, counts: dict[str, Any] | None = None) -> int:
    usage = Usage.of(case.counts if counts is None else counts)
    price = MeterPrice(sheet_of(case), [Factor("group", case.factor)])
    (quota,) = {price.quota(usage), price.quota(usage), price.bill(usage).quota}  # the first one compiles
    return quota


@pytest.mark.timeout(900)
def test_random_usages_over_random_sheets_cost_what_the_oracle_says() -> None:
    for seed in range(CASES):
        case = oracle.case(Random(seed))
        assert cost(case) == oracle.quota(case), f"seed {seed}: {case}"


def test_the_order_of_meters_never_matters() -> None:
    for seed in range(300):
        dice = Random(seed)
        case = oracle.case(dice)
        counts = list(case.counts.items())
        prices = list(case.prices.items())
        dice.shuffle(counts)
        dice.shuffle(prices)
        assert cost(replace(case, prices=dict(prices)), dict(counts)) == oracle.quota(case)


def test_each_line_bills_its_units_once() -> None:
    for seed in range(300):
        case = oracle.case(Random(seed))
        lines = MeterPrice(sheet_of(case)).bill(Usage.of(case.counts)).lines
        assert sum(line.count for line in lines) == sum(units for _, units in case.atoms)


def test_one_more_unit_never_costs_less_within_a_tier() -> None:
    for seed in range(600):
        dice = Random(seed)
        case = oracle.case(dice)
        if not case.atoms:
            continue
        at = dice.randrange(len(case.atoms))
        dims, units = case.atoms[at]
        more = replace(case, atoms=(*case.atoms[:at], (dims, units + 1), *case.atoms[at + 1 :]))
        prompts = [sum(n for d, n in one.atoms if d.get("direction") == "input") for one in (case, more)]
        if any(prompts[0] <= limit < prompts[1] for limit, _ in case.above):
            continue
        assert cost(more) >= cost(case)


def test_usage_that_comes_in_parts_sums_in_any_order() -> None:
    for seed in range(200):
        dice = Random(seed)
        parts = [Usage.of(oracle.case(dice).counts) for _ in range(3)]
        sums = [parts[0] + parts[1] + parts[2], parts[2] + (parts[1] + parts[0])]
        assert dict(sums[0].counts) == dict(sums[1].counts)
