"""Usage: how much of which meter one request used. Counts are inclusive: input_tokens has the cached ones in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Self

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import MAX_TOKENS, parse_ratio, show
from billing_tasks.pricing.meters import groups_of_parts, meter, meters

Count = int | Fraction


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used, by the names of meters. Made by `Usage.of`, which checks it."""

    counts: Mapping[str, Count]

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Self:
        """Usage of these counts: integers from 0 to 2**40; seconds may be exact fractions ("1.5").

        A whole that was not counted has at least what its parts have. Raises InvalidRequest for a meter that nobody
        defined, for a count that is none, and for counts that contradict each other: a part above its whole, or parts
        without a common unit that sum to more than it.
        """
        checked: dict[str, Count] = {}
        for name, value in counts.items():
            # Inline, because this is the hot path, and `type() is` because bool is an int to isinstance.
            checked[name] = value if type(value) is int and 0 <= value <= MAX_TOKENS else check_count(name, value)
        for whole, groups in _shape(tuple(checked)):
            least = max([sum([checked[part] for part in group]) for group in groups])
            if checked.setdefault(whole, least) < least:
                raise _contradiction(whole, checked, groups)
        return cls(checked)

    @staticmethod
    def from_response(answer: object, *, provider: str | None = None) -> Usage:
        """Of an answer of a provider's, whole or the last of a stream, or of its usage object alone.

        `provider`: one of PROVIDERS; left out, it is recognized. Raises InvalidRequest for what can't be read.
        """
        from billing_tasks.pricing.responses import from_response  # noqa: PLC0415 - it makes Usage

        return from_response(answer, provider=provider)

    @staticmethod
    def from_openai(answer: object) -> Usage:
        """Of OpenAI's chat, Responses, Realtime, Images or a transcription. Raises InvalidRequest."""
        return Usage.from_response(answer, provider="openai")

    @staticmethod
    def from_anthropic(answer: object) -> Usage:
        """Of a message of Anthropic's, or its usage. Raises InvalidRequest."""
        return Usage.from_response(answer, provider="anthropic")

    @staticmethod
    def from_gemini(answer: object) -> Usage:
        """Of an answer of Gemini's, or its usage metadata. Raises InvalidRequest."""
        return Usage.from_response(answer, provider="gemini")

    @staticmethod
    def from_bedrock(answer: object) -> Usage:
        """Of an answer of Bedrock's Converse, or its usage. Raises InvalidRequest."""
        return Usage.from_response(answer, provider="bedrock")

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def get(self, name: str) -> Count:
        """How much of this meter; 0 if it was not counted."""
        return self.counts.get(name, 0)

    def also(self, counts: Mapping[str, Any]) -> Usage:
        """This usage and what its object does not say: searches, images, cached tokens that another answer told."""
        return Usage.of({**self.counts, **counts})

    def __add__(self, other: Usage) -> Usage:
        """The usage of both: for an API that bills each of its parts (OpenAI Realtime), and no cumulative stream."""
        names = [*self.counts, *(name for name in other.counts if name not in self.counts)]
        return Usage.of({name: self.get(name) + other.get(name) for name in names})


def check_count(name: str, value: Any) -> Count:
    """A count of that meter; a float that is a whole number is that number. Raises InvalidRequest."""
    of = meter(name)
    if type(value) is int:
        exact: Count = value
    elif isinstance(value, float) and value.is_integer():
        exact = int(value)
    elif of.is_counted_in_time and isinstance(value, str | Fraction | Decimal | float):
        exact = _seconds(name, value)
    else:
        raise InvalidRequest(f"{name} must be an integer from 0 to {MAX_TOKENS}, got {show(value)}.")
    if not 0 <= exact <= MAX_TOKENS:
        raise InvalidRequest(f"{name} must be from 0 to {MAX_TOKENS}, got {show(value)}.")
    return exact


def _seconds(name: str, value: str | Fraction | Decimal | float) -> Count:
    try:
        # A float is what JSON made of the digits that an upstream wrote; its shortest text has them again.
        exact = value if isinstance(value, Fraction) else parse_ratio(str(value))
    except ValueError as exc:
        raise InvalidRequest(f"{name} must be seconds, got {show(value)}: {exc}.") from None
    return int(exact) if exact.denominator == 1 else exact


#: Names come from outside, so not without a bound.
@lru_cache(1024)
def _shape(names: tuple[str, ...]) -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
    """Of meters that were counted: their wholes, most specific first, each with the groups of its parts.

    Raises InvalidRequest for a meter that nobody defined.
    """
    found: list[tuple[str, tuple[tuple[str, ...], ...]]] = []
    known = frozenset(names)
    wholes = {whole for whole in (*meters(), *names) if any(meter(name).lies_inside(meter(whole)) for name in names)}
    for whole in sorted(wholes, key=lambda name: (-len(meter(name).dims), name)):
        found.append((whole, groups_of_parts(whole, known)))
        known |= {whole}
    for name in names:
        meter(name)
    return tuple(found)


def _contradiction(whole: str, counts: Mapping[str, Count], groups: Sequence[Sequence[str]]) -> InvalidRequest:
    worst = max(groups, key=lambda group: sum(counts[part] for part in group))
    parts = " + ".join(f"{part} {counts[part]}" for part in worst)
    return InvalidRequest(f"The usage contradicts itself: {parts} is more than {whole} {counts[whole]}.")
