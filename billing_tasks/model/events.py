"""What happened to a request, as the outbox carries it and the ledger books it.

In the outbox an event is two fields of an entry: a header, which the script wrote (`holds/lua/include/outbox.lua`),
and a payload, which has the rest; together they are the event, and nothing is in both. The payload is JSON with the
names of ConsumeLog, so that a person can read `redis-cli XRANGE` and a dead letter, which keeps both as one object.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.consume_log import MAX_MOMENT_MS, ConsumeLog, column_fields, in_object, json_fields
from billing_tasks.model.fingerprint import FORMULA_1, consume_fingerprint, formula_of


class Kind(StrEnum):
    """What an event does to the ledger."""

    CONSUME = "consume"  # book what was used
    RELEASE = "release"  # a hold ended unused: refunded before the charge, or expired
    REFUND = "refund"  # undo a booked charge, whole or in part
    CONFLICT = "conflict"  # the same id came with another body: keep it, never apply it


# gc=False: nothing in these refers back to them, and a drainer that makes thousands of them keeps waking the
# collector, which took a good part of its time. Unknown fields are refused: a later release adds its fields inside
# usage, price and details; one that it adds beside them is about money.
class Event(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One event, whole. Quota is in units of quota, times in milliseconds. `make` makes one.

    The fields of ConsumeLog that have a column are fields here, too; `make` and `decode` know them.
    """

    # The header has these; `payload` leaves them out.
    kind: Kind | None = None
    request_id: str = ""
    user_id: int = 0
    token_id: int = 0
    quota: int = 0  # consume: charged; release: what was held; refund: amount, ignored if `whole`
    held_quota: int = 0  # consume: the hold it closed (0: none was open). Set by the script, not by the caller

    fingerprint: str  # hex digits
    # Since 1970; None: when it was filed.
    used_at_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_MOMENT_MS)] | None = None
    content: str = ""  # consume: the caller's remark; release and refund: the reason
    client_key: str = ""
    usage: dict[str, Any] | None = None  # quantities of meters that have no column
    price: dict[str, Any] | None = None  # what the price version does not say
    details: dict[str, Any] | None = None  # other fields of ConsumeLog that have no column
    price_version: int | None = None
    cost: int | None = None  # what the upstream charges, in quota
    refund_id: str = ""
    whole: bool = False  # refund: all that is left of the charge
    expired: bool = False  # release: its ttl ran out


def _columns_of_the_log() -> list[tuple[str, Any, Any]]:
    """Fields of ConsumeLog with a column that Event does not name: (name, type, what is left out)."""
    known = set(Event.__struct_fields__)
    kinds = {int: 0, str: "", bool: False}
    found = []
    for name in column_fields():
        if name not in known:
            kind: Any = ConsumeLog.model_fields[name].annotation
            found.append((name, kind, kinds[kind]))
    return found


_Whole: Any = msgspec.defstruct(
    "Event",
    _columns_of_the_log(),
    bases=(Event,),
    module=__name__,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    gc=False,
)
_KINDS = {str(kind): kind for kind in Kind}
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Whole)


def make(*, kind: Kind, **fields: Any) -> Event:
    """An event. `fields` are those of Event and of ConsumeLog's columns."""
    event: Event = _Whole(kind=kind, **fields)
    return event


def of_log(log: ConsumeLog) -> Event:
    """The event that books this log."""
    fields = log.__dict__.copy()
    objects = {}  # put back when all are out: an object and a field in another one may have the same name
    for column, names in json_fields().items():
        kept = in_object({name: value for name in names if (value := fields.pop(name))})
        if kept:
            objects[column.value] = kept
    event: Event = _Whole(kind=Kind.CONSUME, fingerprint=log.fingerprint, **fields, **objects)
    return event


def fingerprint_of_0_1_0(consume: Event) -> str:
    """What release 0.1.0 would call this consume, for comparison with what it left in Redis."""
    covered = {name: getattr(consume, name) for name in FORMULA_1}
    return consume_fingerprint(**covered, formula=1)


