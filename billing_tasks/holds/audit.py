"""Looks at everything in Redis and says what does not add up. Reads only.

Two looks: one over all keys while traffic goes on, and for each account that
seemed wrong a second one that nothing can interrupt (audit.lua). Only what the
second look confirms is reported. A shard with a long backlog gets no second look, which
would block Redis; its accounts are counted as not judged.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from billing_tasks.holds.commands import Command, Pipeline, call
from billing_tasks.holds.commands.watching import LONGEST_TTL_MS
from billing_tasks.holds.repairs import MOST_IN_A_SHARD, ForgetAccount, RecountAccount, Repair, RescheduleHold
from billing_tasks.holds.replies import OutboxEntry, parse_entry, parse_hold, text
from billing_tasks.holds.store import HoldStore

#: Keys or entries per round trip.
PAGE = 1000
#: As in reserve.lua.
CLOCK_SLACK_MS = 1000

_FIELDS = ("held", "unposted", "balance", "version", "loaded_epoch", "floor_epoch", "loaded_at")


@dataclass(frozen=True, slots=True)
class CachedAccount:
    """An account's hash. balance and version are None if it holds counters only or is of an older epoch."""

    shard: int
    which: str  # user | token
    id: int
    held: int
    unposted: int
    balance: int | None
    version: int | None
    loaded_at_ms: int  # by Redis's clock; 0: nothing is cached

    @property
    def forget(self) -> ForgetAccount:
        """The repair of a cached account that PostgreSQL contradicts."""
        return ForgetAccount(self.shard, self.which, self.id, self.version or 0)


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """Something that does not add up."""

    what: str
    id: str
    expected: int
    actual: int
    repair: Repair | None = None  # None: a person has to look


@dataclass(slots=True)
class Snapshot:
    """What was seen in all shards."""

    accounts: list[CachedAccount] = field(default_factory=list)
    epochs: dict[int, tuple[int, int]] = field(default_factory=dict)  # shard -> epoch, seq: read first
    #: (shard, epoch) -> the numbers in the outbox, as ranges
    in_outbox: defaultdict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    loading: dict[int, bytes] = field(default_factory=dict)  # shard -> epoch of loading
    open_holds: int = 0
    events: int = 0
    unjudged: int = 0  # accounts that seemed wrong in a shard too busy for the second look
    off: list[Discrepancy] = field(default_factory=list)


def audit(store: HoldStore) -> Snapshot:
    """Both looks. Raises Unavailable."""
    seen = Snapshot()
    keys, commands = store.commands.keys, store.commands
    epochs = store.send_all(Pipeline(tuple(commands.epoch(shard) for shard in range(keys.shards))))
    seen.epochs = {shard: (state.epoch, state.seq) for shard, state in enumerate(epochs)}
    seen.loading = {shard: state.loading.encode() for shard, state in enumerate(epochs)}
    holds: Counter[tuple[str, int, int]] = Counter()
    weights: Counter[tuple[str, int, int]] = Counter()
    due: set[str] = set()
    for shard in range(keys.shards):
        for entry in _entries(store, shard):
            seen.events += 1
            if entry.numbered:
                _add_number(seen.in_outbox[shard, entry.epoch], entry.seq)
            weights["user", shard, entry.user_id] += entry.weight
            weights["token", shard, entry.token_id] += entry.weight
        listed = store.send(_raw("ZRANGE", keys.due(shard), 0, -1, "WITHSCORES"))
        due.update(text(member) for member in listed[::2])
        _hold_due_too_late(store, seen, shard, dict(zip(listed[::2], listed[1::2], strict=True)))
    accounts = _scan(store, seen, due, holds)
    seen.accounts = list(accounts.values())
    _cached_in_the_future(store, seen)
    leaving = _leaving(store, seen.accounts)
    for key in holds.keys() | weights.keys() | accounts.keys():
        account = accounts.get(key)
        expected = (holds[key], weights[key])
        if expected != ((account.held, account.unposted) if account else (0, 0)) or key in leaving:
            _second_look(store, seen, key)
    return seen


def _add_number(numbers: list[tuple[int, int]], seq: int) -> None:
    if numbers and numbers[-1][1] == seq - 1:
        numbers[-1] = numbers[-1][0], seq
    else:
        numbers.append((seq, seq))


def _leaving(store: HoldStore, accounts: Iterable[CachedAccount]) -> set[tuple[str, int, int]]:
    """Accounts that explain something and would vanish all the same."""
    found = set()
    for page in _pages([account for account in accounts if account.held or account.unposted]):
        keys = store.commands.keys
        ttls = [_raw("TTL", keys.account(account.shard, account.which, account.id)) for account in page]
        for account, ttl in zip(page, store.send_all(Pipeline(tuple(ttls))), strict=True):
            if int(ttl) >= 0:
                found.add((account.which, account.shard, account.id))
    return found


def _pages(accounts: list[CachedAccount]) -> Iterator[list[CachedAccount]]:
    for at in range(0, len(accounts), PAGE):
        yield accounts[at : at + PAGE]


def _entries(store: HoldStore, shard: int) -> Iterator[OutboxEntry]:
    start = "-"
    while True:
        raw = store.send(_raw("XRANGE", store.commands.keys.outbox(shard), start, "+", "COUNT", PAGE))
        yield from map(parse_entry, raw)
        if len(raw) < PAGE:
            return
        start = "(" + raw[-1][0].decode()


