"""Arguments from callers: the value if it keeps the rule, else InvalidRequest that names field, rule and value."""

from __future__ import annotations

from billing_tasks.consume_log import MAX_QUOTA
from billing_tasks.errors import InvalidRequest
from billing_tasks.ids import shorten


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
