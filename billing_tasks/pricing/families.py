"""Completion ratios of whole families of models, for names that no table lists.

The rules and their order are those of one-api (commit 8df4a26). To price one
model apart, list it under [completion] in a table; tables come before families.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from billing_tasks.pricing.exact import parse_ratio


@dataclass(frozen=True, slots=True)
class Family:
    """Names that share a completion ratio: those listed, and those that start (and end) like this."""

    ratio: Fraction
    names: frozenset[str]
    starts: str
    ends: str

    def __contains__(self, model: str) -> bool:
        if self.starts:
            return model.startswith(self.starts) and model.endswith(self.ends)
        return model in self.names


def _named(ratio: str, *names: str) -> Family:
    return Family(parse_ratio(ratio), frozenset(names), "", "")


def _starting(ratio: str, starts: str, *, ends: str = "") -> Family:
    return Family(parse_ratio(ratio), frozenset(), starts, ends)


#: The first family that contains a name gives its ratio.
FAMILIES: tuple[Family, ...] = (
    # OpenAI
    _named("3", "gpt-3.5-turbo"),
    _starting("3", "gpt-3.5", ends="0125"),
    _starting("2", "gpt-3.5", ends="1106"),
    _starting("4/3", "gpt-3.5"),
    _named("3", "gpt-4o-2024-05-13"),
    _starting("4", "gpt-4o"),
    _starting("3", "gpt-4-turbo"),
    _starting("3", "gpt-4", ends="preview"),
    _starting("2", "gpt-4"),
    _starting("4", "o1"),
    _named("3", "chatgpt-4o-latest"),
    # Anthropic
    _starting("5", "claude-3"),
    _starting("3", "claude-"),
    # Mistral, Google, DeepSeek
    _starting("3", "mistral-"),
    _starting("3", "gemini-"),
    _starting("2", "deepseek-"),
    # Groq
    _named("0.8/0.64", "llama2-70b-4096"),
    _named("2", "llama3-8b-8192"),
    _named("0.79/0.59", "llama3-70b-8192"),
    # Cohere
    _named("2", "command", "command-light", "command-nightly", "command-light-nightly"),
    _named("3", "command-r"),
    _named("5", "command-r-plus"),
    # xAI
    _named("3", "grok-beta"),
    # Replicate
    _named("25/3", "ibm-granite/granite-3.0-2b-instruct"),
    _named(
        "5",
        "ibm-granite/granite-20b-code-instruct-8k",
        "ibm-granite/granite-3.0-8b-instruct",
        "ibm-granite/granite-8b-code-instruct-128k",
    ),
    _named(
        "5",
        "meta/llama-2-7b",
        "meta/llama-2-7b-chat",
        "meta/llama-2-13b",
        "meta/llama-2-13b-chat",
        "meta/meta-llama-3-8b",
        "meta/meta-llama-3-8b-instruct",
    ),
    _named(
        "2.75/0.65",
        "meta/llama-2-70b",
        "meta/llama-2-70b-chat",
        "meta/meta-llama-3-70b",
        "meta/meta-llama-3-70b-instruct",
    ),
    _named("1", "meta/meta-llama-3.1-405b-instruct"),
    _named("5", "mistralai/mistral-7b-instruct-v0.2", "mistralai/mistral-7b-v0.1"),
    _named("1/0.3", "mistralai/mixtral-8x7b-instruct-v0.1"),
)

#: Completion tokens of any other model cost what its prompt tokens cost.
OTHERWISE = Fraction(1)


def has_family(model: str) -> bool:
    """Whether a family's ratio is what `family_completion_ratio` says."""
    return any(model in family for family in FAMILIES)


def family_completion_ratio(model: str) -> Fraction:
    """The completion ratio of the first family the name belongs to, else 1."""
    for family in FAMILIES:
        if model in family:
            return family.ratio
    return OTHERWISE
