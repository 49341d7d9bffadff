"""Select: dead letters by a filter, to retry, preview or discard many of them.

A retry leaves out what is refused for ever, unless it is asked for by number or
reason; how many those are is told, never passed over.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.dead_letters.answers import FOR_EVER, Selected
from billing_tasks.flows.effects import InLedger
from billing_tasks.ledger.rows import OPEN, DeadLetterFilter
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Kind
from billing_tasks.model.ids import shorten
from billing_tasks.model.validation import check_int, check_list, check_moment, check_text

#: What billing.retry_failed can select by.
_FILTERS = ("kind", "reason", "user_id", "request_ids", "refund_ids", "client_keys", "numbers", "since", "before")
#: What is read from payloads is looked for value by value: so many refund_ids or client_keys at once.
MOST_INSIDE = 100


async def select_dead_letters(
    wanted: DeadLetterFilter, *, limit: int | None, leave_out: Collection[str] = ()
) -> Selected:
    """The dead letters that match, but for reasons in `leave_out`; those are counted."""
    most = None if limit is None else limit + 1
    numbers = await InLedger(Ledger.dead_letter_numbers, limit=most, excluded_reasons=leave_out, **wanted)
    left_out = await count_left_out(wanted, leave_out)
    return Selected(numbers[:limit], limit is not None and len(numbers) > limit, left_out)


async def count_left_out(wanted: DeadLetterFilter, leave_out: Collection[str]) -> dict[str, int]:
    """How many dead letters match whose reason is in `leave_out`, by reason."""
    if not leave_out:
        return {}
    reasons = await InLedger(Ledger.count_reasons, **wanted)
    return {reason: count for reason, count in reasons.items() if reason in leave_out}


def filter_from(asked: dict[str, Any]) -> DeadLetterFilter:
    """The filter in a message of billing.retry_failed: open dead letters, or these numbers. Raises InvalidRequest."""
    unknown = asked.keys() - _FILTERS
    if unknown:
        raise InvalidRequest(
            f"billing.retry_failed does not know {shorten(sorted(unknown))}; as filters it takes {', '.join(_FILTERS)}."
        )
    wanted = DeadLetterFilter() if asked.get("numbers") else DeadLetterFilter(states=OPEN)
    for name in ("kind", "reason"):
        if asked.get(name) is not None:
            wanted[name] = check_text(name, asked[name], 200)
    for name in ("since", "before"):
        if asked.get(name) is not None:
            wanted[name] = check_moment(name, asked[name], now=datetime.now(UTC))  # type: ignore[literal-required]
    if asked.get("user_id") is not None:
        wanted["user_id"] = check_int("user_id", asked["user_id"], 1)
    if asked.get("numbers") is not None:
        wanted["numbers"] = [check_int("numbers", number, 1) for number in check_list("numbers", asked["numbers"])]
    for name, most in (("request_ids", 10_000), ("refund_ids", MOST_INSIDE), ("client_keys", MOST_INSIDE)):
        if asked.get(name) is not None:
            texts = [check_text(name, text, 200) for text in check_list(name, asked[name], most)]
            wanted[name] = texts  # type: ignore[literal-required]
    return wanted


def excluded_reasons(wanted: DeadLetterFilter) -> Collection[str]:
    """Reasons that a retry leaves out: those refused for ever, unless they are asked for by number or reason."""
    asked = wanted.get("numbers") or wanted.get("reason") is not None or wanted.get("kind") == Kind.CONFLICT
    return () if asked else FOR_EVER
