"""Readers: a provider's own usage object as inclusive counts of meters.

What differs between the APIs is what their numbers contain. Cached tokens are inside the prompt (OpenAI, Gemini,
DeepSeek) or beside it (Anthropic, Bedrock); reasoning is inside the completion or beside it (Gemini, Perplexity, xAI's
chat API). `total_tokens` is the checksum: what contradicts it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import MAX_TOKENS, show
from billing_tasks.pricing.usage import Usage

Counts = dict[str, Any]
MODALITIES = ("text", "audio", "image", "video")


class Raw:
    """A provider's object, read field by field. None and a field that is missing are the same."""

    def __init__(self, data: object, where: str = "usage") -> None:
        self._data = _as_mapping(data, where)
        self._where = where

    @property
    def data(self) -> Mapping[str, Any]:
        """As it came, as a mapping."""
        return self._data

    def part(self, *names: str) -> Raw:
        """An object inside, by the first of these names that is there; empty if none is."""
        for name in names:
            if self._data.get(name) is not None:
                return Raw(self._data[name], f"{self._where}.{name}")
        return Raw({}, f"{self._where}.{names[0]}")

    def rows(self, *names: str) -> list[Raw]:
        """The objects of a list inside."""
        for name in names:
            found = self._data.get(name)
            if found is not None:
                if not isinstance(found, list | tuple):
                    raise InvalidRequest(f"{self._where}.{name} must be a list, got {show(found)}.")
                return [Raw(one, f"{self._where}.{name}[{number}]") for number, one in enumerate(found)]
        return []

    def word(self, *names: str) -> str:
        """A text in lower case, empty if it is missing; of an enumeration its value."""
        for name in names:
            found = self._data.get(name)
            if found is not None:
                return str(getattr(found, "value", found)).lower()
        return ""

    def has(self, *names: str) -> bool:
        """Whether one of these is there."""
        return any(self._data.get(name) is not None for name in names)

    def count(self, *names: str) -> int:
        """A number of tokens or calls, 0 if it is missing. Raises InvalidRequest for what is none."""
        for name in names:
            found = self._data.get(name)
            if found is None:
                continue
            if isinstance(found, float) and found.is_integer():
                found = int(found)
            if type(found) is not int or not 0 <= found <= MAX_TOKENS:
                raise InvalidRequest(
                    f"{self._where}.{name} must be an integer from 0 to {MAX_TOKENS}, got {show(found)}."
                )
            return found
        return 0

    def value(self, name: str) -> Any:
        """As it is."""
        return self._data.get(name)

    def demand(self, *names: str) -> None:
        """Raise InvalidRequest if none of these is there: a total alone says nothing of what it is made of."""
        if not self.has(*names):
            raise InvalidRequest(f"{self._where} has none of {', '.join(names)}; it has {sorted(self._data)}.")

    def check_total(self, counted: int, *names: str) -> None:
        """Raise InvalidRequest if the total that the provider says is another one."""
        if self.has(*names) and self.count(*names) != counted:
            raise InvalidRequest(f"{self._where}.{names[0]} is {self.count(*names)}, and its parts are {counted}.")


def read_usage(raw: object, *, style: str) -> Usage:
    """The usage that a provider's object says. `style`: the API, one of STYLES.

    `raw` is a mapping, or an object of an SDK. Raises InvalidRequest for a style that nobody knows, for counts that are
    none, that contradict each other or their total, and for an object that says nothing.
    """
    reader = STYLES.get(style)
    if reader is None:
        raise InvalidRequest(f"There is no usage of style {show(style)}; known are {', '.join(STYLES)}.")
    return Usage.of(reader(Raw(raw)))


def _chat(raw: Raw, *, reasoning_beside: bool = False) -> Counts:
    """OpenAI's chat API, and all that speak like it."""
    raw.demand("prompt_tokens", "completion_tokens")
    prompt, completion = raw.count("prompt_tokens"), raw.count("completion_tokens")
    of_prompt, of_completion = raw.part("prompt_tokens_details"), raw.part("completion_tokens_details")
    reasoning = of_completion.count("reasoning_tokens")
    if raw.has("total_tokens") and reasoning:
        inside, beside = prompt + completion, prompt + completion + reasoning
        reasoning_beside = raw.count("total_tokens") == beside or (
            reasoning_beside and raw.count("total_tokens") != inside
        )
    output = completion + reasoning if reasoning_beside else completion
    raw.check_total(prompt + output, "total_tokens")
    counts: Counts = {"input_tokens": prompt, "output_tokens": output}
    _take(counts, of_prompt, {"cached_tokens": "cache_read_tokens", "cache_write_tokens": "cache_write_tokens"})
    _take(counts, of_completion, {"reasoning_tokens": "output_reasoning_tokens"})
    for modality in MODALITIES:
        _take(counts, of_prompt, {f"{modality}_tokens": f"input_{modality}_tokens"})
        _take(counts, of_completion, {f"{modality}_tokens": f"output_{modality}_tokens"})
    return counts


