"""Recognize: whose answer an object is, by the SDK that made it or by the names in it; and the facts that it tells.

For gateways that pass an answer on and do not say whose it is. The names decide only between APIs that call the same
things by other names; what the numbers contain is `readers.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from billing_tasks.pricing.readers import Raw

_SDKS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "google",
    "litellm": "litellm",
    "pydantic_ai": "pydantic-ai",
    "mistralai": "mistral",
    "cohere": "cohere",
}
_OF_ANTHROPIC = ("cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation", "server_tool_use")
_OF_OPENAI = (
    *("total_tokens", "input_tokens_details", "output_tokens_details", "input_token_details", "output_token_details"),
    "seconds",
)
#: Words that a provider says of how it served the request, where a price may go by them.
_FACTS = ("service_tier", "speed")


#: Where the usage of an answer, or of an event, is; and what a usage object has.
_SAYING = (
    *("usage", "usageMetadata", "usage_metadata", "message", "response", "metadata", "meta", "billed_units", "seconds"),
    *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"),
    *("promptTokenCount", "prompt_token_count", "inputTokens", "outputTokens"),
)


def may_say(answer: object) -> bool:
    """Whether it is worth reading: nearly all events of a stream say nothing of usage, and reading takes a while."""
    if isinstance(answer, str | bytes | int | float | list | tuple):
        return True  # it is no answer at all, which reading will tell
    if isinstance(answer, Mapping):
        return any(answer.get(name) is not None for name in _SAYING)
    return any(getattr(answer, name, None) is not None for name in _SAYING)


def provider_of(answer: object) -> str | None:
    """One of PROVIDERS; None: nothing in it says anything of usage."""
    sdk = _SDKS.get(type(answer).__module__.partition(".")[0])
    if sdk is not None:
        return sdk
    raw = Raw(answer, "answer")
    if raw.has("usageMetadata", "usage_metadata", "promptTokenCount", "prompt_token_count"):
        return "google"
    if raw.has("meta") and raw.part("meta").has("billed_units"):
        return "cohere"
    for inner in (raw, raw.part("response"), raw.part("message"), raw.part("metadata")):
        usage = inner.part("usage") if inner.has("usage") else inner
        found = _by_names(usage)
        if found is not None:
            return found
    return None


def _by_names(usage: Raw) -> str | None:
    if usage.has("inputTokens", "outputTokens"):
        return "bedrock"
    if usage.has("billed_units"):
        return "cohere"
    if usage.has("prompt_cache_hit_tokens"):
        return "deepseek"
    if usage.has("citation_tokens", "num_search_queries"):
        return "perplexity"
    if usage.has("prompt_tokens", "completion_tokens"):
        return "litellm" if usage.has(*_OF_ANTHROPIC) else "openai"
    if usage.has("input_tokens", "output_tokens", "seconds"):
        # OpenAI says a total, Anthropic never does.
        return "openai" if usage.has(*_OF_OPENAI) and not usage.has(*_OF_ANTHROPIC) else "anthropic"
    return None


def facts_of(answer: object) -> Mapping[str, Any]:
    """What the answer says of how it was served: {"service_tier": "priority"}; nothing if it says nothing."""
    raw = Raw(answer, "answer")
    found = {}
    for inner in (raw, raw.part("usage"), raw.part("response"), raw.part("message")):
        for name in _FACTS:
            if isinstance(inner.value(name), str):
                found[name] = inner.word(name)
    if found.get("service_tier") == "batch":  # Anthropic's word for it
        found["processing"] = "batch"
    return found