def fingerprint_by_other_formula(consume: Event) -> str:
    """What a release would call this consume whose formula is not the one of its fingerprint."""
    if formula_of(consume.fingerprint) != 1:
        return fingerprint_of_0_1_0(consume)
    covered = {name: getattr(consume, name) for name in FORMULA_1}
    return consume_fingerprint(**covered, usage=consume.usage)


def as_of_0_1_0(consume: Event) -> Event:
    """This consume under 0.1.0's fingerprint, unless it has facts that 0.1.0 knows no place for."""
    later = (consume.usage, consume.price, consume.price_version, consume.cost)
    if any(fact is not None for fact in later) or set(consume.details or ()) - {"usage"}:
        return consume
    return msgspec.structs.replace(consume, fingerprint=fingerprint_of_0_1_0(consume))


def payload(event: Event, *, for_0_1_0: bool = False) -> bytes:
    """What the outbox carries beside the header. Of a conflict and a refund the header says no quota.

    `for_0_1_0`: workers of that release read it, too. They want the whole event, and the upstream's object in `usage`.
    """
    if for_0_1_0 and formula_of(event.fingerprint) == 1:
        details = event.details or {}
        return encode(msgspec.structs.replace(event, usage=details.get("usage"), details=None, held_quota=0))
    quota = event.quota if event.kind in (Kind.REFUND, Kind.CONFLICT) else 0
    return _encoder.encode(
        msgspec.structs.replace(event, kind=None, request_id="", user_id=0, token_id=0, quota=quota, held_quota=0)
    )


def encode(event: Event) -> bytes:
    """The whole event as JSON: for dead letters, the spool, and posting."""
    whole = _encoder.encode(event)
    # Release 0.1.0, which may retry a dead letter of ours, has no default for it.
    return whole if event.token_id else b'{"token_id":0,' + whole[1:]


def encode_all(events: list[Event]) -> str:
    """Many events as one JSON array, the argument of the posting function."""
    return _encoder.encode(events).decode()


def decode(text: bytes) -> Event:
    """An event again, whole or a payload. Raises msgspec.ValidationError or DecodeError for what is none.

    Release 0.1.0 had the object that the upstream sent in `usage`; today it is a detail.
    """
    event: Event = _decoder.decode(text)
    if event.usage is not None and formula_of(event.fingerprint) == 1:
        event.details, event.usage = {**(event.details or {}), "usage": event.usage}, None
    return event


def complete(
    event: Event, *, kind: str, request_id: str, user_id: int, token_id: int, weight: int, held: int, filed_ms: int
) -> None:
    """Make a payload the whole event, by its header. Raises InvalidRequest if the two contradict each other.

    Release 0.1.0 repeated the header in the payload.
    """
    whole = _KINDS.get(kind)
    sent_as = Kind.CONSUME if whole is Kind.CONFLICT else whole  # the gateway sent a consume; the script knew better
    if (
        whole is None
        or (event.kind is not None and event.kind is not sent_as)
        or (event.request_id and event.request_id != request_id)
        or (event.user_id and event.user_id != user_id)
        or (event.token_id and event.token_id != token_id)
    ):
        raise InvalidRequest("the payload names another kind, request or account than the outbox entry")
    # What leaves `unposted` with it: all that was charged; for an expired hold all that was held; else nothing.
    match whole:
        case Kind.CONSUME:
            contradicts, quota = event.quota not in (0, weight), weight
        case Kind.RELEASE:
            contradicts, quota = (
                weight not in (0, held),
                held,
            )  # what the gateway believed to be held counts for nothing
        case _:
            contradicts, quota = weight != 0, event.quota
    if contradicts:
        raise InvalidRequest("the payload names another quota than the outbox entry")
    event.kind, event.request_id, event.user_id, event.token_id, event.quota = (
        whole,
        request_id,
        user_id,
        token_id,
        quota,
    )
    event.held_quota = held if whole is Kind.CONSUME else 0
    if event.used_at_ms is None:
        event.used_at_ms = filed_ms
    if event.used_at_ms > MAX_MOMENT_MS:
        raise InvalidRequest("the outbox entry was filed at a time that is no date")
