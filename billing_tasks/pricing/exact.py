"""What may come in: exact ratios, names and counts. Nothing here rounds."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NoReturn

from billing_tasks.errors import InvalidRequest

#: Tokens, characters or images in one request; more is an upstream's nonsense, not usage.
MAX_TOKENS = 2**40
#: The largest amount that Redis's Lua, JSON readers and a double all keep exactly.
MAX_QUOTA = 2**53
#: Dearer than 2 billion USD per 1M tokens is a typing mistake.
MAX_RATIO = 10**9
#: Bounds what `str(ratio)` can become, so that every ratio we accept can be written and read again.
MAX_TERM = 10**30
MAX_NAME_LENGTH = 200

_MAX_TEXT_LENGTH = 100
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"
_RATIO = re.compile(rf"\+?({_NUMBER})(?:\s*/\s*\+?({_NUMBER}))?")
# Control characters would garble logs and PostgreSQL refuses NUL; half a surrogate pair is not UTF-8.
_UNFIT_FOR_A_NAME = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def parse_ratio(value: object) -> Fraction:
    """The exact ratio that `value` writes: "2.75/0.65", "0.075", "1e-5", an int or a Fraction.

    Raises ValueError whose text is the reason: a float (binary, hence inexact), a
    negative, a division by zero, nonsense, or more digits than a price can have.
    """
    if isinstance(value, Fraction):
        return check_ratio(value)
    if type(value) is int:
        return check_ratio(Fraction(value))
    if isinstance(value, float):
        raise ValueError(f"{value!r} is a binary float, which is inexact; write it as text, like '0.075'")  # noqa: TRY004
    if not isinstance(value, str):
        raise ValueError(f"a ratio is a number or a text like '2.75/0.65', not {show(value)}")  # noqa: TRY004
    return check_ratio(_read(value))


def _read(text: str) -> Fraction:
    if len(text) > _MAX_TEXT_LENGTH:
        raise ValueError(f"a ratio has at most {_MAX_TEXT_LENGTH} characters, this one {len(text)}")
    match = _RATIO.fullmatch(text.strip())
    if match is None:
        if text.strip().startswith("-"):
            raise ValueError(f"{text!r} is negative; a negative ratio would hand out quota")
        raise ValueError(f"{text!r} is not a ratio; write a decimal like '0.075' or a fraction like '2.75/0.65'")
    numerator, denominator = Fraction(match[1]), Fraction(match[2] or 1)
    if denominator == 0:
        raise ValueError(f"{text!r} divides by zero")
    return numerator / denominator


def check_ratio(ratio: Fraction) -> Fraction:
    """The ratio itself, or ValueError if no price can have it."""
    if ratio.numerator < 0:
        raise ValueError("the ratio is negative; it would hand out quota")
    if ratio.numerator > MAX_TERM or ratio.denominator > MAX_TERM:
        raise ValueError("the ratio has more than 30 digits, above or below its fraction bar")
    if ratio > MAX_RATIO:
        raise ValueError(f"the ratio is above {MAX_RATIO:,}, that is 2 billion USD per 1M tokens")
    return ratio


def check_name(name: object, *, field: str) -> str:
    """The name of a model or group, or InvalidRequest: text of at most 200 characters, none a control."""
    if not isinstance(name, str):
        raise InvalidRequest(f"{field} must be text, got {show(name)}.")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidRequest(f"{field} has {len(name)} characters; at most {MAX_NAME_LENGTH} are allowed.")
    if _UNFIT_FOR_A_NAME.search(name):
        raise InvalidRequest(f"{field} {name!r} contains a control character.")
    return name


def check_count(value: object, *, field: str) -> int:
    """A number of tokens or the like, or InvalidRequest: an int (no bool, no float), 0 to 2**40."""
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        refuse_count(value, field=field)
    return value


def refuse_count(value: object, *, field: str) -> NoReturn:
    """Say what a count must be. Apart from `check_count`, so that the hot path can test inline."""
    raise InvalidRequest(f"{field} must be an integer from 0 to {MAX_TOKENS}, got {show(value)}.")


def check_quota(quota: int) -> int:
    """The amount itself, or InvalidRequest above 2**53 quota."""
    if quota > MAX_QUOTA:
        raise InvalidRequest(f"The request would cost more than {MAX_QUOTA} quota, the most one amount can be.")
    return quota


def show(value: object) -> str:
    """A short repr for messages, whatever came in."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return f"an unprintable {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"


def text_of(number: Fraction | int) -> str:
    """Exact: a decimal if that has at most 12 digits behind its point, else a quotient."""
    exact = Fraction(number)
    scaled = exact * 10**12
    if scaled.denominator != 1:
        return str(exact)
    whole, rest = divmod(int(scaled), 10**12)
    return f"{whole:,}" if not rest else f"{whole:,}.{rest:012d}".rstrip("0")