def _scan(
    store: HoldStore, seen: Snapshot, due: set[str], holds: Counter[tuple[str, int, int]]
) -> dict[tuple[str, int, int], CachedAccount]:
    pattern = re.compile(
        re.escape(store.commands.keys.prefix) + r":\{([st]\d+)\}:(hold(?=:.)|(?:user|token)(?=:\d+$)):(.+)"
    )
    shard_of_tag = {tag: shard for shard, tag in enumerate(store.commands.keys.tags)}
    accounts: dict[tuple[str, int, int], CachedAccount] = {}
    cursor = 0
    while True:
        cursor_raw, names = store.send(
            _raw("SCAN", cursor, "MATCH", f"{store.commands.keys.prefix}:{{*", "COUNT", PAGE)
        )
        _set_aside(seen, names)
        found = [
            (name, match) for name in names if (match := pattern.fullmatch(text(name))) and match[1] in shard_of_tag
        ]
        reads = [_raw("GET", n) if m[2] == "hold" else _raw("HMGET", n, *_FIELDS) for n, m in found]
        replies = store.send_all(Pipeline(tuple(reads))) if reads else []
        for (_, match), reply in zip(found, replies, strict=True):
            shard, which, name = shard_of_tag[match[1]], match[2], match[3]
            if which == "hold":
                _count_hold(store, seen, shard, name, reply, due, holds)
            else:
                accounts[which, shard, int(name)] = _cached(seen, shard, which, int(name), reply)
        cursor = int(cursor_raw)
        if cursor == 0:
            return accounts


def _set_aside(seen: Snapshot, names: list[bytes]) -> None:
    """Keys of another type, which mend.lua renamed: what is in them only a person can know."""
    for name in names:
        if b"}:strange:" in name:
            what = "key that billing did not write, to be looked at and deleted"
            seen.off.append(Discrepancy(what, text(name), 0, 1))


def _hold_due_too_late(store: HoldStore, seen: Snapshot, shard: int, due: dict[bytes, bytes]) -> None:
    """Holds that were made while the clock had run ahead."""
    latest = store.send(store.commands.server_time()) + LONGEST_TTL_MS
    for member, expires_at in due.items():
        if float(expires_at) > latest:
            request_id = text(member)
            repair = RescheduleHold(shard, request_id)
            what = "hold that is due too late, in ms since 1970"
            seen.off.append(Discrepancy(what, request_id, latest, int(min(float(expires_at), 1e18)), repair))


def _count_hold(
    store: HoldStore,
    seen: Snapshot,
    shard: int,
    request_id: str,
    packed: bytes | None,
    due: set[str],
    holds: Counter[tuple[str, int, int]],
) -> None:
    hold = parse_hold(packed)
    if hold is None and packed is not None:
        seen.off.append(Discrepancy("hold that no script wrote", request_id, 0, 1))
    if hold is None or hold.state != "held":
        return
    seen.open_holds += 1
    holds["user", shard, hold.user_id] += hold.quota
    holds["token", shard, hold.token_id] += hold.quota
    if request_id not in due and not store.send(_raw("ZSCORE", store.commands.keys.due(shard), request_id)):
        still = parse_hold(store.send(_raw("GET", store.commands.keys.hold(shard, request_id))))
        if still is not None and still.state == "held":
            repair = RescheduleHold(shard, request_id)
            seen.off.append(Discrepancy("hold that would never expire", request_id, 0, hold.quota, repair))


def _cached(seen: Snapshot, shard: int, which: str, account_id: int, reply: list[Any]) -> CachedAccount:
    held, unposted, balance, version = map(_number, reply[:4])
    loaded_epoch, floor_epoch, epoch = reply[4], reply[5], seen.loading.get(shard)
    loaded = loaded_epoch == epoch
    return CachedAccount(
        shard,
        which,
        account_id,
        held or 0,
        unposted or 0,
        balance if loaded else None,
        # Without a cached row this epoch may still know that less than this version is old.
        version if loaded or floor_epoch == epoch else None,
        (_number(reply[6]) or 0) if loaded else 0,
    )


def _cached_in_the_future(store: HoldStore, seen: Snapshot) -> None:
    """Rows that were cached while the clock had run ahead: their age would keep them fresh for as long."""
    latest = store.send(store.commands.server_time()) + CLOCK_SLACK_MS
    for account in seen.accounts:
        if account.loaded_at_ms > latest:
            what = f"{account.which} cached in the future, in ms since 1970"
            seen.off.append(Discrepancy(what, str(account.id), latest, account.loaded_at_ms, account.forget))


def _number(value: bytes | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:  # no script of ours wrote that; the comparison shows it
        return None


def _second_look(store: HoldStore, seen: Snapshot, key: tuple[str, int, int]) -> None:
    which, shard, account_id = key
    keys = store.commands.keys
    account = keys.account(shard, which, account_id)
    counted = store.send(
        call(
            "audit",
            (account, keys.due(shard), keys.outbox(shard)),
            (keys.shard(shard), which, account_id, MOST_IN_A_SHARD),
            lambda reply: tuple(map(int, reply)),
        )
    )
    if not counted:
        seen.unjudged += 1
        return
    held, unposted, holds, weights, ttl = counted
    repair = RecountAccount(shard, which, account_id)
    if held != holds:
        seen.off.append(Discrepancy(f"{which}.held in Redis", str(account_id), holds, held, repair))
    if unposted != weights:
        seen.off.append(Discrepancy(f"{which}.unposted in Redis", str(account_id), weights, unposted, repair))
    if ttl >= 0 and (holds or weights):
        seen.off.append(Discrepancy(f"{which} that would vanish from Redis", str(account_id), -1, ttl, repair))


def _raw(*words: Any) -> Command[Any]:
    return Command(words, lambda reply: reply)
