"""Groups: what a group of users pays of the price, and what some users pay in another group."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import parse_ratio


def group_ratio(
    used_group: str,
    *,
    user_group: str,
    ratios: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Fraction:
    """The factor for a request in `used_group` by a user of `user_group`.

    An override for this pair replaces the group's ratio and does not multiply it. A group without a ratio has 1.
    Raises InvalidRequest for a ratio that none can be.
    """
    found = (overrides or {}).get(user_group, {}).get(used_group, ratios.get(used_group, 1))
    try:
        return parse_ratio(found)
    except ValueError as exc:
        raise InvalidRequest(f"The ratio of group {used_group!r} can't be used: {exc}.") from None
