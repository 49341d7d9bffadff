"""Mixed: answers as today's upstreams send them: caches read and written, reasoning, searches, images, audio.

Each is of the API of the model's provider, and follows from the seed and the request's row alone.
"""

from __future__ import annotations

import random
from typing import Any

from billing_tasks.lab.replay.plan import PlanRow


def answer_of(row: PlanRow, model: str, seed: int) -> dict[str, Any]:
    """What the upstream answers: an object with the usage of so many prompt and completion tokens."""
    dice = random.Random(f"answer:{seed}:{row.row}")
    prompt, completion = row.prompt_tokens, row.completion_tokens
    cached = int(prompt * dice.choice((0, 0, 0.5, 0.9)))
    thought = int(completion * dice.choice((0, 0.3, 0.8)))
    searches = dice.choice((0, 0, 0, 1, 2))
    if model.startswith("claude"):
        return _anthropic(prompt, completion, cached, searches, written=int((prompt - cached) * dice.choice((0, 0.5))))
    if model.startswith("gemini"):
        return _gemini(prompt, completion, cached, thought, audio=int((prompt - cached) * dice.choice((0, 0.2))))
    if "image" in model:
        return _images(prompt, completion, pictured=int(prompt * dice.choice((0, 0.7))))
    if model.startswith("grok"):
        return {"usage": _chat(prompt, completion - thought, cached, thought, total=prompt + completion)}
    if model.startswith("deepseek"):
        hit_and_miss = {"prompt_cache_hit_tokens": cached, "prompt_cache_miss_tokens": prompt - cached}
        return {"usage": {**_chat(prompt, completion, cached, thought, total=prompt + completion), **hit_and_miss}}
    return _responses(prompt, completion, cached, thought, searches, tier=dice.choice(("default", "default", "flex")))


def _chat(prompt: int, completion: int, cached: int, thought: int, *, total: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def _responses(prompt: int, completion: int, cached: int, thought: int, searches: int, *, tier: str) -> dict[str, Any]:
    return {
        "object": "response",
        "service_tier": tier,
        "output": [{"type": "web_search_call"}] * searches,
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": prompt + completion,
        },
    }


def _anthropic(prompt: int, completion: int, cached: int, searches: int, *, written: int) -> dict[str, Any]:
    return {
        "type": "message",
        "usage": {
            "input_tokens": prompt - cached - written,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written - written // 3,
                "ephemeral_1h_input_tokens": written // 3,
            },
            "output_tokens": completion,
            "server_tool_use": {"web_search_requests": searches},
        },
    }


def _gemini(prompt: int, completion: int, cached: int, thought: int, *, audio: int) -> dict[str, Any]:
    return {
        "usageMetadata": {
            "promptTokenCount": prompt,
            "cachedContentTokenCount": cached,
            "candidatesTokenCount": completion - thought,
            "thoughtsTokenCount": thought,
            "totalTokenCount": prompt + completion,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": prompt - audio},
                {"modality": "AUDIO", "tokenCount": audio},
            ],
        }
    }


def _images(prompt: int, completion: int, *, pictured: int) -> dict[str, Any]:
    return {
        "data": [{}],
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"text_tokens": prompt - pictured, "image_tokens": pictured},
            "output_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }
