"""Request ids: UUID version 7 (RFC 9562, section 5.7), minted here unless the caller brings one.

The time inside the id is when the quota was reserved and picks the ledger's
monthly partition, so an id is refused where it enters, when quota is reserved, if it is dated outside the partitions.
After that its date is never looked at again: this machine's clock may be set while the request runs, and what was used
must be booked, released or refunded all the same. Whether its month still takes entries the ledger says.
"""

from __future__ import annotations

import os
import re
import reprlib
import time
from uuid import UUID

from billing_tasks.errors import InvalidRequest

#: Quota is not reserved for ids older than this; `maintain_partitions` keeps months for at least as long.
MAX_AGE_DAYS = 31
#: Clocks of gateways may differ by this much.
MAX_AHEAD_SECONDS = 300

_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


#: Looks no further into what it describes than a message has room for.
_brief = reprlib.Repr()
_brief.maxlevel = 4
_brief.maxlist = _brief.maxtuple = _brief.maxdict = _brief.maxset = 20
_brief.maxstring = _brief.maxlong = _brief.maxother = 200


def new_request_id() -> str:
    """A fresh UUIDv7 in canonical form.

    Straight from the operating system's randomness and not from a library's
    generator: those keep state that a forked gateway worker would share with
    its siblings, and two requests under one id would be one charge.
    """
    value = now_ms() << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF000 << 64) | (0x7000 << 64)
    value = value & ~(0xC000 << 48) | (0x8000 << 48)
    h = f"{value:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def now_ms() -> int:
    """This machine's clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def reserved_at_ms(request_id: str) -> int:
    """Milliseconds since 1970 that the id carries."""
    return int(request_id[:8] + request_id[9:13], 16)


def check_new_request_id(request_id: object, *, field: str = "request_id") -> str:
    """An id that quota is to be reserved for, in canonical form. Raises InvalidRequest, also for its date."""
    text = check_request_id(request_id, field=field)
    age_seconds = time.time() - reserved_at_ms(text) / 1000
    if age_seconds > MAX_AGE_DAYS * 86_400:
        raise InvalidRequest(f"{field} {text} is dated more than {MAX_AGE_DAYS} days back; mint a new one.")
    if age_seconds < -MAX_AHEAD_SECONDS:
        raise InvalidRequest(
            f"{field} {text} is dated more than {MAX_AHEAD_SECONDS} seconds ahead; check the clock that minted it."
        )
    return text


def check_request_id(request_id: object, *, field: str = "request_id") -> str:
    """An id in canonical form, of whatever date: what was accepted once stays valid. Raises InvalidRequest."""
    text = str(request_id).lower() if isinstance(request_id, str | UUID) else ""
    if not _CANONICAL.fullmatch(text):
        raise InvalidRequest(
            f"{field} must be a UUID of version 7, got {shorten(request_id)}. "
            "Leave it out to have one minted; an id of your own goes into client_key."
        )
    return text


def is_request_id(text: str) -> bool:
    """True for the canonical form, of whatever date: what was accepted once stays valid."""
    return _CANONICAL.fullmatch(text) is not None


def shorten(value: object, limit: int = 80) -> str:
    """A repr that is fit for an error message, whatever came in."""
    try:
        text = repr(value[:limit]) if isinstance(value, str | bytes) else _brief.repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a list in a list in a list ...
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"
