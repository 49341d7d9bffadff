"""Estimate: the most that a request can cost within its own maxima, which is what a hold sets aside.

Nothing is hoped for: no cached token is assumed, a prompt is taken to be written where writing costs more, completion
tokens to be reasoning where that does, and a prompt close to a longer tier to be in it, because a gateway's count of
tokens and the upstream's differ by some percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from billing_tasks.pricing.meter_price import MeterPrice
from billing_tasks.pricing.meters import meter, wholes_of
from billing_tasks.pricing.sheet import Prices, Sheet
from billing_tasks.pricing.usage import Usage, check_count

#: Parts of the prompt, and of the completion, that a request may turn out to be and that may cost more.
_WRITTEN = ("cache_write_tokens", "cache_write_5m_tokens")
_THOUGHT = ("output_reasoning_tokens",)
DEAREST_OF_PROMPT = ("input_tokens", *_WRITTEN)
DEAREST_OF_COMPLETION = ("output_tokens", *_THOUGHT)
#: A gateway that counts so much less than the upstream is still in the right tier: one tenth.
_NEAR = 10
#: The upstream may begin so much later than the reservation, in another window of hours.
_LATER = timedelta(hours=1)


def worst_case(
    price: MeterPrice, facts: Mapping[str, Any], prompt_tokens: int, max_tokens: int, also: Mapping[str, Any]
) -> int:
    """Quota of the dearest request within these maxima. Raises InvalidRequest for what is above 2**53, or no count."""
    return max(
        price.quota(usage, when)
        for when in _moments(price.sheet, facts)
        for prompt in _prompts(price.sheet, prompt_tokens)
        for usage in _usages(price.sheet.choose(when, prompt), prompt, max_tokens, also)
    )


def longer_by_error(prompt_tokens: int) -> int:
    """As long as the upstream may find it to be."""
    return prompt_tokens + prompt_tokens // _NEAR


def _moments(sheet: Sheet, facts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield facts
    at = facts.get("at")
    if isinstance(at, datetime) and any(variant.when.is_about_time for variant in sheet.variants):
        yield {**facts, "at": at + _LATER}


def _prompts(sheet: Sheet, prompt_tokens: int) -> Iterator[int]:
    """As it was counted, and just inside each longer tier that is near."""
    yield prompt_tokens
    tiers = (*sheet.tiers, *(tier for variant in sheet.variants for tier in variant.tiers))
    for limit in {tier.tokens for tier in tiers}:
        if prompt_tokens <= limit < longer_by_error(prompt_tokens):
            yield limit + 1


def _usages(prices: Prices, prompt: int, completion: int, also: Mapping[str, Any]) -> Iterator[Usage]:
    counts: dict[str, Any] = {}
    for whole, count, parts in (("input_tokens", prompt, _WRITTEN), ("output_tokens", completion, _THOUGHT)):
        dearer = [part for part in parts if part in prices and prices[part] > prices.get(whole, 0)]
        if whole in prices or dearer or wholes_of(whole, prices):
            counts[whole] = count
        if dearer:
            counts[max(dearer, key=lambda part: prices[part])] = count
    for name, count in also.items():
        exact = check_count(name, count)
        counts[name] = counts.get(name, 0) + exact
        for whole in ("input_tokens", "output_tokens"):  # images of a prompt whose text was counted come on top
            if whole in counts and meter(name).lies_inside(meter(whole)):
                counts[whole] += exact
    yield Usage.of(counts)