def _xai(raw: Raw) -> Counts:
    return _chat(raw, reasoning_beside=True)


def _deepseek(raw: Raw) -> Counts:
    counts = _chat(raw)
    if raw.has("prompt_cache_hit_tokens"):
        hit = raw.count("prompt_cache_hit_tokens")
        if (
            raw.has("prompt_cache_miss_tokens")
            and hit + raw.count("prompt_cache_miss_tokens") != counts["input_tokens"]
        ):
            raise InvalidRequest("The usage contradicts itself: cache hits and misses are not the prompt.")
        counts["cache_read_tokens"] = hit
    return counts


def _perplexity(raw: Raw) -> Counts:
    """Reasoning and citations are beside the completion."""
    counts = _chat(raw)
    beside = {"reasoning_tokens": "output_reasoning_tokens", "citation_tokens": "output_citation_tokens"}
    _take(counts, raw, beside)
    counts["output_tokens"] += sum(raw.count(name) for name in beside)
    _take(counts, raw, {"num_search_queries": "web_searches"})
    return counts


def _responses(raw: Raw) -> Counts:
    """OpenAI's Responses API; searches are items of its output, and not here."""
    raw.demand("input_tokens", "output_tokens")
    counts: Counts = {"input_tokens": raw.count("input_tokens"), "output_tokens": raw.count("output_tokens")}
    raw.check_total(counts["input_tokens"] + counts["output_tokens"], "total_tokens")
    details = raw.part("input_tokens_details", "input_token_details")
    _take(counts, details, {"cached_tokens": "cache_read_tokens", "cache_write_tokens": "cache_write_tokens"})
    of_output = raw.part("output_tokens_details", "output_token_details")
    _take(counts, of_output, {"reasoning_tokens": "output_reasoning_tokens"})
    cached = details.part("cached_tokens_details")
    for modality in MODALITIES:
        _take(counts, details, {f"{modality}_tokens": f"input_{modality}_tokens"})
        _take(counts, of_output, {f"{modality}_tokens": f"output_{modality}_tokens"})
        _take(counts, cached, {f"{modality}_tokens": f"cache_{modality}_read_tokens"})
    return counts


def _images(raw: Raw) -> Counts:
    """OpenAI's Images API: without details all of the output is image."""
    counts = _responses(raw)
    if not any(f"output_{modality}_tokens" in counts for modality in MODALITIES):
        counts["output_image_tokens"] = counts["output_tokens"]
    return counts


def _duration(raw: Raw) -> Counts:
    """OpenAI's transcriptions, by the second."""
    raw.demand("seconds")
    return {"audio_seconds": raw.value("seconds"), "input_audio_seconds": raw.value("seconds")}


def _anthropic(raw: Raw) -> Counts:
    """Cached tokens, read and written, are beside the input."""
    raw.demand("input_tokens", "output_tokens")
    read, written = raw.count("cache_read_input_tokens"), raw.count("cache_creation_input_tokens")
    counts: Counts = {
        "input_tokens": raw.count("input_tokens") + read + written,
        "output_tokens": raw.count("output_tokens"),
    }
    _take(counts, raw, {"cache_read_input_tokens": "cache_read_tokens"})
    _take(counts, raw, {"cache_creation_input_tokens": "cache_write_tokens"})
    split = raw.part("cache_creation")
    of_5m, of_1h = split.count("ephemeral_5m_input_tokens"), split.count("ephemeral_1h_input_tokens")
    if of_5m or of_1h or not written:  # zeros beside a total occur: then the split is not known
        _take(counts, split, {"ephemeral_5m_input_tokens": "cache_write_5m_tokens"})
        _take(counts, split, {"ephemeral_1h_input_tokens": "cache_write_1h_tokens"})
    _take(counts, raw.part("output_tokens_details"), {"thinking_tokens": "output_reasoning_tokens"})
    tools = {"web_search_requests": "web_searches", "code_execution_requests": "code_executions"}
    _take(counts, raw.part("server_tool_use"), tools)
    return counts


