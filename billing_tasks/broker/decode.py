"""Intake: messages from other programs and languages, checked. What can't be used is kept as a dead letter."""

from __future__ import annotations

from typing import Any

import msgspec

from billing_tasks.errors import InvalidRequest
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.ids import check_request_id, shorten
from billing_tasks.model.refund import RefundRequest
from billing_tasks.model.validation import check_int, check_text

_REFUND_FIELDS = frozenset({"user_id", "request_id", "quota", "refund_id", "reason"})


def consume_log_from(message: dict[str, Any]) -> ConsumeLog:
    """The ConsumeLog inside a message of billing.consume. Raises InvalidRequest."""
    return ConsumeLog(**message)


def refund_request_from(message: dict[str, Any]) -> RefundRequest:
    """The refund inside a message of billing.refund. Raises InvalidRequest."""
    unknown = message.keys() - _REFUND_FIELDS
    if unknown:
        raise InvalidRequest(
            f"billing.refund does not know {shorten(sorted(unknown))}; it takes {', '.join(sorted(_REFUND_FIELDS))}."
        )
    # Only None counts as left out: 0 or false for a refund_id would make a whole refund of a hold's out of it.
    given = {name: value for name, value in message.items() if value is not None}
    quota = given.get("quota")
    return RefundRequest(
        user_id=check_int("user_id", given.get("user_id"), 1),
        request_id=check_request_id(given.get("request_id")),
        reason=check_text("reason", given.get("reason", ""), 2000),
        quota=None if quota is None else check_int("quota", quota, 1),
        refund_id=check_text("refund_id", given.get("refund_id", ""), 200),
    )


def event_from_message(kind: str, payload: bytes) -> Event:
    """The event that a kept message stands for. Raises InvalidRequest."""
    try:
        message = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidRequest(f"The payload is not JSON: {exc}") from None
    if not isinstance(message, dict):
        raise InvalidRequest(f"The payload is not a JSON object: {shorten(message)}")
    return refund_request_from(message).event if kind == Kind.REFUND else events.of_log(consume_log_from(message))
