"""Books: what PostgreSQL and Redis have when all is settled, read by plain SQL and plain commands.

Nothing of the product's own reading is used, so that what it overlooks is seen here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
import redis

from billing_tasks.settings import Settings


@dataclass(frozen=True, slots=True)
class Entry:
    """One ledger entry. `booked_us`: microseconds since 1970, the same for all that one transaction booked.

    Kinds are the ledger's, and `opening` for the balance that an account was made with.
    """

    entry_id: str
    kind: str
    request_id: str | None
    user_id: int
    token_id: int | None
    quota: int
    held_quota: int
    user_quota: int
    token_quota: int
    booked_us: int


@dataclass(frozen=True, slots=True)
class BookedRefund:
    """A row of `refunds`."""

    refund_id: str
    request_id: str
    quota: int
    entry_id: str


@dataclass(frozen=True, slots=True)
class BookedTopUp:
    """A row of `top_ups`."""

    user_id: int
    token_id: int | None
    quota: int
    entry_id: str


@dataclass(frozen=True, slots=True)
class OpenDeadLetter:
    """A dead letter that waits. `refund_id` is empty if it is no refund."""

    number: int
    kind: str
    request_id: str
    refund_id: str
    reason: str
    state: str


@dataclass(frozen=True, slots=True)
class CachedAccount:
    """What Redis has of an account. balance and version are None if what it has is not valid."""

    held: int
    unposted: int
    balance: int | None
    version: int | None
    age_ms: int


@dataclass(frozen=True, slots=True)
class Row:
    """An account in PostgreSQL."""

    balance: int
    version: int
    unlimited: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """What one incident says is gone: so many events that were seen, and what was filed between two moments."""

    kind: str
    events: int
    from_ms: int = 0
    to_ms: int = 0


@dataclass(slots=True)
class Books:
    """Everything at the end of a run."""

    entries: list[Entry] = field(default_factory=list)
    refunds: dict[str, BookedRefund] = field(default_factory=dict)
    top_ups: dict[str, BookedTopUp] = field(default_factory=dict)
    users: dict[int, Row] = field(default_factory=dict)
    tokens: dict[int, Row] = field(default_factory=dict)
    dead_letters: list[OpenDeadLetter] = field(default_factory=list)
    dead_letters_resolved: int = 0
    incidents: dict[str, int] = field(default_factory=dict)  # by kind
    losses: list[Loss] = field(default_factory=list)  # what the incidents say is gone
    holds: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # open: request_id -> user, token, quota
    cached_users: dict[int, CachedAccount] = field(default_factory=dict)
    cached_tokens: dict[int, CachedAccount] = field(default_factory=dict)


def read_books(settings: Settings, *, first_user_id: int) -> Books:
    """All of it, for users from this id on. Redis first: what it knew must be in PostgreSQL by then."""
    books = Books()
    client = redis.Redis.from_url(settings.cache_url)
    try:
        _read_redis(client, settings, books, first_user_id)
    finally:
        client.close()
    with psycopg.connect(settings.database_url) as connection:
        connection.execute("set transaction isolation level repeatable read read only")
        _read_ledger(connection, books, first_user_id)
        _read_accounts(connection, books, first_user_id)
        _read_dead_letters(connection, books)
    return books


_ENTRIES = """
select entry_id::text, case when kind = 'adjust' and content = 'opening balance' then 'opening' else kind end,
       request_id::text, user_id, token_id, quota, held_quota, user_quota, token_quota,
       (extract(epoch from created_at) * 1000000)::bigint
