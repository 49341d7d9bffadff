"""The words the Lua scripts answer with, one enum per script. A test compares them with the script's header."""

from __future__ import annotations

from enum import StrEnum


class Reserve(StrEnum):
    """Answers of reserve.lua."""

    HELD = "HELD"
    ALREADY_HELD = "ALREADY_HELD"
    HOLD_CLOSED = "HOLD_CLOSED"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    BACKLOG_FULL = "BACKLOG_FULL"
    NOT_LOADED = "NOT_LOADED"
    STALE = "STALE"
    USER_DISABLED = "USER_DISABLED"
    TOKEN_OF_ANOTHER_USER = "TOKEN_OF_ANOTHER_USER"  # noqa: S105
    TOKEN_DISABLED = "TOKEN_DISABLED"  # noqa: S105
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105
    INSUFFICIENT_USER_QUOTA = "INSUFFICIENT_USER_QUOTA"
    INSUFFICIENT_TOKEN_QUOTA = "INSUFFICIENT_TOKEN_QUOTA"  # noqa: S105


class Extend(StrEnum):
    """Answers of extend.lua."""

    EXTENDED = "EXTENDED"
    NO_HOLD = "NO_HOLD"
    HOLD_CLOSED = "HOLD_CLOSED"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    NOT_LOADED = "NOT_LOADED"
    STALE = "STALE"
    USER_DISABLED = "USER_DISABLED"
    TOKEN_OF_ANOTHER_USER = "TOKEN_OF_ANOTHER_USER"  # noqa: S105
    TOKEN_DISABLED = "TOKEN_DISABLED"  # noqa: S105
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105
    INSUFFICIENT_USER_QUOTA = "INSUFFICIENT_USER_QUOTA"
    INSUFFICIENT_TOKEN_QUOTA = "INSUFFICIENT_TOKEN_QUOTA"  # noqa: S105


class Consume(StrEnum):
    """Answers of consume.lua."""

    CONSUMED = "CONSUMED"
    CONSUMED_LATE = "CONSUMED_LATE"
    ALREADY_CONSUMED = "ALREADY_CONSUMED"
    OTHER_FORMULA = "OTHER_FORMULA"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"


class Release(StrEnum):
    """Answers of release.lua."""

    RELEASED = "RELEASED"
    ALREADY_RELEASED = "ALREADY_RELEASED"
    ALREADY_CONSUMED = "ALREADY_CONSUMED"
    NO_HOLD = "NO_HOLD"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"


class Expire(StrEnum):
    """Answers of expire.lua."""

    EXPIRED = "EXPIRED"
    NOT_DUE = "NOT_DUE"
    CLOSED = "CLOSED"


class Renew(StrEnum):
    """Answers of renew.lua."""

    RENEWED = "RENEWED"
    HOLD_CLOSED = "HOLD_CLOSED"
    NO_HOLD = "NO_HOLD"


class Refund(StrEnum):
    """Answers of refund.lua."""

    FILED = "FILED"


class Load(StrEnum):
    """Answers of load.lua."""

    LOADED = "LOADED"
    OLDER = "OLDER"
    TOO_LATE = "TOO_LATE"
    OTHER_EPOCH = "OTHER_EPOCH"
    OTHER_LEDGER = "OTHER_LEDGER"


class NewLedger(StrEnum):
    """Answers of new_ledger.lua."""

    TURNED = "TURNED"
    KNOWN = "KNOWN"


class Balance(StrEnum):
    """Answers of balance.lua."""

    LOADED = "LOADED"
    NOT_LOADED = "NOT_LOADED"


class Lease(StrEnum):
    """Answers of lease.lua."""

    ACQUIRED = "ACQUIRED"
    RENEWED = "RENEWED"
    TAKEN = "TAKEN"


class Leave(StrEnum):
    """Answers of leave.lua."""

    LEFT = "LEFT"
    NOT_EMPTY = "NOT_EMPTY"
    LOST = "LOST"


class Ring(StrEnum):
    """Answers of ring.lua."""

    RUNG = "RUNG"
    ATTENDED = "ATTENDED"


class HandOver(StrEnum):
    """Answers of hand_over.lua."""

    LEFT = "LEFT"
    LOST = "LOST"


class Forget(StrEnum):
    """Answers of forget.lua."""

    FORGOTTEN = "FORGOTTEN"
    CHANGED = "CHANGED"


class Reschedule(StrEnum):
    """Answers of reschedule.lua."""

    RESCHEDULED = "RESCHEDULED"
    CHANGED = "CHANGED"
