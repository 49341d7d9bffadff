"""The oracle of prices, written apart: units one by one, each billed once at its most specific price.

A usage is made of atoms: so many units that have the same dimensions. What a meter counts are the atoms that have its
dimensions; what an atom costs is the price of the priced meter with the most of its dimensions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import billing_tasks.pricing

METERS: dict[str, Any] = json.loads((Path(billing_tasks.pricing.__file__).parent / "data/meters.json").read_text())
DIMS = {name: dict(row["dims"]) for name, row in METERS.items()}
#: Of one unit: each direction has types and modalities of its own; None: of no type.
_TYPES = {"input": ("cache_read", "cache_write", "tool", None), "output": ("reasoning", "citation", None)}
_MODALITIES = ("text", "audio", "image", "video", None)
_TTLS = ("5m", "1h", None)
_CALLS = ("web_searches", "storage_searches", "output_images", "input_characters")


@dataclass(frozen=True)
class Case:
    """A random usage and a random sheet."""

    atoms: tuple[tuple[Mapping[str, str], int], ...]
    prices: Mapping[str, Fraction]
    above: tuple[tuple[int, Mapping[str, Fraction]], ...]
    factor: Fraction

    @property
    def counts(self) -> dict[str, int]:
        """What an honest upstream says of it: every meter that has a unit."""
        return {name: sum(n for dims, n in self.atoms if _has(dims, name)) for name in self.counted}

    @property
    def counted(self) -> list[str]:
        return [name for name in DIMS if any(_has(dims, name) for dims, _ in self.atoms)]


def case(dice: Random) -> Case:
    """One of them; where two priced meters overlap their common part has a price, too."""
    atoms = []
    for _ in range(dice.randint(0, 6)):
        direction = dice.choice(("input", "input", "output"))
        dims = {"family": "tokens", "direction": direction}
        for name, values in (("token_type", _TYPES[direction]), ("modality", _MODALITIES)):
            if (value := dice.choice(values)) is not None:
                dims[name] = value
        if dims.get("token_type") == "cache_write" and (ttl := dice.choice(_TTLS)):
            dims["cache_ttl"] = ttl
        atoms.append((dims, dice.choice((1, 2, 3, 999, 1000, dice.randint(0, 400_000)))))
    atoms += [(DIMS[name], dice.randint(1, 9)) for name in dice.sample(_CALLS, dice.randint(0, 2))]
    tokens = [name for name, dims in DIMS.items() if dims["family"] == "tokens"]
    priced = {"input_tokens", "output_tokens", *_CALLS, *dice.sample(tokens, dice.randint(0, 5))}
    while more := {name for name in tokens if name not in priced and _is_common(name, priced)}:
        priced |= more
    prices = {name: _rate(dice) for name in sorted(priced)}
    limits = sorted(dice.sample(range(1, 500_000), dice.choice((0, 0, 1, 2))))
    above = [(limit, {name: _rate(dice) for name in sorted(priced) if dice.random() < 0.7}) for limit in limits]
    return Case(tuple(atoms), prices, tuple(above), dice.choice((Fraction(1), Fraction(0), _rate(dice))))


def quota(of: Case) -> int:
    """What it costs."""
    prompt = sum(n for dims, n in of.atoms if _has(dims, "input_tokens"))
    prices = dict(of.prices)
    for limit, dearer in of.above:
        if prompt > limit:
            prices = {**of.prices, **dearer}
    usd = Fraction()
    for dims, units in of.atoms:
        name = max((name for name in prices if _has(dims, name)), key=lambda name: len(DIMS[name]))
        usd += units * prices[name] / METERS[name]["per"]
    return math.ceil(500_000 * usd * of.factor)


def _has(dims: Mapping[str, str], name: str) -> bool:
    return DIMS[name].items() <= dims.items()


def _is_common(name: str, priced: set[str]) -> bool:
    return any(
        {**DIMS[one], **DIMS[other]} == DIMS[name]
        and all(DIMS[other].get(key, value) == value for key, value in DIMS[one].items())
        for one in priced
        for other in priced
    )


def _rate(dice: Random) -> Fraction:
    return Fraction(dice.randint(0, 5000), dice.choice((1, 3, 7, 100, 1000, 997)))
