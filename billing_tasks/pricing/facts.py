"""Facts: what is known of a request beside its usage, and the conditions on it that choose a price.

`at` is the moment at which the request began. Any other fact is a word: service_tier (the one that was served),
processing (batch), region, route, search_type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Self

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import show

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]|24):([0-5]\d)")
_OF_TIME = frozenset({"from", "until", "weekdays", "utc"})
Window = tuple[time, time]


@dataclass(frozen=True, slots=True)
class When:
    """A condition: all of its parts must hold. Without parts it always does."""

    words: frozenset[tuple[str, str]] = frozenset()
    begins: datetime | None = None  # from this moment on
    ends: datetime | None = None  # and before this one
    weekdays: frozenset[int] = frozenset()  # 1 is Monday, of the request's start in UTC; none: any
    hours: tuple[Window, ...] = ()  # from the first, inclusive, to the second; none: any

    @classmethod
    def read(cls, data: Any, *, where: str) -> Self:
        """{"from", "until": a date or moment, "weekdays": [1 to 7], "utc": ["16:30-00:30"], any fact: its word}."""
        if not isinstance(data, Mapping):
            raise InvalidRequest(f"{where} must be a table, got {show(data)}.")
        words = {name: value for name, value in data.items() if name not in _OF_TIME}
        for name, value in words.items():
            if not isinstance(value, str):
                raise InvalidRequest(f"{where}.{name} must be a word, got {show(value)}.")
        weekdays = data.get("weekdays", [])
        if not isinstance(weekdays, list | tuple) or any(type(day) is not int or not 1 <= day <= 7 for day in weekdays):
            raise InvalidRequest(f"{where}.weekdays must be numbers from 1 (Monday) to 7, got {show(weekdays)}.")
        hours = data.get("utc", [])
        if not isinstance(hours, list | tuple):
            raise InvalidRequest(f"{where}.utc must be a list like ['16:30-00:30'], got {show(hours)}.")
        return cls(
            frozenset(words.items()),
            _moment(data.get("from"), f"{where}.from"),
            _moment(data.get("until"), f"{where}.until"),
            frozenset(weekdays),
            tuple(_window(text, f"{where}.utc") for text in hours),
        )

    def data(self) -> dict[str, Any]:
        """As plain data that `read` reads again."""
        made: dict[str, Any] = dict(sorted(self.words))
        if self.begins is not None:
            made["from"] = self.begins.isoformat()
        if self.ends is not None:
            made["until"] = self.ends.isoformat()
        if self.weekdays:
            made["weekdays"] = sorted(self.weekdays)
        if self.hours:
            made["utc"] = [f"{begin:%H:%M}-{end:%H:%M}" for begin, end in self.hours]
        return made

    @property
    def is_about_time(self) -> bool:
        """Whether it has to know when the request began."""
        return bool(self.begins or self.ends or self.weekdays or self.hours)

    def fits(self, facts: Mapping[str, Any]) -> bool:
        """Whether the facts are so. Raises InvalidRequest if `at` is no moment."""
        if any(facts.get(name) != value for name, value in self.words):
            return False
        if not self.is_about_time:
            return True
        at = _moment(facts.get("at"), "facts.at")
        if at is None:
            return False
        if (self.begins is not None and at < self.begins) or (self.ends is not None and at >= self.ends):
            return False
        if self.weekdays and at.isoweekday() not in self.weekdays:
            return False
        return not self.hours or any(_is_within(at.time(), window) for window in self.hours)


def _is_within(at: time, window: Window) -> bool:
    begin, end = window
    if begin == end:
        return True  # the whole day
    return begin <= at < end if begin < end else at >= begin or at < end


def _window(text: Any, where: str) -> Window:
    match = _HOURS.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match[3] == "24" and match[4] != "00"):
        raise InvalidRequest(f"{where} has {show(text)}, which is no window like '16:30-00:30'.")
    return time(int(match[1]), int(match[2])), time(int(match[3]) % 24, int(match[4]))


def _moment(value: Any, where: str) -> datetime | None:
    """In UTC; a date is its first moment there."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidRequest(f"{where} must be a date or a moment, got {show(value)}.") from None
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)  # noqa: DTZ001 - UTC is set below
    if not isinstance(value, datetime):
        raise InvalidRequest(f"{where} must be a date or a moment, got {show(value)}.")
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
