"""Responses: whole answers of providers, and streams of them, as usage.

An answer has a usage object, and some have what no usage object counts: searches are items of what OpenAI answers. Of a
stream most APIs say it all at the end, or again and again; OpenAI Realtime bills each answer of a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import show
from billing_tasks.pricing.readers import MODALITIES, Raw, read_usage
from billing_tasks.pricing.recognize import provider_of
from billing_tasks.pricing.usage import Usage

#: Items of the output of OpenAI's Responses API that cost by the call.
_CALLS = {
    "web_search_call": "web_searches",
    "file_search_call": "storage_searches",
    "code_interpreter_call": "code_executions",
    "image_generation_call": "image_generations",
}


def from_openai(answer: object) -> Usage:
    """Of an answer of OpenAI's, or its usage: chat, Responses, Realtime, Images or a transcription by the second."""
    whole = Raw(answer, "answer")
    whole = whole.part("response") if whole.has("response") else whole  # an event of a stream
    usage = whole.part("usage") if whole.has("usage") else whole
    found = read_usage(usage.data, style=_style_of_openai(whole, usage))
    calls: dict[str, int] = {}
    for item in whole.rows("output") if whole.has("output") else []:
        if (name := _CALLS.get(item.word("type"))) is not None:
            calls[name] = calls.get(name, 0) + 1
    return found.also(calls) if calls else found


def _style_of_openai(whole: Raw, usage: Raw) -> str:
    if usage.word("type") == "duration" or (usage.has("seconds") and not usage.has("input_tokens")):
        return "openai-duration"
    if usage.has("prompt_tokens", "completion_tokens"):
        return "openai-chat"
    if usage.has("input_token_details", "output_token_details"):
        return "openai-realtime"
    details = usage.part("input_tokens_details")
    is_image = whole.has("data") or (details.has("image_tokens") and not details.has("cached_tokens"))
    return "openai-images" if is_image else "openai-responses"


def from_anthropic(answer: object) -> Usage:
    """Of a message of Anthropic's, or its usage."""
    return _of(answer, "anthropic", "usage")


def from_gemini(answer: object) -> Usage:
    """Of an answer of Gemini's, or its usage metadata."""
    return _of(answer, "gemini", "usageMetadata", "usage_metadata")


def from_bedrock(answer: object) -> Usage:
    """Of an answer of Bedrock's Converse, the `metadata` event of its stream, or their usage."""
    raw = Raw(answer, "answer")
    return _of(raw.part("metadata").data if raw.has("metadata") else raw.data, "bedrock", "usage")


def from_pydantic_ai(usage: object) -> Usage:
    """Of pydantic-ai's RequestUsage, which is inclusive and has meters' names almost."""
    raw = Raw(usage)
    raw = raw.part("usage") if raw.has("usage") else raw
    raw.demand("input_tokens", "output_tokens")
    names: tuple[str, ...] = (
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cache_audio_read_tokens",
    )
    names += tuple(f"{side}_{modality}_tokens" for side in ("input", "output") for modality in MODALITIES)
    return Usage.of({name: raw.count(name) for name in names if raw.count(name)} or {"input_tokens": 0})


def from_litellm(answer: object) -> Usage:
    """Of an answer of litellm's, or its Usage: the chat API's, with what Anthropic wrote into its cache beside."""
    raw = Raw(answer, "answer")
    raw = raw.part("usage") if raw.has("usage") else raw
    found = read_usage(raw.data, style="openai-chat")
    more = {"cache_read_input_tokens": "cache_read_tokens", "cache_creation_input_tokens": "cache_write_tokens"}
    return found.also({meter: raw.count(name) for name, meter in more.items() if raw.count(name)})


def _chat_like(style: str) -> Callable[[object], Usage]:
    return lambda answer: _of(answer, style, "usage")


def _of(answer: object, style: str, *names: str) -> Usage:
    raw = Raw(answer, "answer")
    return read_usage(raw.part(*names).data if raw.has(*names) else raw.data, style=style)


PROVIDERS: Mapping[str, Callable[[object], Usage]] = {
    "openai": from_openai,
    "azure": from_openai,
    "anthropic": from_anthropic,
    "google": from_gemini,
    "gemini": from_gemini,
    "bedrock": from_bedrock,
    "deepseek": _chat_like("deepseek"),
    "xai": _chat_like("xai-chat"),
    "mistral": _chat_like("mistral"),
    "openrouter": _chat_like("openrouter"),
    "perplexity": _chat_like("perplexity"),
    "cohere": lambda answer: _of(answer, "cohere", "meta", "usage"),
    "litellm": from_litellm,
    "pydantic-ai": from_pydantic_ai,
}


def from_response(answer: object, *, provider: str | None = None) -> Usage:
    """The usage of an answer, whole or the last of a stream. `provider`: one of PROVIDERS; None: it is recognized.

    Raises InvalidRequest for a provider that is not known, and as `read_usage`.
    """
    if provider is None:
        provider = provider_of(answer)
        if provider is None:
            raise InvalidRequest(f"Nothing of it is known as usage: {show(answer)}. Say whose it is by `provider`.")
    reader = PROVIDERS.get(provider)
    if reader is None:
        raise InvalidRequest(f"There is no provider {show(provider)}; known are {', '.join(PROVIDERS)}.")
    return reader(answer)


class Stream:
    """The usage of a stream, event by event: `add` each of them, in order; `usage` is what is known so far.

    Of Anthropic's events a later one replaces what it names and keeps the rest; OpenAI Realtime's answers sum; of all
    others the last one that has a usage counts. An event without one changes nothing.
    """

    def __init__(self, provider: str | None = None) -> None:
        """`provider` None: each event that has a usage is recognized."""
        if provider is not None and provider not in PROVIDERS:
            raise InvalidRequest(f"There is no provider {show(provider)}; known are {', '.join(PROVIDERS)}.")
        self._provider = provider
        self._fields: dict[str, Any] = {}  # Anthropic's
        self.usage: Usage | None = None

    def add(self, event: object) -> None:
        """One more. Raises InvalidRequest for a usage that can't be read: `usage` stays the last good one."""
        raw = Raw(event, "event")
        provider = self._provider or provider_of(event)
        if provider == "anthropic":
            self._add_of_anthropic(raw)
        elif raw.word("type") == "response.done":
            found = from_openai(event)
            self.usage = found if self.usage is None else self.usage + found
        elif provider is not None and (_has_usage(raw) or self._provider is None):
            self.usage = from_response(event, provider=provider)

    def _add_of_anthropic(self, raw: Raw) -> None:
        part = raw.part("message") if raw.has("message") else raw
        if part.has("usage"):
            told = part.part("usage").data
        elif part.has("input_tokens", "output_tokens"):
            told = part.data  # the usage alone
        else:
            return
        fields = {**self._fields, **{name: value for name, value in told.items() if value is not None}}
        if "output_tokens" in fields or "input_tokens" in fields:
            self.usage = read_usage(fields, style="anthropic")
        self._fields = fields


def _has_usage(raw: Raw) -> bool:
    whole = raw.part("response") if raw.has("response") else raw
    return whole.has("usage", "usageMetadata", "usage_metadata", "metadata")
