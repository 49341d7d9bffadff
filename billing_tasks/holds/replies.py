"""What Redis answers, taken apart: one class per kind of reply, and the functions that read it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

import msgspec

from billing_tasks.errors import InvalidRequest
from billing_tasks.holds import outcomes
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Reserved:
    """Reply of reserve.lua or extend.lua; beside the outcome, clock and epoch only what the outcome tells is set."""

    outcome: outcomes.Reserve | outcomes.Extend
    now_ms: int
    epoch: str
    available: int = 0  # held: after it; refused: too little
    expires_at_ms: int = 0  # held
    age_ms: int = 0  # refused by what is cached: how old that is
    closed_as: str = ""  # consumed, released or expired
    backlog: int = 0  # events that wait
    version: int = 0  # not loaded, stale: the highest version of an account that was seen of PostgreSQL


@dataclass(frozen=True, slots=True)
class Closed(Generic[R]):
    """Reply of consume, release and expire: the outcome, the quota that was held, and whether to ring."""

    outcome: R
    held: int
    ring: bool


@dataclass(frozen=True, slots=True)
class Available:
    """Reply of balance.lua."""

    loaded: bool
    balance: int
    held: int
    unposted: int
    age_ms: int
    now_ms: int
    epoch: str
    version: int  # the highest version of an account that was seen of PostgreSQL

    @property
    def available(self) -> int:
        """What can still be reserved, in quota."""
        return self.balance - self.held - self.unposted


@dataclass(frozen=True, slots=True)
class LeaseReply:
    """Reply of lease.lua."""

    outcome: outcomes.Lease
    now_ms: int
    epoch: str
    ledger: str  # the run of PostgreSQL that the cached accounts are of; '': not known
    version: int  # the highest that was seen of it
    seq: int  # the highest number that was given to an event in this epoch


@dataclass(frozen=True, slots=True)
class EpochState:
    """One epoch, as a shard's `meta` has it; `before_*`: what was left of the last one (0: nothing).

    `settled` and `version`: the highest number that left the outbox in this epoch, and the highest version of an
    account that was seen of this run of PostgreSQL. `loads` counts its runs; `ledger` names it.
    """

    epoch: int
    seq: int
    before_epoch: int
    before_seq: int
    settled: int
    version: int
    loads: int
    ledger: str

    @property
    def loading(self) -> str:
        """The epoch of loading, as include/fence.lua puts it together."""
        return f"{self.epoch}.{self.loads}" if self.loads else str(self.epoch)


class OutboxEntry(msgspec.Struct, frozen=True, gc=False):
    """One event as it lies in the outbox."""

    entry_id: str
    kind: str
    request_id: str
    user_id: int
    token_id: int
    weight: int
    held: int
    filed_ms: int  # the server's clock
    payload: bytes
    event: bytes  # all of this but the payload, as the script wrote it; empty: no script of ours did
    numbered: bool = True  # False: another program chose its id

    @property
    def epoch(self) -> int:
        """The epoch in which it was filed."""
        return int(self.entry_id.split("-")[0])

    @property
    def seq(self) -> int:
        """Its number in that epoch; numbers have no gaps."""
        return int(self.entry_id.split("-")[1])

    def read(self) -> Event:
        """Header and payload as one event. Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError or
        InvalidRequest if they are none."""
        if not self.request_id.isascii():
            raise InvalidRequest("the outbox entry names a request by more than ASCII, as no script of ours does")
        event = events.decode(self.payload)
        events.complete(
            event,
            kind=self.kind,
            request_id=self.request_id,
            user_id=self.user_id,
            token_id=self.token_id,
            weight=self.weight,
            held=self.held,
            filed_ms=self.filed_ms,
        )
        return event


@dataclass(frozen=True, slots=True)
class DueMembers:
    """Members of `due`: request ids, and what another program added that can be none."""

    request_ids: list[str]
    strange: list[bytes]

    @classmethod
    def read(cls, reply: list[bytes]) -> DueMembers:
        """From the reply of ZRANGE."""
        ids, strange = [], []
        for member in reply:
            (ids.append(member.decode()) if member.isascii() else strange.append(member))
        return cls(ids, strange)


@dataclass(frozen=True, slots=True)
class HoldState:
    """A hold or its tombstone, taken apart."""

    state: str
    user_id: int
    token_id: int
    quota: int
    client_key: str = ""  # the caller's own, while it is open
    price: str = ""  # what was asked of which price list, likewise


def text(value: Any) -> str:
    """A word of a reply, whether it came as bytes or not; bytes that are no text, of another program, are shown."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


