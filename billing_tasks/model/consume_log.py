"""ConsumeLog: what was used, as a gateway reports it. Input from outside: it validates on construction.

This class is the only list of the fields: the event in the outbox, the entry in the ledger, the view `consume_log` and
the reference page follow from it. A field says with its type where the ledger keeps it (`Stored`); one without a column
of its own needs no migration. The first fields are the reference's. Nothing here is trusted further than its bounds: an
upstream's negative or absurd usage must not refill a quota.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.fingerprint import consume_fingerprint
from billing_tasks.model.ids import check_request_id, shorten
from billing_tasks.pricing.exact import MAX_QUOTA, MAX_TOKENS
from billing_tasks.pricing.usage import Usage

#: A day before the year 10000, in milliseconds since 1970: a later moment is no date to Python, in some time zone.
MAX_MOMENT_MS = 253_402_214_400_000
#: The upstream's usage detail, encoded.
MAX_USAGE_BYTES = 4096
#: Lists and objects in it: nested deeper than a decoder's stack, one event would block its outbox.
MAX_USAGE_PARTS = 200


def _printable(value: object) -> object:
    if isinstance(value, str):
        if "\x00" in value:
            raise ValueError("must not contain a NUL character")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid Unicode") from None
    return value


def _usage_detail(value: object) -> object:
    if value is None:
        return None
    try:
        encoded = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(f"can't be written as JSON: {exc}") from None
    if encoded.count(b"[") + encoded.count(b"{") > MAX_USAGE_PARTS:
        raise ValueError(f"has more than {MAX_USAGE_PARTS} lists and objects")
    if len(encoded) > MAX_USAGE_BYTES:
        raise ValueError(f"has {len(encoded)} bytes as JSON; at most {MAX_USAGE_BYTES} are kept")
    if b"\\u0000" in encoded:
        raise ValueError("must not contain a NUL character")
    # As JSON has it, in an object of its own: a set, a date or a later change of the caller's must not matter.
    return msgspec.json.decode(encoded)


def _meters(value: object) -> object:
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise ValueError("must be a table of meters and counts")  # noqa: TRY004 - a reason, for pydantic
    try:
        counts = Usage.of(value).counts
    except InvalidRequest as exc:
        raise ValueError(exc.message) from None
    return {name: count if type(count) is int else str(count) for name, count in counts.items() if name in value}


class Stored(Enum):
    """Where the ledger keeps a field that has no column of its own: in one of three JSON objects, under its name."""

    USAGE = "usage"  # the quantity of a meter: part of the fingerprint, summed by reports
    PRICE = "price"  # what the price version does not say
    DETAILS = "details"  # everything else


def _text(limit: int) -> Any:
    return Annotated[str, BeforeValidator(_printable), Field(max_length=limit)]


Id = Annotated[StrictInt, Field(ge=1, le=MAX_QUOTA)]
Tokens = Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)]
Quota = Annotated[StrictInt, Field(ge=0, le=MAX_QUOTA)]
#: The quantity of a meter: tokens, calls, seconds ... Such a field needs no column and no migration.
Meter = Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS), Stored.USAGE]


class ConsumeLog(BaseModel):
    """One request's usage. Quota in units of quota, tokens in tokens, times in milliseconds.

    Raises InvalidRequest that names every field that can't be booked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_id: Id = Field(description="who pays")
    channel_id: Annotated[StrictInt, Field(ge=0, le=MAX_QUOTA)] = Field(description="the upstream; 0: none")
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    model_name: _text(200) = ""  # type: ignore[valid-type]
    token_id: Id = Field(description="the user's token that pays with it")
    token_name: _text(200) = ""  # type: ignore[valid-type]
    quota: Quota = Field(description="what is charged")
    content: _text(2000) = Field("", description="a remark")  # type: ignore[valid-type]
    pre_consumed_quota: Quota = Field(0, description="as the reference reports it; nothing computes with it")

    request_id: Annotated[str, BeforeValidator(check_request_id)] = Field(
        description="a UUIDv7; its time picks the ledger's month"
    )
    client_key: _text(200) = Field("", description="an id of the caller's own")  # type: ignore[valid-type]
    group: _text(64) = "default"  # type: ignore[valid-type]
    model_ratio: _text(64) = Field("", description="the price, for the record")  # type: ignore[valid-type]
    completion_ratio: _text(64) = Field("", description="likewise")  # type: ignore[valid-type]
    group_ratio: _text(64) = Field("", description="likewise")  # type: ignore[valid-type]
    elapsed_ms: Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)] = 0
    is_stream: StrictBool = False
    usage: Annotated[dict[str, Any] | None, BeforeValidator(_usage_detail), Stored.DETAILS] = Field(
        None, description=f"the upstream's own object, at most {MAX_USAGE_BYTES:,} bytes as JSON"
    )
    usage_source: Annotated[Literal["", "prompt", "counted", "estimate"], Stored.DETAILS] = Field(
        "",
        description="who said so if the upstream did not: the prompt as counted before, what the gateway counted, or"
        " what was held, because the upstream's word could not be read",
    )
    unread: Annotated[dict[str, Any] | None, BeforeValidator(_usage_detail), Stored.DETAILS] = Field(
        None, description="an upstream's object that could not be read or priced, and why; a dead letter says so"
    )
    decreases: Annotated[dict[str, StrictInt] | None, Stored.DETAILS] = Field(
        None, description="counts that an upstream once gave higher, by name"
    )
    meters: Annotated[dict[str, Any] | None, BeforeValidator(_meters), Stored.USAGE] = Field(
        None, description="counts beside prompt and completion tokens, by meter: cache_read_tokens, web_searches ..."
    )
    price_version: Annotated[StrictInt | None, Field(ge=1, le=MAX_QUOTA)] = Field(
        None, description="the price list that priced it (`billing-tasks prices history`)"
    )
    cost: Annotated[StrictInt | None, Field(ge=0, le=MAX_QUOTA)] = Field(
        None, description="what the channel charges for it, in quota; left out: not known"
    )
    price: Annotated[dict[str, Any] | None, BeforeValidator(_usage_detail), Stored.PRICE] = Field(
        None, description="how it was priced, beside the list: facts, factors, tier, variants"
    )
    used_at_ms: Annotated[StrictInt | None, Field(ge=0, le=MAX_MOMENT_MS)] = Field(
        None, description="when it was used, in milliseconds since 1970; left out: when it is consumed"
    )

    def __init__(self, /, **fields: Any) -> None:
        """Raises InvalidRequest naming each field that is wrong, and why."""
        try:
            super().__init__(**fields)
        except ValidationError as exc:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'log'}: {e['msg'].removeprefix('Value error, ')}"
                + (f" (got {shorten(e['input'])})" if e["type"] != "missing" else "")
                for e in exc.errors(include_url=False)
            )
            raise InvalidRequest(f"ConsumeLog can't be booked: {problems}") from None

    @property
    def fingerprint(self) -> str:
        """Same fingerprint, same consume: who, where, what and how much; no timings, no remarks."""
        return consume_fingerprint(
            user_id=self.user_id,
            token_id=self.token_id,
            channel_id=self.channel_id,
            model_name=self.model_name,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            quota=self.quota,
            usage=self.kept_in(Stored.USAGE),
        )

    def kept_in(self, column: Stored) -> dict[str, Any] | None:
        """The fields that the ledger keeps in this object, by name; None: none has a value."""
        return in_object({name: value for name in json_fields().get(column, ()) if (value := getattr(self, name))})


#: Fields that are objects whose own names are those in the ledger's object.
_SPREAD = frozenset({"meters", "price"})


def in_object(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Fields of one JSON object as the ledger keeps them; None: there are none."""
    if not fields:
        return None
    for name in _SPREAD & fields.keys():
        fields.update(fields.pop(name))
    return fields


@cache
def json_fields() -> dict[Stored, tuple[str, ...]]:
    """The names of the fields without a column, by where the ledger keeps them."""
    found: dict[Stored, list[str]] = {}
    for name, declared in ConsumeLog.model_fields.items():
        for marked in declared.metadata:
            if isinstance(marked, Stored):
                found.setdefault(marked, []).append(name)
    return {column: tuple(names) for column, names in found.items()}


@cache
def column_fields() -> tuple[str, ...]:
    """The names of the fields that have a column of their own."""
    elsewhere = {name for names in json_fields().values() for name in names}
    return tuple(name for name in ConsumeLog.model_fields if name not in elsewhere)
