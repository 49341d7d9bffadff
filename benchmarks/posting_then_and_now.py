"""Posting alone: release 0.1.0's function beside today's, in turns, on one server whose every commit is synced.

    python -m benchmarks.posting_then_and_now

Each release's schema has a database of its own. Prints medians in milliseconds and the ratios of pairs, then how wide
a plain text request's row is.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from billing_tasks.lab.servers import embedded_servers
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.model import events, priced
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.ids import new_request_id, now_ms
from billing_tasks.pricing import PriceList, Usage

SCHEMA = Path(__file__).parents[1] / "tests/releases/0.1.0/sql/schema.sql"
USERS = 5000
#: What Anthropic's API reports of a request that wrote and read its cache, thought, and searched the web.
SIX_METERS = {
    "input_tokens": 21_000, "output_tokens": 800, "cache_read_tokens": 18_000, "cache_write_tokens": 2_000,
    "cache_write_1h_tokens": 500, "output_reasoning_tokens": 600, "web_searches": 2,
}  # fmt: skip
PAIRS = {1: 150, 10: 100, 34: 80, 100: 60, 1000: 30}
EPOCH = 10**15
ACCOUNTS = (
    "insert into billing.users (id, quota) select n, 1000000000 from generate_series(1, 5000) n",
    "insert into billing.tokens (id, user_id, remain_quota) select id, id, 1000000000 from billing.users",
    "vacuum analyze",
)
PRICES = PriceList()
Post = Callable[[list[events.Event]], float]


def main() -> None:
    """Measure and print."""
    with embedded_servers() as servers:
        then, now = (_database(servers.database_url, name) for name in ("posting_then", "posting_now"))
        upgrade(now)
        with psycopg.connect(then, autocommit=True) as old, psycopg.connect(now, autocommit=True) as new:
            old.execute(SCHEMA.read_text())
            for connection in (old, new):
                for statement in ACCOUNTS:
                    connection.execute(statement)
            print("events   pairs   0.1.0 ms   now ms   ratio (its quartiles)")
            for size, pairs in PAIRS.items():
                _compare(size, pairs, _as_0_1_0(old), _as_now(new))
            for name, connection in (("0.1.0", old), ("now", new)):
                print(f"bytes of a row, {name}: {_width(connection)}")
            post = _as_now(new)
            new.execute("set session_replication_role = replica")  # the ledger's own trigger refuses this, and rightly
            new.execute("truncate billing.ledger_entries")
            new.execute("reset session_replication_role")
            post(_batch(500, 10**6, SIX_METERS))
            print(f"bytes of a row with six meters: {_width(new)}")


def _width(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "select round(avg(pg_column_size(e))) from billing.ledger_entries e where kind = 'consume'"
    ).fetchone()
    return int(row[0]) if row else 0


def _database(url: str, name: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    place = urlsplit(url)
    return urlunsplit(place._replace(path=f"/{name}"))


def _compare(size: int, pairs: int, old: Post, new: Post) -> None:
    seconds: dict[Post, list[float]] = {old: [], new: []}
    for number in range(pairs):
        for post in (old, new) if number % 2 else (new, old):
            seconds[post].append(post(_batch(size, number)))
    ratios = [b / a for a, b in zip(seconds[old], seconds[new], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    then, now = (statistics.median(seconds[post]) * 1000 for post in (old, new))
    print(f"{size:6} {pairs:7} {then:10.2f} {now:8.2f}   {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


def _batch(size: int, number: int, meters: Mapping[str, int] | None = None) -> list[events.Event]:
    """Requests priced by a list, as a gateway files them."""
    made = []
    price = PRICES.price(model="gpt-4o" if meters is None else "claude-sonnet-4-5")
    for place in range(size):
        user = (number * 7919 + place * 31) % USERS + 1
        request_id = new_request_id()
        fields = (
            priced.of_text(price, 374, 44)
            if meters is None
            else priced.of_usage(price, Usage.of(meters), {}, request_id)
        )
        log = ConsumeLog(
            request_id=request_id, user_id=user, token_id=user, channel_id=1 + place % 5, elapsed_ms=1200,
            is_stream=True, **(fields or {}),
        )  # fmt: skip
        event = events.of_log(log)
        event.held_quota, event.used_at_ms = 2000, now_ms()
        made.append(event)
    return made


def _as_0_1_0(connection: psycopg.Connection[Any]) -> Post:
    posted = 0

    def post(batch: list[events.Event]) -> float:
        nonlocal posted
        for event in batch:
            event.fingerprint, event.used_at_ms = events.fingerprint_of_0_1_0(event), None
        first, posted = posted + 1, posted + len(batch)
        statement = "select outcomes, users, tokens from billing.post_batch(3, %s, %s, %s, %s)"
        return _timed(connection, statement, (events.encode_all(batch), EPOCH, first, posted))

    return post


def _as_now(connection: psycopg.Connection[Any]) -> Post:
    posted = 0

    def post(batch: list[events.Event]) -> float:
        nonlocal posted
        first, posted = posted + 1, posted + len(batch)
        outboxes = json.dumps([{"shard": 3, "epoch": EPOCH, "seqs": [[first, posted]]}])
        statement = "select outcomes, users, tokens from billing.post_batch_v2(%s, %s)"
        return _timed(connection, statement, (outboxes, events.encode_all(batch)))

    return post


def _timed(connection: psycopg.Connection[Any], statement: str, values: tuple[Any, ...]) -> float:
    began = time.perf_counter()
    answer = connection.execute(statement, values).fetchone()
    seconds = time.perf_counter() - began
    if answer is None or answer[0] is not None:
        raise RuntimeError(f"Not all were posted: {answer}")
    return seconds


if __name__ == "__main__":
    main()
