"""Price: the three ratios of one request, and the quota they make of its tokens.

A price is fixed when quota is reserved and travels with the reservation, so a
table that changes meanwhile does not change what this request costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Self

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import (
    MAX_QUOTA,
    MAX_TOKENS,
    check_name,
    check_quota,
    check_ratio,
    parse_ratio,
    refuse_count,
    show,
)

#: Completion tokens expected of a request that names no maximum; the reference sets aside as many.
EXPECTED_COMPLETION_TOKENS = 500


@dataclass(frozen=True, slots=True)
class Price:
    """What a token of this model costs this group.

    Raises InvalidRequest for a name or a ratio that no price can have.
    """

    model: str  # as the gateway's caller names it
    group: str  # the user's
    model_ratio: Fraction  # quota per prompt token; 1 is 2 USD per million
    completion_ratio: Fraction  # prompt tokens that a completion token costs
    group_ratio: Fraction  # the group's factor on the price

    # The ratios over one common denominator: a quota then takes two integer
    # multiplications and one division, where Fraction arithmetic takes 20 times as long.
    _per_prompt_token: int = field(init=False, repr=False, compare=False)
    _per_completion_token: int = field(init=False, repr=False, compare=False)
    _divisor: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name(self.model, field="model")
        check_name(self.group, field="group")
        for name in ("model_ratio", "completion_ratio", "group_ratio"):
            _check_exact(getattr(self, name), field=name)
        per_prompt = self.model_ratio * self.group_ratio
        per_completion = per_prompt * self.completion_ratio
        divisor = math.lcm(per_prompt.denominator, per_completion.denominator)
        object.__setattr__(self, "_per_prompt_token", int(per_prompt * divisor))
        object.__setattr__(self, "_per_completion_token", int(per_completion * divisor))
        object.__setattr__(self, "_divisor", divisor)

    @property
    def ratio(self) -> Fraction:
        """Quota per prompt token: model ratio times group ratio."""
        return self.model_ratio * self.group_ratio

    @property
    def free(self) -> bool:
        """True if every request at this price costs nothing."""
        return self._per_prompt_token == 0

    def quota(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What these tokens cost, in quota.

        ceil((prompt + completion * completion_ratio) * model_ratio * group_ratio),
        as one-api (commit 8df4a26) settles a text request, but exact. At least 1
        unless the price is free; 0 if there were no tokens at all.

        Raises InvalidRequest for a count that is no integer from 0 to 2**40, and
        for an amount above 2**53.
        """
        # Tests inline, and `type() is` because bool is an int to isinstance: this is the hot path.
        if type(prompt_tokens) is not int or not 0 <= prompt_tokens <= MAX_TOKENS:
            refuse_count(prompt_tokens, field="prompt_tokens")
        if type(completion_tokens) is not int or not 0 <= completion_tokens <= MAX_TOKENS:
            refuse_count(completion_tokens, field="completion_tokens")
        cost = prompt_tokens * self._per_prompt_token + completion_tokens * self._per_completion_token
        quota = -(-cost // self._divisor)
        if quota > MAX_QUOTA:
            check_quota(quota)
        if quota == 0 and self._per_prompt_token and (prompt_tokens or completion_tokens):
            return 1
        return quota

    def estimate(self, prompt_tokens: int, max_tokens: int | None = None) -> int:
        """Quota to set aside before the request: ceil((prompt + (max_tokens or 500) * completion_ratio) * ratio).

        Never less than what a completion of `max_tokens` will cost, so a request
        that keeps to its maximum never settles above its hold. At least 1 unless
        free. Raises InvalidRequest as `quota` does.
        """
        max_tokens = EXPECTED_COMPLETION_TOKENS if max_tokens is None else max_tokens
        if type(max_tokens) is not int or not 0 <= max_tokens <= MAX_TOKENS:
            refuse_count(max_tokens, field="max_tokens")
        return self.quota(prompt_tokens, max_tokens or EXPECTED_COMPLETION_TOKENS)

    def estimate_like_reference(self, prompt_tokens: int, max_tokens: int | None = None) -> int:
        """Quota one-api (commit 8df4a26) would set aside: int((500 + prompt + max_tokens) * ratio), cut off.

        For comparison: it leaves the completion ratio out and so often holds too
        little. Raises InvalidRequest as `quota` does.
        """
        max_tokens = 0 if max_tokens is None else max_tokens
        for name, count in (("prompt_tokens", prompt_tokens), ("max_tokens", max_tokens)):
            if type(count) is not int or not 0 <= count <= MAX_TOKENS:
                refuse_count(count, field=name)
        tokens = EXPECTED_COMPLETION_TOKENS + prompt_tokens + max_tokens
        return check_quota(tokens * self._per_prompt_token // self._divisor)

    def to_strings(self) -> dict[str, str]:
        """The price as text, ratios like "5/4"; `Price.from_strings(**strings)` is this very price."""
        return {
            "model": self.model,
            "group": self.group,
            "model_ratio": str(self.model_ratio),
            "completion_ratio": str(self.completion_ratio),
            "group_ratio": str(self.group_ratio),
        }

    @classmethod
    def from_strings(cls, *, model: str, group: str, model_ratio: str, completion_ratio: str, group_ratio: str) -> Self:
        """The price that `to_strings` wrote. Raises InvalidRequest for text that is no ratio."""
        return cls(
            model=model,
            group=group,
            model_ratio=_parse(model_ratio, field="model_ratio"),
            completion_ratio=_parse(completion_ratio, field="completion_ratio"),
            group_ratio=_parse(group_ratio, field="group_ratio"),
        )


def _check_exact(ratio: object, *, field: str) -> None:
    if not isinstance(ratio, Fraction):
        raise InvalidRequest(f"{field} must be a Fraction, got {show(ratio)}.")
    try:
        check_ratio(ratio)
    except ValueError as exc:
        raise InvalidRequest(f"{field} can't be used: {exc}.") from None


def _parse(text: str, *, field: str) -> Fraction:
    try:
        return parse_ratio(text)
    except ValueError as exc:
        raise InvalidRequest(f"{field} can't be used: {exc}.") from None
