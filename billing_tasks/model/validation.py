"""Arguments from callers: the value if it keeps the rule, else InvalidRequest that names field, rule and value."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.ids import shorten
from billing_tasks.pricing.exact import MAX_QUOTA


def check_int(name: str, value: object, low: int, high: int = MAX_QUOTA) -> int:
    """An int (no bool, no float) from `low` to `high`."""
    if type(value) is not int:
        raise InvalidRequest(f"{name} must be an int, got {shorten(value)}.")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be from {low} to {high}, got {shorten(value)}.")
    return value


def check_text(name: str, value: object, limit: int) -> str:
    """A str that PostgreSQL can keep, of at most `limit` characters."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a str, got {shorten(value)}.")
    if len(value) > limit:
        raise InvalidRequest(f"{name} has {len(value)} characters; at most {limit} are kept.")
    if "\x00" in value or any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise InvalidRequest(f"{name} contains NUL or a lone surrogate: {shorten(value)}.")
    return value


def check_list(name: str, value: object, limit: int = 10_000) -> list[object]:
    """A list that is not empty, of at most `limit` things. Empty would mean all where it chooses."""
    if not isinstance(value, list) or not 1 <= len(value) <= limit:
        raise InvalidRequest(f"{name} must be a list of 1 to {limit:,} things, got {shorten(value)}.")
    return value


_AGO = re.compile(r"(\d{1,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def check_moment(name: str, value: object, *, now: datetime) -> datetime:
    """A moment that a person named: `2h` is two hours ago (s, m, h, d), else an ISO date and time, by default UTC."""
    if isinstance(value, str):
        try:
            if ago := _AGO.fullmatch(value.strip().lower()):
                return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            moment = datetime.fromisoformat(value.strip())
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):  # also what is before the year 1
            pass
    raise InvalidRequest(
        f"{name} must be a time like 90s, 30m, 2h, 7d (ago) or 2026-11-23T10:00 (UTC), got {shorten(value)}."
    )
