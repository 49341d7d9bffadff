"""Bill: what a usage costs by a sheet, line by line and rounded once.

quota = ceil(500,000 * sum over priced meters of leaf * price / per * factors)

The leaf of a meter is its count less what priced meters inside it bill: each unit is billed once, at its most specific
price; a part without a price is billed with the nearest whole that has one. All of it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import check_quota, check_ratio, parse_ratio, show
from billing_tasks.pricing.meters import inside, meter, wholes_of
from billing_tasks.pricing.sheet import Prices, Sheet
from billing_tasks.pricing.usage import Count, Usage

QUOTA_PER_USD = 500_000
#: Each charge is one request, whether its upstream counted it or not.
ONE_REQUEST = "requests"


@dataclass(frozen=True, slots=True)
class Factor:
    """A named factor on the price: a group's ratio, a channel's discount, a region's uplift on tokens only.

    Raises InvalidRequest for a factor that none can be.
    """

    name: str
    by: Fraction
    families: frozenset[str] = frozenset()  # of meters it is for
    meters: frozenset[str] = frozenset()  # it is for; none of both: all

    def __post_init__(self) -> None:
        try:
            check_ratio(self.by)
        except ValueError as exc:
            raise InvalidRequest(f"Factor {show(self.name)} can't be used: {exc}.") from None

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Of what `data` made. Raises InvalidRequest."""
        try:
            by = parse_ratio(data.get("by"))
        except ValueError as exc:
            raise InvalidRequest(f"Factor {show(data.get('name'))} can't be used: {exc}.") from None
        return cls(str(data.get("name")), by, frozenset(data.get("families", ())), frozenset(data.get("meters", ())))

    def data(self) -> dict[str, Any]:
        """As plain data."""
        made: dict[str, Any] = {"name": self.name, "by": str(self.by)}
        for scope in ("families", "meters"):
            if getattr(self, scope):
                made[scope] = sorted(getattr(self, scope))
        return made

    @property
    def is_for_all(self) -> bool:
        """Whether it is on the price of each meter."""
        return not self.families and not self.meters

    def is_for(self, name: str) -> bool:
        """Whether it is on the price of this meter."""
        return self.is_for_all or name in self.meters or meter(name).family in self.families


@dataclass(frozen=True, slots=True)
class Line:
    """One meter of a bill. `count`: the units that it bills; `usd`: what they cost, factors included."""

    meter: str
    count: Count
    price: Fraction  # USD per `per` units
    per: Fraction
    factors: tuple[Factor, ...]
    usd: Fraction


@dataclass(frozen=True, slots=True)
class Bill:
    """What one request costs, and how it comes about."""

    lines: tuple[Line, ...]
    quota: int


def bill(usage: Usage, sheet: Sheet, prices: Prices, factors: Sequence[Factor]) -> Bill:
    """What the usage costs at these prices, those of `sheet.choose`. Raises InvalidRequest as MeterPrice does."""
    prices = with_common_parts(sheet, prices, usage)
    counts: dict[str, Count] = {name: usage.get(name) for name in prices}
    if ONE_REQUEST in prices and ONE_REQUEST not in usage.counts:
        counts[ONE_REQUEST] = 1
    refuse_unpriced(usage, prices)
    leaves = _leaves(counts, prices)
    lines = tuple(_line(name, leaf, sheet, prices, factors) for name in prices if (leaf := leaves[name]))
    quota = math.ceil(QUOTA_PER_USD * sum((line.usd for line in lines), Fraction()))
    return Bill(lines, check_quota(max(quota, sheet.minimum_quota) if quota else 0))


def usd_of_one(name: str, sheet: Sheet, prices: Prices, factors: Sequence[Factor]) -> Fraction:
    """What one unit of a meter costs, factors included."""
    of_unit = prices[name] / sheet.per.get(name, meter(name).per)
    return math.prod((factor.by for factor in factors if factor.is_for(name)), start=of_unit)


def with_common_parts(sheet: Sheet, prices: Prices, names: Iterable[str]) -> Prices:
    """The prices, and one for each of these meters that has none and lies inside two priced ones (cached audio).

    Its units are billed once, at the dearer of the two.
    """
    more = {}
    for name in names:
        wholes = [] if name in prices else wholes_of(name, prices)
        nearest = [one for one in wholes if not any(meter(other).lies_inside(meter(one)) for other in wholes)]
        if len(nearest) > 1:
            dearest = max(prices[one] / sheet.per.get(one, meter(one).per) for one in nearest)
            more[name] = dearest * sheet.per.get(name, meter(name).per)
    return {**prices, **more} if more else prices


def refuse_unpriced(usage: Usage, prices: Prices) -> None:
    """Raise InvalidRequest if units were used that no price covers: 0 is a price, none at all is not free."""
    for name in usage:
        if not usage.get(name) or name in prices or wholes_of(name, prices):
            continue
        parts = inside(name, frozenset(prices) & frozenset(usage.counts))
        # All of it may have been counted as parts that have prices.
        if usage.get(name) != sum(usage.get(part) for part in parts if not wholes_of(part, parts)):
            raise InvalidRequest(f"{usage.get(name)} of {name} were used, and there is no price for that.")


def _line(name: str, count: Count, sheet: Sheet, prices: Prices, factors: Sequence[Factor]) -> Line:
    billed = max(Fraction(count), sheet.least.get(name, Fraction()))
    if (step := sheet.step.get(name)) is not None:
        billed = math.ceil(billed / step) * step
    mine = tuple(factor for factor in factors if factor.is_for(name))
    usd = billed * usd_of_one(name, sheet, prices, factors)
    per = sheet.per.get(name, meter(name).per)
    return Line(name, int(billed) if billed.denominator == 1 else billed, prices[name], per, mine, usd)


def _leaves(counts: Mapping[str, Count], prices: Prices) -> dict[str, Count]:
    """How many units each priced meter bills, most specific first."""
    priced = frozenset(prices)
    leaves: dict[str, Count] = {}
    for name in in_order(priced):
        parts = inside(name, priced)
        leaf = counts[name] - sum(leaves[part] for part in parts)
        if leaf < 0:
            _share(-leaf, parts, leaves, prices)
            leaf = 0
        leaves[name] = leaf
    return leaves


def in_order(names: frozenset[str]) -> list[str]:
    """Most specific first."""
    return sorted(names, key=lambda name: (-len(meter(name).dims), name))


def _share(units: Count, parts: Sequence[str], leaves: dict[str, Count], prices: Prices) -> None:
    """Parts that may have units in common (cached, and audio) sum to more than their whole, so they have.

    Nobody counted which. They are billed once, at the dearer of the prices.
    """
    for part in sorted(parts, key=lambda name: (prices[name] / meter(name).per, name)):
        taken = min(units, leaves[part])
        leaves[part] -= taken
        units -= taken
