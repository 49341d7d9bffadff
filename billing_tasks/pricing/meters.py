"""Meters: what can be counted and priced, as data (`data/meters.json`). A new one is a row there.

A meter has dimensions. One lies inside another if it has all of the other's dimensions, and more: `cache_read_tokens`
is input tokens of type cache_read, so it is part of `input_tokens`. Two parts of the same whole that differ in one
dimension (read and written, text and audio) have no unit in common.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import show

_WITH_DIMS = re.compile(r"([a-z0-9_]+)\[([a-z_]+=[^=,\[\]]+(?:,[a-z_]+=[^=,\[\]]+)*)\]")


@dataclass(frozen=True, slots=True)
class Meter:
    """One thing that is counted. `per`: of how many units a price is given in USD (1,000,000 tokens, 1,000 calls)."""

    name: str
    dims: frozenset[tuple[str, str]]
    per: Fraction

    @property
    def family(self) -> str:
        """Its unit: tokens, durations, tool_calls ..."""
        return dict(self.dims)["family"]

    @property
    def is_counted_in_time(self) -> bool:
        """Whether a count of it may be a fraction."""
        return self.family == "durations"

    def lies_inside(self, whole: Meter) -> bool:
        """Whether each of its units is one of the other's, and not the other way round."""
        return self.dims > whole.dims

    def excludes(self, other: Meter) -> bool:
        """Whether no unit can be of both: they differ in a dimension that both have."""
        mine, others = dict(self.dims), dict(other.dims)
        return any(others.get(name, value) != value for name, value in mine.items())


@lru_cache(4096)
def meter(name: str) -> Meter:
    """The meter of this name; `output_images[size=1024x1792,quality=hd]` is one with more dimensions.

    Raises InvalidRequest for a name that no meter has.
    """
    known = _all().get(name)
    if known is not None:
        return known
    match = _WITH_DIMS.fullmatch(name) if isinstance(name, str) else None
    base = _all().get(match[1]) if match else None
    if match is None or base is None:
        raise InvalidRequest(f"There is no meter {show(name)}. Known are, for instance, input_tokens, output_tokens,"
                             " cache_read_tokens, web_searches; all of them are in the reference.")  # fmt: skip
    more = dict(part.split("=", 1) for part in match[2].split(","))
    clash = more.keys() & dict(base.dims).keys()
    if clash or len(more) != match[2].count(",") + 1:
        raise InvalidRequest(f"Meter {show(name)} says a dimension twice.")
    return Meter(name, base.dims | more.items(), base.per)


def meters() -> Mapping[str, Meter]:
    """All that `data/meters.json` has."""
    return _all()


@cache
def _all() -> dict[str, Meter]:
    text = resources.files(__package__).joinpath("data/meters.json").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = json.loads(text)
    return {name: Meter(name, frozenset(row["dims"].items()), Fraction(row["per"])) for name, row in rows.items()}


@lru_cache(4096)
def inside(whole: str, names: frozenset[str]) -> tuple[str, ...]:
    """Those of the names whose units are the whole's as well, most specific first."""
    found = [name for name in names if meter(name).lies_inside(meter(whole))]
    return tuple(sorted(found, key=lambda name: (-len(meter(name).dims), name)))


@lru_cache(4096)
def groups_of_parts(whole: str, names: frozenset[str]) -> tuple[tuple[str, ...], ...]:
    """The parts of a whole in groups that share no unit, so that each group's sum is at most the whole.

    Parts of one group have the same dimensions beside the whole's, with other values.
    """
    groups: dict[frozenset[str], list[str]] = {}
    kept = dict(meter(whole).dims).keys()
    for name in inside(whole, names):
        more = frozenset(dict(meter(name).dims).keys() - kept)
        groups.setdefault(more, []).append(name)
    return tuple(tuple(group) for group in groups.values())


def wholes_of(name: str, names: Iterable[str]) -> list[str]:
    """Those of the names that this one is a part of, nearest first."""
    found = [other for other in names if meter(name).lies_inside(meter(other))]
    return sorted(found, key=lambda other: -len(meter(other).dims))
