"""What a request has used so far, put together from what its upstream says now and then.

Streams report in pieces: OpenAI all of it at the end, Anthropic the prompt first and the completion last, others
totals that grow. So a value replaces the one before it, and what is left out or None leaves it as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.ids import shorten
from billing_tasks.pricing.exact import MAX_QUOTA, MAX_TOKENS

_COUNTS = {"prompt_tokens": MAX_TOKENS, "completion_tokens": MAX_TOKENS, "quota": MAX_QUOTA}


class UsageSoFar:
    """The last good word on each value. `decreases`: what a count once was, if it became less."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.decreases: dict[str, int] = {}

    @property
    def known(self) -> bool:
        """True if any value was told."""
        return bool(self.values)

    def merge(self, given: Mapping[str, Any]) -> list[str]:
        """Take what can be read; returns what is wrong with the rest, a sentence each."""
        problems = []
        for name, value in given.items():
            if value is None:
                continue
            try:
                self._take(name, value)
            except ValueError as exc:
                problems.append(str(exc))
        return problems

    def _take(self, name: str, value: Any) -> None:
        if name in _COUNTS:
            count = whole_number(name, value, _COUNTS[name])
            before = self.values.get(name, 0)
            if count < before:
                self.decreases[name] = max(self.decreases.get(name, 0), before)
            self.values[name] = count
        elif name == "usage":
            if not isinstance(value, Mapping):
                raise ValueError(f"usage must be a dict, got {shorten(value)}.")
            told = {key: part for key, part in value.items() if part is not None}
            self.values[name] = {**self.values.get(name, {}), **told}
        else:
            self.values[name] = value

    def copy(self) -> UsageSoFar:
        """To go back to."""
        made = UsageSoFar()
        made.values, made.decreases = dict(self.values), dict(self.decreases)
        return made


def whole_number(name: str, value: Any, highest: int) -> int:
    """A count from 0 on, as JSON of other languages may write it: 20000.0 is 20000. Raises ValueError."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if type(value) is not int:
        raise ValueError(f"{name} must be a whole number, got {shorten(value)}.")
    if not 0 <= value <= highest:
        raise ValueError(f"{name} must be from 0 to {highest}, got {shorten(value)}.")
    return value


def refuse(problems: list[str]) -> InvalidRequest:
    """The error for what could not be read."""
    return InvalidRequest(f"{' '.join(problems)} What was handed over before stands.")
