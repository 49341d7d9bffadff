"""Traces of LLM traffic: when a request came, how long its prompt was, how long its answer.

The format is that of the Azure LLM inference traces:

    TIMESTAMP,ContextTokens,GeneratedTokens
    2023-11-16 18:15:46.6805900,374,44

A trace is read whole and checked whole before a request is sent.
`generate` makes one of the same shape where no file is at hand.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from billing_tasks.lab.replay.problems import BadTrace
from billing_tasks.model.ids import shorten
from billing_tasks.pricing import MAX_TOKENS

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_COUNT = re.compile(r"\d{1,15}", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace."""

    at_us: int  # microseconds since 1970
    context_tokens: int
    generated_tokens: int


def read_trace(path: Path) -> list[TraceRow]:
    """All rows of a trace file, in its order. Raises BadTrace with file, line and reason."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise BadTrace(f"{path} can't be read: {exc.strerror}.") from None
    except UnicodeDecodeError as exc:
        raise BadTrace(f"{path} is not text in UTF-8: {exc.reason} at byte {exc.start}.") from None
    lines = text.splitlines()
    found = lines[0].strip() if lines else ""
    if found.replace(" ", "").lower() != HEADER.lower():
        raise BadTrace(f"{path}, line 1: expected the header {HEADER}, found {shorten(found)}.")
    rows: list[TraceRow] = []
    bad: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            rows.append(_row(line))
        except ValueError as exc:
            bad.append(f"{path}, line {number}: {exc}")
    if bad:
        raise BadTrace(f"{bad[0]}. {len(bad)} of {len(lines) - 1} lines are bad; nothing was sent.")
    if not rows:
        raise BadTrace(f"{path} has a header and no requests.")
    return rows


def _row(line: str) -> TraceRow:
    """One line, or ValueError with the reason."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 3:
        raise ValueError(f"expected 3 fields, found {len(fields)} in {shorten(line)}")
    return TraceRow(
        at_us=_microseconds(fields[0]),
        context_tokens=_tokens("ContextTokens", fields[1]),
        generated_tokens=_tokens("GeneratedTokens", fields[2]),
    )


def _microseconds(text: str) -> int:
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"TIMESTAMP must look like 2023-11-16 18:15:46.6805900, not {shorten(text)}")
    date, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{zone if zone not in (None, 'Z') else '+00:00'}")
    except ValueError as exc:
        raise ValueError(f"TIMESTAMP {shorten(text)} is no moment: {exc}") from None
    # The fraction by hand: Azure writes seven digits, datetime takes six.
    return (moment - _EPOCH) // timedelta(microseconds=1) + int(f"{fraction or 0:0<6}"[:6])


def _tokens(name: str, text: str) -> int:
    if not _COUNT.fullmatch(text) or int(text) > MAX_TOKENS:
        raise ValueError(f"{name} must be a whole number from 0 to {MAX_TOKENS}, not {shorten(text)}")
    return int(text)


def write_trace(rows: Sequence[TraceRow], path: Path) -> None:
    """Write a trace that `read_trace` reads back as it was."""
    lines = [HEADER]
    for row in rows:
        seconds, microseconds = divmod(row.at_us, 1_000_000)
        moment = _EPOCH + timedelta(seconds=seconds)
        lines.append(f"{moment:%Y-%m-%d %H:%M:%S}.{microseconds:06d}0,{row.context_tokens},{row.generated_tokens}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# -- a trace of our own -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hump:
    """Part of the requests: their share, their median length in tokens, and how wide they scatter around it."""

    share: float
    median: int
    sigma: float  # of the logarithm


#: Fitted by eye to the percentiles of the Azure conversation trace of 2023 (19,366 requests): applications
#: with a fixed prompt make the narrow humps, people's own words the wide ones.
CONTEXT = (
    Hump(0.11, 190, 0.50),
    Hump(0.25, 400, 0.06),
    Hump(0.44, 1080, 0.11),
    Hump(0.14, 2350, 0.35),
    Hump(0.06, 4110, 0.03),
)
GENERATED = (Hump(0.64, 108, 0.50), Hump(0.34, 412, 0.05), Hump(0.02, 590, 0.18))
LONGEST_CONTEXT = 14_050
LONGEST_ANSWER = 1_000
SECONDS_BETWEEN = 0.1808
BEGINNING = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def generate(requests: int, *, seed: int = 1) -> list[TraceRow]:
    """A made-up trace in the shape of the real one: the same seed, the same trace."""
    dice = random.Random(f"trace:{seed}")
    at_us = (BEGINNING - _EPOCH) // timedelta(microseconds=1)
    rows = []
    for _ in range(requests):
        at_us += round(dice.expovariate(1 / SECONDS_BETWEEN) * 1_000_000)
        context = _length(dice, CONTEXT, LONGEST_CONTEXT)
        rows.append(TraceRow(at_us, context, _length(dice, GENERATED, LONGEST_ANSWER)))
    return rows


def _length(dice: random.Random, humps: Sequence[Hump], longest: int) -> int:
    point = dice.random() * sum(hump.share for hump in humps)
    for hump in humps:
        point -= hump.share
        if point < 0:
            break
    return max(1, min(longest, round(dice.lognormvariate(math.log(hump.median), hump.sigma))))
