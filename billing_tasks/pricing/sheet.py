"""Sheet: what the meters of one model cost, and when: tiers by length of the prompt, variants by facts of the request.

Prices are in USD per the meter's `per` units (a million tokens, a thousand calls, an hour of audio), exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Self

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import MAX_QUOTA, check_count, parse_ratio, show
from billing_tasks.pricing.facts import When
from billing_tasks.pricing.meters import meter

Prices = Mapping[str, Fraction]
#: The number of a tier, if one fits; the numbers of the variants that fit, each with its tier.
Choice = tuple[int | None, tuple[tuple[int, int | None], ...]]
_ONLY: Choice = (None, ())


@dataclass(frozen=True, slots=True)
class Tier:
    """Prices of a request whose full prompt, cached tokens included, is longer than `tokens`.

    The limit itself belongs to the tier below unless `inclusive`.
    """

    tokens: int
    prices: Prices
    inclusive: bool = False

    def fits(self, prompt_tokens: Fraction | int) -> bool:
        """Whether the request is that long."""
        return prompt_tokens >= self.tokens if self.inclusive else prompt_tokens > self.tokens


@dataclass(frozen=True, slots=True)
class Variant:
    """Prices under a condition: the service tier that was served, a region, hours of the day."""

    when: When
    prices: Prices
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class Sheet:
    """The prices of one model. `Sheet.read` makes one of plain data, and checks it."""

    prices: Prices
    tiers: tuple[Tier, ...] = ()
    variants: tuple[Variant, ...] = ()
    per: Prices = field(default_factory=dict)  # where it is not the meter's own
    least: Prices = field(default_factory=dict)  # units that are billed at least, if any
    step: Prices = field(default_factory=dict)  # started steps of so many units are billed
    minimum_quota: int = 0  # a charge above 0 and below this becomes this
    goes_by_time: bool = field(init=False, repr=False, compare=False)  # a price depends on when the request began

    def __post_init__(self) -> None:
        object.__setattr__(self, "goes_by_time", any(variant.when.is_about_time for variant in self.variants))

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """`prices`, and as far as needed `above`, `variants`, `per`, `least`, `step`, `minimum_quota`.

        Raises InvalidRequest that names the place of what is wrong.
        """
        unknown = data.keys() - {"prices", "above", "variants", "per", "least", "step", "minimum_quota"}
        if unknown:
            raise InvalidRequest(f"A price sheet has no {', '.join(sorted(map(show, unknown)))}.")
        minimum = check_count(data.get("minimum_quota", 0), field="minimum_quota")
        if minimum > MAX_QUOTA:
            raise InvalidRequest(f"minimum_quota must be at most {MAX_QUOTA}.")
        made = {name: _prices(data.get(name, {}), name) for name in ("prices", "per", "least", "step")}
        for name in ("per", "step"):
            if not all(made[name].values()):
                raise InvalidRequest(f"{name} must be above 0 for every meter.")
        variants = tuple(
            Variant(
                When.read(_table(one, f"variants[{number}]").get("when", {}), where=f"variants[{number}].when"),
                _prices(one.get("prices", {}), f"variants[{number}].prices"),
                _tiers(one.get("above", ()), f"variants[{number}].above"),
            )
            for number, one in enumerate(_list(data.get("variants", ()), "variants"))
        )
        return cls(
            made["prices"],
            _tiers(data.get("above", ()), "above"),
            variants,
            made["per"],
            made["least"],
            made["step"],
            minimum,
        )

    @property
    def is_free(self) -> bool:
        """Whether all that it prices costs nothing, at any time."""
        tables = [self.prices, *(tier.prices for tier in self.tiers)]
        for variant in self.variants:
            tables += [variant.prices, *(tier.prices for tier in variant.tiers)]
        return not any(price for prices in tables for price in prices.values())

    def data(self) -> dict[str, Any]:
        """As plain data that `read` reads again: exact ratios as text, no empty part."""
        made: dict[str, Any] = {name: _written(getattr(self, name)) for name in ("prices", "per", "least", "step")}
        made["above"] = [_tier_data(tier) for tier in self.tiers]
        made["variants"] = [
            {
                "when": variant.when.data(),
                "prices": _written(variant.prices),
                **({"above": [_tier_data(tier) for tier in variant.tiers]} if variant.tiers else {}),
            }
            for variant in self.variants
        ]
        made["minimum_quota"] = self.minimum_quota
        return {name: value for name, value in made.items() if value or name == "prices"}

    def times(self, by: Callable[[str], Fraction]) -> Self:
        """The sheet with each meter's price multiplied by what `by` says of it, in tiers and variants as well."""

        def scaled(prices: Prices) -> Prices:
            return {name: price * by(name) for name, price in prices.items()}

        def tiers(given: tuple[Tier, ...]) -> tuple[Tier, ...]:
            return tuple(replace(tier, prices=scaled(tier.prices)) for tier in given)

        return replace(
            self,
            prices=scaled(self.prices),
            tiers=tiers(self.tiers),
            variants=tuple(
                replace(variant, prices=scaled(variant.prices), tiers=tiers(variant.tiers)) for variant in self.variants
            ),
        )

    def choice(self, facts: Mapping[str, Any], prompt_tokens: Fraction | int) -> Choice:
        """Which tier and which variants such a request has; `prices_of` says what they cost.

        Raises InvalidRequest if a price goes by time and the facts don't say when the request began.
        """
        if not self.tiers and not self.variants:
            return _ONLY
        if self.goes_by_time and facts.get("at") is None:
            raise InvalidRequest('A price goes by time: say when the request began, as the fact "at".')
        fitting = tuple(
            (number, _tier_of(variant.tiers, prompt_tokens))
            for number, variant in enumerate(self.variants)
            if variant.when.fits(facts)
        )
        return _tier_of(self.tiers, prompt_tokens), fitting

    def prices_of(self, choice: Choice) -> Prices:
        """The price of each meter: of the first variant that fits and has it, else the sheet's own."""
        tier, fitting = choice
        chosen = {**self.prices, **(self.tiers[tier].prices if tier is not None else {})}
        for number, tier in reversed(fitting):
            variant = self.variants[number]
            chosen.update(variant.prices)
            chosen.update(variant.tiers[tier].prices if tier is not None else {})
        return chosen

    def choose(self, facts: Mapping[str, Any], prompt_tokens: Fraction | int) -> Prices:
        """The price of each meter for such a request."""
        return self.prices_of(self.choice(facts, prompt_tokens))


