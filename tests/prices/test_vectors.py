"""Worked cases: real prices and usage objects, and what others got wrong. `python -m tests.prices.vectors FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.prices.vectors import cases, differences

CASES = list(cases(Path(__file__).parent / "vectors.jsonl"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_a_worked_case_costs_what_it_says_or_is_refused(case: dict[str, Any]) -> None:
    assert list(differences(case)) == []


def test_a_case_that_is_wrong_is_told() -> None:
    wrong = {**CASES[0], "expected_quota": CASES[0]["expected_quota"] + 1}
    assert len(list(differences(wrong))) == 1
    refused = next(case for case in CASES if case["expected_quota"] is None)
    assert len(list(differences({**refused, "expected_quota": 1}))) == 1
