"""What happened to a request, as the outbox carries it and the ledger books it.

An event is written once, by the Lua script that changed the hold, and read by
the worker that posts it. It is JSON with the names of the consume log, so that
`redis-cli XRANGE` and a dead letter can be read by a person.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import msgspec


class Kind(StrEnum):
    """What an event does to the ledger."""

    CONSUME = "consume"  # book what was used
    RELEASE = "release"  # a hold ended unused: refunded before the charge, or expired
    REFUND = "refund"  # give back a booked charge, whole or in part
    CONFLICT = "conflict"  # the same id came with another body: keep it, never apply it


# gc=False here and below: nothing in these refers back to them, and a drainer that makes thousands of them keeps
# waking the collector, which took a good part of its time.
class Event(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=False, gc=False):
    """One outbox entry. Quota is in units of quota, times in milliseconds."""

    kind: Kind
    request_id: str
    user_id: int
    token_id: int
    fingerprint: str  # 32 hex digits
    quota: int = 0  # consume: charged; release: what was held; refund: amount, ignored if `whole`
    held_quota: int = 0  # consume: the hold it closed (0: none was open). Set by the script, not by the caller
    channel_id: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model_name: str = ""
    token_name: str = ""
    group: str = ""
    content: str = ""  # consume: the caller's remark; release and refund: the reason
    client_key: str = ""
    pre_consumed_quota: int = 0  # what the reference would have reported; no arithmetic reads it
    model_ratio: str = ""
    completion_ratio: str = ""
    group_ratio: str = ""
    elapsed_ms: int = 0
    is_stream: bool = False
    usage: dict[str, Any] | None = None  # the upstream's own detail, kept as it came
    refund_id: str = ""
    whole: bool = False  # refund: all that is left of the charge
    expired: bool = False  # release: nobody came back


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """The event as JSON."""
    return _encoder.encode(event)


def encode_all(events: list[Event]) -> str:
    """Many events as one JSON array, the argument of the posting function."""
    return _encoder.encode(events).decode()


def decode(payload: bytes) -> Event:
    """The event again. Raises msgspec.ValidationError or DecodeError for what is none."""
    return _decoder.decode(payload)


def consume_fingerprint(
    *,
    user_id: int,
    token_id: int,
    channel_id: int,
    model_name: str,
    prompt_tokens: int,
    completion_tokens: int,
    quota: int,
) -> str:
    """What makes two consumes the same: who, where, what and how much; no timings, no remarks."""
    return fingerprint("consume", user_id, token_id, channel_id, model_name, prompt_tokens, completion_tokens, quota)


def fingerprint(*parts: object) -> str:
    """32 hex digits over the parts. The separator can't occur in a number and is refused in names."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
