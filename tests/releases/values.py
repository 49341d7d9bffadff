"""How answers and refusals are written into a trace: public fields by name, so that a new field changes no trace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from fractions import Fraction
from typing import Any

from billing_tasks import ConsumeLog, Price, Receipt, Reservation
from billing_tasks.errors import BillingError
from tests.releases.templates import Names

_RECEIPT = ("request_id", "quota", "again", "late", "posted", "spooled")
_RESERVATION = (
    *("request_id", "user_id", "token_id", "held_quota", "pre_consumed_quota", "price", "client_key"),
    *("trusted", "again", "expires_at_ms"),
)
_PRICE = ("model", "group", "model_ratio", "completion_ratio", "group_ratio", "ratio", "free")
_LOG = (
    *("user_id", "channel_id", "prompt_tokens", "completion_tokens", "model_name", "token_id", "token_name", "quota"),
    *("content", "pre_consumed_quota", "request_id", "client_key", "group", "model_ratio", "completion_ratio"),
    *("group_ratio", "elapsed_ms", "is_stream", "usage"),
)
_USER = ("id", "quota", "used_quota", "request_count", "group_name", "status", "version")
_TOKEN = (
    *("id", "user_id", "name", "remain_quota", "used_quota", "unlimited_quota", "status", "expires_at_ms"),
    "version",
)
_BALANCE = ("user", "available", "held", "unposted")
_CHANNEL = ("id", "name", "used_quota")
#: Of a ledger entry, and of `billing-tasks log --json`.
ENTRY = (
    *("entry_id", "kind", "request_id", "user_id", "token_id", "channel_id", "quota", "held_quota", "user_quota"),
    *("token_quota", "used_quota", "prompt_tokens", "completion_tokens", "model_name", "token_name", "group_name"),
    *("content", "client_key", "model_ratio", "completion_ratio", "group_ratio", "pre_consumed_quota", "elapsed_ms"),
    *("is_stream", "expired", "usage", "created_at"),
)
#: Rows are told apart by a field that only they have.
_ROWS = (
    ("request_count", _USER),
    ("remain_quota", _TOKEN),
    ("available", _BALANCE),
    ("entry_id", ENTRY),
    ("name", _CHANNEL),
)
#: A refusal that lists what is known: a later release knows more.
_LISTED = re.compile(r"(?<=as filters )it takes [a-z_, ]+\.")
_OF_THE_MOMENT = {"version": "<version>", "created_at": "<time>", "lag_ms": "<duration>"}


def written(value: Any, names: Names) -> Any:
    """The value as JSON has it, with names in place of ids and times."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return names.within(value)
        case Fraction():
            return str(value)
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(key): _field(str(key), one, names) for key, one in value.items()}
        case list() | tuple():
            return [written(one, names) for one in value]
        case BillingError():
            return refusal(value, names)
    return _object(value, names)


def _object(value: Any, names: Names) -> Any:
    match value:
        case Reservation():
            return {**_fields(value, _RESERVATION, names), "expires_at_ms": "<time>"}
        case Receipt():
            return _fields(value, _RECEIPT, names)
        case Price():
            # The version is of a price list, which the releases before 0.4.0 had none of.
            words = {name: word for name, word in value.to_strings().items() if name != "version"}
            return {**_fields(value, _PRICE, names), "to_strings": written(words, names)}
        case ConsumeLog():
            return _fields(value, _LOG, names)
    for mark, fields in _ROWS:
        if hasattr(value, mark):
            return _fields(value, fields, names)
    return names.within(repr(value))


def refusal(exc: BillingError, names: Names) -> dict[str, Any]:
    """What a caller can see of an error."""
    return {
        "type": type(exc).__name__,
        "code": exc.code,
        "http_status": exc.http_status,
        "reason": exc.reason,
        "message": _LISTED.sub("it takes <a list>.", names.within(exc.message)),
        "request_id": None if exc.request_id is None else names.within(exc.request_id),
    }


def _fields(value: Any, fields: tuple[str, ...], names: Names) -> dict[str, Any]:
    return {name: _field(name, getattr(value, name), names) for name in fields}


def _field(name: str, value: Any, names: Names) -> Any:
    return value if value is None else _OF_THE_MOMENT.get(name) or written(value, names)
