"""Whole answers, and streams of them."""

from __future__ import annotations

from typing import Any

import pytest

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing import PROVIDERS, Stream, from_response

CHAT = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
OF_CHAT = {"input_tokens": 10, "output_tokens": 5}


def counts(answer: Any, provider: str) -> dict[str, Any]:
    return dict(from_response(answer, provider=provider).counts)


@pytest.mark.parametrize(
    ("provider", "answer", "found"),
    [
        ("openai", {"id": "chatcmpl-1", "usage": CHAT}, OF_CHAT),
        ("openai", CHAT, OF_CHAT),
        ("azure", {"usage": CHAT}, OF_CHAT),
        ("deepseek", {"usage": {**CHAT, "prompt_cache_hit_tokens": 4}}, {**OF_CHAT, "cache_read_tokens": 4}),
        (
            "openai",
            {
                "output": [{"type": "web_search_call"}, {"type": "message"}, {"type": "web_search_call"}],
                "usage": {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 2}},
            },
            {**OF_CHAT, "cache_read_tokens": 2, "web_searches": 2},
        ),
        (
            "openai",
            {"data": [{"b64_json": ""}], "usage": {"input_tokens": 10, "output_tokens": 5}},
            {**OF_CHAT, "output_image_tokens": 5},
        ),
        (
            "openai",
            {"text": "hello", "usage": {"type": "duration", "seconds": 9}},
            {"audio_seconds": 9, "input_audio_seconds": 9},
        ),
        (
            "anthropic",
            {"usage": {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 7}},
            {**OF_CHAT, "cache_read_tokens": 7},
        ),
        ("gemini", {"usage_metadata": {"prompt_token_count": 10, "candidates_token_count": 5}}, OF_CHAT),
        ("google", {"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5}}, OF_CHAT),
        ("bedrock", {"metadata": {"usage": {"inputTokens": 10, "outputTokens": 5}}}, OF_CHAT),
        ("cohere", {"meta": {"billed_units": {"input_tokens": 10.0, "output_tokens": 5}}}, OF_CHAT),
        (
            "litellm",
            {"usage": {**CHAT, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 0}},
            {**OF_CHAT, "cache_write_tokens": 4},
        ),
        (
            "pydantic-ai",
            {"input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 2, "details": {}},
            {**OF_CHAT, "cache_read_tokens": 2},
        ),
    ],
)
def test_an_answer_is_read(provider: str, answer: Any, found: dict[str, Any]) -> None:
    assert counts(answer, provider) == found


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("answer", [None, {}, {"usage": None}, {"usage": []}, {"usage": {}}, "text", 5])
def test_an_answer_without_usage_is_refused(provider: str, answer: Any) -> None:
    with pytest.raises(InvalidRequest):
        from_response(answer, provider=provider)


def test_a_provider_that_nobody_knows_is_told_with_those_that_are() -> None:
    with pytest.raises(InvalidRequest, match="There is no provider 'acme'; known are openai, azure"):
        from_response({"usage": CHAT}, provider="acme")
    with pytest.raises(InvalidRequest, match="There is no provider"):
        Stream("acme")


def test_a_later_event_of_anthropics_replaces_what_it_names() -> None:
    stream = Stream("anthropic")
    stream.add({"type": "message_start", "message": {"usage": {"input_tokens": 8, "output_tokens": 1}}})
    stream.add({"type": "content_block_delta", "delta": {"text": "hello"}})
    stream.add({"type": "message_delta", "usage": {"output_tokens": 300, "cache_read_input_tokens": None}})
    stream.add({"type": "message_delta", "usage": {"output_tokens": 500}})
    assert stream.usage is not None
    assert dict(stream.usage.counts) == {"input_tokens": 8, "output_tokens": 500}


def test_the_last_chunk_of_a_chat_counts() -> None:
    stream = Stream("openai")
    for usage in (None, CHAT, {**CHAT, "completion_tokens": 9, "total_tokens": 19}, None):
        stream.add({"choices": [], "usage": usage})
    assert stream.usage is not None
    assert dict(stream.usage.counts) == {"input_tokens": 10, "output_tokens": 9}


def test_the_answers_of_a_realtime_session_sum() -> None:
    stream = Stream("openai")
    for tokens in (100, 250):
        usage = {"input_tokens": tokens, "output_tokens": 5, "input_token_details": {"audio_tokens": tokens}}
        stream.add({"type": "response.done", "response": {"usage": usage}})
    assert stream.usage is not None
    assert dict(stream.usage.counts) == {"input_tokens": 350, "input_audio_tokens": 350, "output_tokens": 10}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_of_what_can_not_be_read_the_last_good_usage_stays(provider: str) -> None:
    good = CHAT if provider == "openai" else {"input_tokens": 10, "output_tokens": 5}
    bad = {**good, "completion_tokens": -1, "output_tokens": -1}
    stream = Stream(provider)
    stream.add({"usage": good})
    with pytest.raises(InvalidRequest):
        stream.add({"usage": bad})
    assert stream.usage is not None
    assert dict(stream.usage.counts) == OF_CHAT
    stream.add({"usage": good})
    assert dict(stream.usage.counts) == OF_CHAT
