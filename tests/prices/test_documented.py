"""Usage objects as the documentation of each provider shows them, at the list prices of November 2026.

A line of documented.jsonl: whose (`of`), the answer, the counts it comes to, the list prices of what it has, its quota.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from billing_tasks.pricing import Catalogue, MeterPrice, Sheet, Stream, Usage

CASES = [json.loads(line) for line in Path(__file__).with_name("documented.jsonl").read_text("utf-8").splitlines()]
AT = {"at": "2026-11-27T12:00:00Z"}


def counted(usage: Usage | None) -> dict[str, Any]:
    return {} if usage is None else {name: count for name, count in usage.counts.items() if count}


@pytest.fixture(params=CASES, ids=lambda case: str(case["of"]))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param  # type: ignore[no-any-return]


def test_it_is_counted_as_its_provider_bills_it(case: dict[str, Any]) -> None:
    wanted = {name: count for name, count in case["counts"].items() if count}
    assert wanted.items() <= counted(Usage.from_response(case["answer"], provider=case["provider"])).items()


def test_it_is_recognized_without_a_word_whose_it_is(case: dict[str, Any]) -> None:
    told = counted(Usage.from_response(case["answer"], provider=case["provider"]))
    assert counted(Usage.from_response(case["answer"])) == told
    stream = Stream()
    stream.add({"type": "ping"})
    stream.add(case["answer"])
    assert counted(stream.usage) == told


def test_it_costs_the_list_price(case: dict[str, Any]) -> None:
    usage, facts = Usage.from_response(case["answer"], provider=case["provider"]), {**AT, **case.get("facts", {})}
    # More than its prices say would be a price of 0 for what is left out.
    assert MeterPrice(Sheet.read({"prices": case["prices"]})).quota(usage) == case["quota"]
    if "model" in case:
        listed = Catalogue.shipped().find(case["model"], case["listed"])
        assert MeterPrice(listed.sheet).quota(usage, facts) == case["quota"]
