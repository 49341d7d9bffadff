"""Answers: the usage of what an upstream sent, object by object; what can't be read is kept, and raises nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.ids import shorten
from billing_tasks.pricing import Stream, Usage, facts_of, may_say

#: Of an object that can't be read so much is kept, in characters of JSON.
_KEPT = 2000


class Answers:
    """Of one request. `usage` is the last good word; `unread` the last object that is none, and why."""

    def __init__(self, provider: str | None = None) -> None:
        self._stream = Stream(provider)
        self._also: dict[str, Any] = {}
        self._given: Usage | None = None
        self.unread: dict[str, Any] | None = None

    def take(self, answer: object) -> Mapping[str, Any]:
        """One more. Returns the facts that it tells: {"service_tier": "priority"}."""
        try:
            if isinstance(answer, Usage):
                self._given = Usage.of(answer.counts)
                return {}
            if not may_say(answer):
                return {}
            self._stream.add(answer)
            return facts_of(answer)
        except InvalidRequest as exc:
            self.cannot(answer, exc.message)
            return {}

    def also(self, counts: Mapping[str, Any]) -> None:
        """Counts that no usage object has. Raises InvalidRequest."""
        Usage.of(counts)
        self._also.update(counts)

    def cannot(self, what: object, problem: str) -> None:
        """Note what could not be read or priced."""
        self.unread = {"problem": problem[:500], "object": _kept(what)}

    @property
    def usage(self) -> Usage | None:
        """All that is known; None: nothing yet."""
        found = self._given or self._stream.usage
        if not self._also:
            return found
        return Usage.of(self._also) if found is None else found.also(self._also)


def _kept(what: object) -> Any:
    """As JSON if that is short, else its beginning as text."""
    try:
        dump = getattr(what, "model_dump", None)
        text = msgspec.json.encode(dump() if callable(dump) else what, enc_hook=str)
    except Exception:  # whatever it is, it must not end the customer's answer
        return shorten(what)
    if len(text) > _KEPT or b"\\u0000" in text:
        return text[:_KEPT].decode("utf-8", "replace")
    return msgspec.json.decode(text)
