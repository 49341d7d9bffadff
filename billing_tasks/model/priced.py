"""Priced: what a ConsumeLog says of a usage and the price that was fixed for it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from billing_tasks.model.ids import reserved_at_ms
from billing_tasks.pricing import Price, Usage

_COLUMNS = ("input_tokens", "output_tokens")


def of_text(price: Price, prompt_tokens: int, completion_tokens: int) -> dict[str, Any] | None:
    """Fields of a request of text alone; None: `of_usage` has to say more."""
    if not price.is_plain(prompt_tokens) or price.cost is not None:
        return None
    return {
        "quota": price.quota(prompt_tokens, completion_tokens),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        **words_of(price),
        **_kept(price, {}, {}),
    }


def of_usage(price: Price, usage: Usage, facts: Mapping[str, Any], request_id: str) -> dict[str, Any]:
    """Fields of whatever was used: counts, quota, cost, and what chose among the prices.

    A price that goes by time counts from the moment of the reservation, which the request_id has. Raises InvalidRequest
    if units were used that have no price, and for an amount above 2**53.
    """
    known = when_reserved(price, facts, request_id)
    tier, fitting = price.choice_of(usage, known)
    chosen: dict[str, Any] = {}
    if tier is not None:
        chosen["tier"] = price.list_sheet.tiers[tier].tokens
    if fitting:
        chosen["variants"] = [number for number, _ in fitting]
    return {
        "quota": price.quota_of(usage, known),
        **counts_of(usage),
        "cost": price.cost_of(usage, known),
        **words_of(price),
        **_kept(price, facts, chosen),
    }


def when_reserved(price: Price, facts: Mapping[str, Any], request_id: str) -> Mapping[str, Any]:
    """The facts, and the moment that the request_id has, if the price needs one and nobody said another."""
    if not price.goes_by_time or "at" in facts or "at" in price.facts:
        return facts
    return {**facts, "at": datetime.fromtimestamp(reserved_at_ms(request_id) / 1000, UTC)}


def counts_of(usage: Usage) -> dict[str, Any]:
    """Fields of the counts. Of parts that are 0 nothing is said: they cost nothing, whatever their price."""
    return {
        "prompt_tokens": usage.get("input_tokens"),
        "completion_tokens": usage.get("output_tokens"),
        "meters": {name: count for name, count in usage.counts.items() if count and name not in _COLUMNS} or None,
    }


def words_of(price: Price) -> dict[str, Any]:
    """The reference's words for it."""
    return {
        "model_name": price.model,
        "group": price.group,
        "model_ratio": str(price.model_ratio),
        "completion_ratio": str(price.completion_ratio),
        "group_ratio": str(price.group_ratio),
    }


def _kept(price: Price, facts: Mapping[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """What the list does not say, so that the charge can be explained from its entry and its list alone."""
    made = dict(chosen)
    if price.facts or facts:
        made["facts"] = {name: _text(value) for name, value in {**price.facts, **facts}.items()}
    if price.factors:
        made["factors"] = [factor.data() for factor in price.factors]
    if price.of_user_group:
        made["user_group"] = price.user_group
    if price.channel_type is not None:
        made["channel_type"] = price.channel_type
    if price.version is None and price.sheet is not None:
        made["sheet"] = price.sheet.data()
    return {"price_version": price.version, "price": made} if made else {"price_version": price.version}


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