def _written(prices: Prices) -> dict[str, str]:
    return {name: str(price) for name, price in prices.items()}


def _tier_data(tier: Tier) -> dict[str, Any]:
    made: dict[str, Any] = {"tokens": tier.tokens, "prices": _written(tier.prices)}
    return {**made, "inclusive": True} if tier.inclusive else made


def _tier_of(tiers: Sequence[Tier], prompt_tokens: Fraction | int) -> int | None:
    """The highest that fits."""
    return max((number for number, tier in enumerate(tiers) if tier.fits(prompt_tokens)), default=None)


def _tiers(data: Any, where: str) -> tuple[Tier, ...]:
    tiers = []
    for number, one in enumerate(_list(data, where)):
        place = f"{where}[{number}]"
        row = _table(one, place)
        tokens = check_count(row.get("tokens"), field=f"{place}.tokens")
        tiers.append(Tier(tokens, _prices(row.get("prices", {}), f"{place}.prices"), bool(row.get("inclusive", False))))
    return tuple(sorted(tiers, key=lambda tier: (tier.tokens, not tier.inclusive)))


def _prices(data: Any, where: str) -> Prices:
    found = {}
    for name, text in _table(data, where).items():
        meter(name)
        try:
            found[name] = parse_ratio(text)
        except ValueError as exc:
            raise InvalidRequest(f"{where}.{name}: {exc}.") from None
    return found


def _table(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidRequest(f"{where} must be a table, got {show(data)}.")
    return data


def _list(data: Any, where: str) -> Sequence[Any]:
    if not isinstance(data, list | tuple):
        raise InvalidRequest(f"{where} must be a list, got {show(data)}.")
    return data