def _bedrock(raw: Raw) -> Counts:
    """Converse: cached tokens are beside the input, written ones by time to live."""
    raw.demand("inputTokens", "outputTokens")
    read = raw.count("cacheReadInputTokens", "cacheReadInputTokenCount")
    written = raw.count("cacheWriteInputTokens", "cacheWriteInputTokenCount")
    counts: Counts = {
        "input_tokens": raw.count("inputTokens") + read + written,
        "output_tokens": raw.count("outputTokens"),
    }
    raw.check_total(counts["input_tokens"] + counts["output_tokens"], "totalTokens")
    _take(counts, raw, {"cacheReadInputTokens": "cache_read_tokens", "cacheWriteInputTokens": "cache_write_tokens"})
    for row in raw.rows("cacheDetails"):
        name = f"cache_write_{row.word('ttl')}_tokens"
        counts[name] = counts.get(name, 0) + row.count("inputTokens")
    return counts


def _gemini(raw: Raw) -> Counts:
    """Thoughts are beside the candidates, what tools put into the prompt is beside the prompt."""
    raw.demand("promptTokenCount", "prompt_token_count", "candidatesTokenCount", "candidates_token_count")
    prompt = raw.count("promptTokenCount", "prompt_token_count")
    tools = raw.count("toolUsePromptTokenCount", "tool_use_prompt_token_count")
    candidates = raw.count("candidatesTokenCount", "candidates_token_count")
    thoughts = raw.count("thoughtsTokenCount", "thoughts_token_count")
    raw.check_total(prompt + tools + candidates + thoughts, "totalTokenCount", "total_token_count")
    counts: Counts = {"input_tokens": prompt + tools, "output_tokens": candidates + thoughts}
    if raw.has("cachedContentTokenCount", "cached_content_token_count"):
        counts["cache_read_tokens"] = raw.count("cachedContentTokenCount", "cached_content_token_count")
    if raw.has("thoughtsTokenCount", "thoughts_token_count"):
        counts["output_reasoning_tokens"] = thoughts
    if raw.has("toolUsePromptTokenCount", "tool_use_prompt_token_count"):
        counts["input_tool_tokens"] = tools
    _by_modality(counts, raw.rows("promptTokensDetails", "prompt_tokens_details"), "input_{}_tokens")
    tool_rows = raw.rows("toolUsePromptTokensDetails", "tool_use_prompt_tokens_details")
    _by_modality(counts, tool_rows, "input_{}_tokens")
    _by_modality(counts, raw.rows("cacheTokensDetails", "cache_tokens_details"), "cache_{}_read_tokens")
    _by_modality(counts, raw.rows("candidatesTokensDetails", "candidates_tokens_details"), "output_{}_tokens")
    return counts


def _cohere(raw: Raw) -> Counts:
    """`billed_units` is what is billed, `tokens` is not."""
    units = raw.part("billed_units")
    units.demand("input_tokens", "output_tokens", "search_units")
    counts: Counts = {}
    billed = {"input_tokens": "input_tokens", "output_tokens": "output_tokens", "search_units": "rerank_searches"}
    _take(counts, units, billed)
    return counts


def _take(counts: Counts, raw: Raw, fields: Mapping[str, str]) -> None:
    for name, of_meter in fields.items():
        if raw.has(name):
            counts[of_meter] = raw.count(name)


def _by_modality(counts: Counts, rows: list[Raw], name: str) -> None:
    for row in rows:
        modality = row.word("modality")
        if modality in MODALITIES:  # documents and whatever comes next are priced as the whole
            of_meter = name.format(modality)
            counts[of_meter] = counts.get(of_meter, 0) + row.count("tokenCount", "token_count")


def _as_mapping(data: object, where: str) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return data
    for name in ("model_dump", "to_dict", "dict"):
        dump = getattr(data, name, None)
        if callable(dump):
            dumped = dump()
            if isinstance(dumped, Mapping):
                return dumped
    fields = getattr(data, "__dict__", None)
    if isinstance(fields, dict) and fields:
        return fields
    raise InvalidRequest(f"{where} must be a usage object, got {show(data)}.")


STYLES: Mapping[str, Callable[[Raw], Counts]] = {
    "openai-chat": _chat,
    "openai-responses": _responses,
    "openai-realtime": _responses,
    "openai-images": _images,
    "openai-duration": _duration,
    "openrouter": _chat,
    "mistral": _chat,
    "xai-chat": _xai,
    "deepseek": _deepseek,
    "perplexity": _perplexity,
    "anthropic": _anthropic,
    "bedrock": _bedrock,
    "gemini": _gemini,
    "cohere": _cohere,
}
