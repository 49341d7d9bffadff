"""MeterPrice: a sheet with the factors of one request, compiled so that a quota takes a few integer operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from billing_tasks.pricing.bill import (
    ONE_REQUEST,
    QUOTA_PER_USD,
    Bill,
    Factor,
    bill,
    in_order,
    usd_of_one,
    with_common_parts,
)
from billing_tasks.pricing.exact import MAX_QUOTA, check_quota
from billing_tasks.pricing.meters import inside, wholes_of
from billing_tasks.pricing.sheet import Choice, Sheet
from billing_tasks.pricing.usage import Usage

#: Of each meter, most specific first: its name, its price as an integer, and which meters before it lie inside it.
_Plan = tuple[tuple[tuple[str, int, tuple[int, ...]], ...], int, int]
_NO_FACTS: Mapping[str, Any] = {}


class MeterPrice:
    """What the meters of one model cost one user.

    sheet = Sheet.read({"prices": {"input_tokens": "1.25", "cache_read_tokens": "0.125", "output_tokens": "10"}})
    price = MeterPrice(sheet, [Factor("group:vip", Fraction(9, 10))])
    price.quota(read_usage(response.usage, style="openai-chat"))
    """

    def __init__(self, sheet: Sheet, factors: Sequence[Factor] = ()) -> None:
        self.sheet, self.factors = sheet, tuple(factors)
        self._plans: dict[tuple[Choice, tuple[str, ...]], _Plan | None] = {}

    def quota(self, usage: Usage, facts: Mapping[str, Any] = _NO_FACTS) -> int:
        """What the usage costs, in quota: 0 if nothing was used or all of it is free, else at least 1.

        `facts`: what chooses a variant: "at" (when the request began), "service_tier" (as served), "region" ...
        Raises InvalidRequest if units were used that no price covers, and for an amount above 2**53.
        """
        counts = usage.counts
        choice = self.sheet.choice(facts, counts.get("input_tokens", 0))
        shape = tuple(counts)
        plan = self._plans.get((choice, shape))
        if plan is None:
            return self._first_time(usage, choice, shape)
        steps, divisor, fixed = plan
        leaves: list[Any] = []
        cost: Any = fixed
        for name, rate, parts in steps:
            leaf = counts[name]
            for part in parts:
                leaf -= leaves[part]
            if leaf < 0:
                return self.bill(usage, facts).quota
            leaves.append(leaf)
            cost += leaf * rate
        quota: int = -(-cost // divisor)
        if quota > MAX_QUOTA:
            check_quota(quota)
        return max(quota, self.sheet.minimum_quota) if quota else 0

    def bill(self, usage: Usage, facts: Mapping[str, Any] = _NO_FACTS) -> Bill:
        """The same line by line. Raises as `quota`."""
        prices = self.sheet.choose(facts, usage.get("input_tokens"))
        return bill(usage, self.sheet, prices, self.factors)

    def _first_time(self, usage: Usage, choice: Choice, shape: tuple[str, ...]) -> int:
        """With meters of which no usage had any before. What needs more than sums is not compiled."""
        prices = self.sheet.prices_of(choice)
        made = bill(usage, self.sheet, prices, self.factors)
        covered = all(name in prices or wholes_of(name, prices) for name in shape)
        if covered and not self.sheet.least and not self.sheet.step:
            self._plans[choice, shape] = self._compiled(prices, shape)
        return made.quota

    def _compiled(self, prices: Mapping[str, Any], shape: tuple[str, ...]) -> _Plan:
        prices = with_common_parts(self.sheet, prices, shape)
        names = in_order(frozenset(name for name in shape if name in prices))
        usd = [usd_of_one(name, self.sheet, prices, self.factors) * QUOTA_PER_USD for name in names]
        once = Fraction()
        if ONE_REQUEST in prices and ONE_REQUEST not in shape:
            once = usd_of_one(ONE_REQUEST, self.sheet, prices, self.factors) * QUOTA_PER_USD
        divisor = math.lcm(once.denominator, *(one.denominator for one in usd))
        at = {name: number for number, name in enumerate(names)}
        steps = tuple(
            (name, int(one * divisor), tuple(at[part] for part in inside(name, frozenset(names))))
            for name, one in zip(names, usd, strict=True)
        )
        return steps, divisor, int(once * divisor)