_HOLD = re.compile(rb"([A-Za-z]+) (\d+) (\d+) (\d+) \S+(.*)", re.DOTALL)
_WORD = re.compile(rb" (price|key):(\S+)")


def parse_hold(packed: bytes | None) -> HoldState | None:
    """The packed string of a hold key, read as the scripts read it: what no script wrote is no hold."""
    match = _HOLD.match(packed or b"")
    if match is None:
        return None
    words = {name: said.decode("ascii", "replace") for name, said in _WORD.findall(match[5])}
    numbers = int(match[2]), int(match[3]), int(match[4])
    return HoldState(match[1].decode(), *numbers, unquote(words.get(b"key", "")), words.get(b"price", ""))


#: As outbox.lua writes it and entry.lua reads it; numbers of more digits are no id and no quota and fit no bigint.
_EVENT = re.compile(rb"([A-Za-z]+) (\S+) " + rb" ".join([rb"(\d{1,18})"] * 5) + rb"(?: .*)?", re.DOTALL)
_KINDS = {kind.encode(): str(kind) for kind in Kind}


def parse_entry(raw: tuple[bytes, list[bytes]]) -> OutboxEntry:
    """One element of an XRANGE reply. What a script of ours did not write still becomes an entry:
    it must be found, kept as a dead letter and removed, not block the shard."""
    entry_id, flat = raw
    written = _EVENT.fullmatch(flat[1]) if flat[0] == b"event" and len(flat) >= 4 and flat[2] == b"payload" else None
    if written is None:
        return OutboxEntry(entry_id.decode(), "", "", 0, 0, 0, 0, 0, b" ".join(flat), b"", flat[0] == b"strange")
    kind, request_id, user_id, token_id, weight, held, filed_ms = written.groups()
    return OutboxEntry(
        entry_id.decode(),
        _KINDS.get(kind) or kind.decode(),
        request_id.decode("utf-8", "surrogateescape"),
        int(user_id),
        int(token_id),
        int(weight),
        int(held),
        int(filed_ms),
        flat[3],
        flat[1],
    )


def read_reserved(reply: list[Any]) -> Reserved:
    """Reply of reserve.lua."""
    return _read_reserved(outcomes.Reserve(reply[0].decode()), reply)


def read_extended(reply: list[Any]) -> Reserved:
    """Reply of extend.lua."""
    return _read_reserved(outcomes.Extend(reply[0].decode()), reply)


def _read_reserved(outcome: outcomes.Reserve | outcomes.Extend, reply: list[Any]) -> Reserved:
    """What both scripts say by one word they say in one way."""
    first, second = reply[1], reply[2]
    now_ms, epoch = reply[3], reply[4].decode()
    match outcome:
        case outcomes.Reserve.HELD | outcomes.Reserve.ALREADY_HELD | outcomes.Extend.EXTENDED:
            return Reserved(outcome, now_ms, epoch, second, first)
        case outcomes.Reserve.HOLD_CLOSED:
            return Reserved(outcome, now_ms, epoch, closed_as=first.decode())
        case outcomes.Reserve.BACKLOG_FULL:
            return Reserved(outcome, now_ms, epoch, backlog=first)
        case outcomes.Reserve.NOT_LOADED | outcomes.Reserve.STALE:
            return Reserved(outcome, now_ms, epoch, version=first)
        case _:
            return Reserved(outcome, now_ms, epoch, available=first, age_ms=second)


def read_epoch(reply: list[Any]) -> EpochState:
    """Fields of a shard's `meta`, in the order of EpochState; one that is not there, or no number, is 0."""
    numbers = (int(number) if (number or b"").isdigit() and len(number) <= 18 else 0 for number in reply[:7])
    epoch, seq, before_epoch, before_seq, settled, version, loads = numbers
    return EpochState(epoch, seq, before_epoch, before_seq, settled, version, loads, text(reply[7] or ""))


def closed(enum: type[R]) -> Callable[[list[Any]], Closed[R]]:
    """A reader of the replies of consume, release or expire."""

    def read(reply: list[Any]) -> Closed[R]:
        return Closed(enum(reply[0].decode()), reply[1], bool(reply[2]))  # type: ignore[call-arg]

    return read


read_consumed = closed(outcomes.Consume)
read_released = closed(outcomes.Release)
read_expired = closed(outcomes.Expire)