from billing.ledger_entries where user_id >= %s order by created_at
"""


def _read_ledger(connection: psycopg.Connection[Any], books: Books, first_user_id: int) -> None:
    books.entries = [Entry(*row) for row in connection.execute(_ENTRIES, [first_user_id])]
    refunds = "select refund_id, request_id::text, quota, entry_id::text from billing.refunds where user_id >= %s"
    books.refunds = {row[0]: BookedRefund(*row) for row in connection.execute(refunds, [first_user_id])}
    top_ups = "select id, user_id, token_id, quota, entry_id::text from billing.top_ups where user_id >= %s"
    books.top_ups = {row[0]: BookedTopUp(*row[1:]) for row in connection.execute(top_ups, [first_user_id])}


def _read_accounts(connection: psycopg.Connection[Any], books: Books, first_user_id: int) -> None:
    users = "select id, quota, version from billing.users where id >= %s"
    books.users = {row[0]: Row(*row[1:]) for row in connection.execute(users, [first_user_id])}
    tokens = "select id, remain_quota, version, unlimited_quota from billing.tokens where user_id >= %s"
    books.tokens = {row[0]: Row(*row[1:]) for row in connection.execute(tokens, [first_user_id])}


def _read_dead_letters(connection: psycopg.Connection[Any], books: Books) -> None:
    dead_letters = """
        select id, kind, request_id, payload, reason, state from billing.dead_letters
        where state in ('retrying', 'failed') order by id"""
    for number, kind, request_id, payload, reason, state in connection.execute(dead_letters):
        books.dead_letters.append(OpenDeadLetter(number, kind, request_id, _refund_id(bytes(payload)), reason, state))
    resolved = connection.execute("select count(*) from billing.dead_letters where state = 'resolved'").fetchone()
    books.dead_letters_resolved = resolved[0] if resolved else 0
    books.incidents = dict(connection.execute("select kind, count(*) from billing.incidents group by kind").fetchall())
    books.losses = [Loss(*row) for row in connection.execute(_LOSSES)]


#: Events that were new at old numbers came back (a rewind of which all was seen): nothing is gone.
_LOSSES = """
select kind, coalesce(events_bound, 0), coalesce(extract(epoch from unseen_from) * 1000, 0)::bigint,
       coalesce(extract(epoch from unseen_to) * 1000, 0)::bigint
from billing.incidents where kind <> 'rewind' or unseen_from is not null
"""


def _refund_id(payload: bytes) -> str:
    with suppress(ValueError):
        message = json.loads(payload)
        if isinstance(message, dict):
            return str(message.get("refund_id") or "")
    return ""


def _read_redis(client: Any, settings: Settings, books: Books, first_user_id: int) -> None:
    epochs: dict[str, str] = {}
    now_s, now_us = client.time()
    now_ms = now_s * 1000 + now_us // 1000
    for key in sorted(client.scan_iter(f"{settings.key_prefix}:{{*", count=1000)):
        shard, _, rest = key.decode().partition("}:")
        which, _, name = rest.partition(":")
        if which == "hold":
            _read_hold(client.get(key), name, books, first_user_id)
        elif which in ("user", "token"):
            if shard not in epochs:
                epoch, loads = map(_text, client.hmget(f"{shard}}}:meta", "epoch", "loads"))
                epochs[shard] = f"{epoch}.{loads}" if loads else epoch
            fields = {_text(field): _text(value) for field, value in client.hgetall(key).items()}
            cached = books.cached_users if which == "user" else books.cached_tokens
            cached[int(name)] = _cached(fields, epochs[shard], now_ms)


def _read_hold(packed: bytes | None, request_id: str, books: Books, first_user_id: int) -> None:
    state, user, token, quota, *_ = (packed or b"gone 0 0 0 -").decode().split(" ")
    if state == "held" and int(user) >= first_user_id:
        books.holds[request_id] = (int(user), int(token), int(quota))


def _cached(fields: dict[str, str], epoch: str, now_ms: int) -> CachedAccount:
    valid = fields.get("loaded_epoch") == epoch and "balance" in fields
    return CachedAccount(
        int(fields.get("held", 0)),
        int(fields.get("unposted", 0)),
        int(fields["balance"]) if valid else None,
        int(fields["version"]) if valid else None,
        now_ms - int(fields.get("loaded_at", 0)),
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def by_account(entries: list[Entry], which: str) -> Iterator[tuple[int, list[Entry]]]:
    """Entries of each user (`which` = "user") or token, in the order in which they were booked."""
    found: dict[int, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.booked_us):
        account = entry.user_id if which == "user" else entry.token_id
        if account is not None:
            found.setdefault(account, []).append(entry)
    yield from found.items()
