"""Usage objects of providers: what is inside what, what contradicts itself, and the objects of their SDKs."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.readers import STYLES, read_usage


class Dumps:
    """As pydantic's objects of the SDKs of OpenAI, Anthropic and Google."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def model_dump(self) -> dict[str, Any]:
        return self.fields


class Plain:
    """Attributes alone."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


class Modality(Enum):
    TEXT = "TEXT"
    AUDIO = "AUDIO"


def counts(raw: Any, style: str) -> dict[str, Any]:
    return dict(read_usage(raw, style=style).counts)


@pytest.mark.parametrize("kind", [dict, Dumps, Plain])
def test_an_object_of_an_sdk_is_read_like_its_json(kind: Any) -> None:
    details = kind(cached_tokens=6, audio_tokens=None)
    raw = kind(prompt_tokens=10, completion_tokens=5.0, total_tokens=15, prompt_tokens_details=details, cost=0.1)
    assert counts(raw, "openai-chat") == {"input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 6}


def test_an_enumeration_of_an_sdk_is_its_value() -> None:
    rows = [Plain(modality=Modality.TEXT, token_count=4), Plain(modality=Modality.AUDIO, token_count=6)]
    raw = Plain(prompt_token_count=10, candidates_token_count=None, prompt_tokens_details=rows, total_token_count=10)
    assert counts(raw, "gemini") == {
        "input_tokens": 10,
        "output_tokens": 0,
        "input_text_tokens": 4,
        "input_audio_tokens": 6,
    }


@pytest.mark.parametrize(("total", "output"), [(15, 5), (18, 8), (None, 5)])
def test_the_total_tells_whether_reasoning_is_inside(total: int | None, output: int) -> None:
    raw = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 3}}
    assert counts({**raw, "total_tokens": total}, "openai-chat")["output_tokens"] == output


def test_without_a_total_xai_has_reasoning_beside() -> None:
    raw = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 3}}
    assert counts(raw, "xai-chat")["output_tokens"] == 8
    assert counts({**raw, "total_tokens": 15}, "xai-chat")["output_tokens"] == 5


def test_a_split_of_zeros_beside_a_total_says_nothing() -> None:
    split = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
    raw = {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 7, "cache_creation": split}
    assert counts(raw, "anthropic") == {"input_tokens": 8, "output_tokens": 2, "cache_write_tokens": 7}


@pytest.mark.parametrize(
    ("style", "raw", "told"),
    [
        ("openai-chat", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 16}, "total_tokens is 16"),
        ("openai-chat", {"total_tokens": 15}, "usage has none of prompt_tokens, completion_tokens"),
        ("openai-chat", {}, "usage has none of"),
        ("openai-chat", {"prompt_tokens": True, "completion_tokens": 5}, "usage.prompt_tokens must be an integer"),
        ("openai-chat", {"prompt_tokens": "10"}, "usage.prompt_tokens must be an integer"),
        (
            "openai-chat",
            {"prompt_tokens": 1, "prompt_tokens_details": 5},
            "prompt_tokens_details must be a usage",
        ),
        (
            "anthropic",
            {"input_tokens": 10, "cache_read_input_tokens": -5},
            "cache_read_input_tokens must be",
        ),
        ("gemini", {"promptTokenCount": 5, "totalTokenCount": 9, "candidatesTokenCount": 1}, "totalTokenCount is 9"),
        ("gemini", {"promptTokenCount": 5, "promptTokensDetails": {}}, "promptTokensDetails must be a list"),
        ("bedrock", {"inputTokens": 1, "outputTokens": 1, "totalTokens": 9}, "totalTokens is 9"),
        ("bedrock", {"inputTokens": 1, "cacheDetails": [{"ttl": "9d", "inputTokens": 1}]}, "cache_write_9d_tokens"),
        ("cohere", {"tokens": {"input_tokens": 5}}, "usage.billed_units has none of"),
        ("openai", {}, "There is no usage of style 'openai'; known are openai-chat"),
    ],
)
def test_what_can_not_be_read_says_what_and_where(style: str, raw: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        read_usage(raw, style=style)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("raw", [None, 5, "usage", [], object()])
def test_what_is_no_object_is_refused(style: str, raw: Any) -> None:
    with pytest.raises(InvalidRequest):
        read_usage(raw, style=style)
