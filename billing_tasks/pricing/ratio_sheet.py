"""Ratios as a sheet: one-api's model and completion ratio, and what new-api adds to them.

Ratio 1 is 2 USD per 1M prompt tokens. A completion token costs the completion ratio of that; a cached one the cache
ratio, a written one the create ratio (written for an hour: 1.6 times that, as Anthropic has it), one of an image the
image ratio (new-api, service/text_quota.go).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import parse_ratio
from billing_tasks.pricing.sheet import Sheet

_USD_OF_RATIO_1 = 2
_HOUR_OVER_5_MINUTES = Fraction(8, 5)


def sheet_of_ratios(
    *,
    model_ratio: Any,
    completion_ratio: Any,
    cache_ratio: Any = None,
    create_ratio: Any = None,
    image_ratio: Any = None,
) -> Sheet:
    """The sheet whose prices these ratios are. Raises InvalidRequest for a ratio that none can be."""
    ratios = {
        "model_ratio": model_ratio,
        "completion_ratio": completion_ratio,
        "cache_ratio": cache_ratio,
        "create_ratio": create_ratio,
        "image_ratio": image_ratio,
    }
    read = {name: _read(value, name) for name, value in ratios.items() if value is not None}
    per_prompt = _USD_OF_RATIO_1 * read["model_ratio"]
    prices = {"input_tokens": per_prompt, "output_tokens": per_prompt * read["completion_ratio"]}
    if "cache_ratio" in read:
        prices["cache_read_tokens"] = per_prompt * read["cache_ratio"]
    if "create_ratio" in read:
        prices["cache_write_tokens"] = per_prompt * read["create_ratio"]
        prices["cache_write_1h_tokens"] = prices["cache_write_tokens"] * _HOUR_OVER_5_MINUTES
    if read.get("image_ratio", 1) != 1:
        prices["input_image_tokens"] = per_prompt * read["image_ratio"]
        prices["cache_image_read_tokens"] = prices.get("cache_read_tokens", per_prompt)
    return Sheet(prices)


def _read(value: Any, name: str) -> Fraction:
    try:
        return parse_ratio(value)
    except ValueError as exc:
        raise InvalidRequest(f"{name} can't be used: {exc}.") from None
