"""Setup: settings of the servers under which this product can't keep its word. Reads only; one round trip each.

A server may refuse to tell (a user without CONFIG, a managed Redis): what can't be known is no warning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

from billing_tasks.errors import BillingError
from billing_tasks.flows.audit.answers import SetupWarning
from billing_tasks.holds.store import HoldStore
from billing_tasks.ledger.rows import ServerSetup
from billing_tasks.ledger.store import Ledger
from billing_tasks.settings import Settings

#: Clocks that differ by more than this are said. Corrections and a round trip stay far below.
CLOCKS_DIFFER_MS = 2000


def look(*, holds: HoldStore, ledger: Ledger, settings: Settings) -> list[SetupWarning]:
    """What is wrong, those left out that the setting accepts. A server that is away is asked nothing."""
    accepted = {code.strip() for code in (settings.accepted_warnings or "").split(",")}
    found: list[SetupWarning] = []
    for ask in (_of_redis, _of_postgresql):
        with suppress(BillingError):
            found += ask(holds, ledger, settings)
    return [warning for warning in found if warning.code not in accepted]


def _of_redis(holds: HoldStore, ledger: Ledger, settings: Settings) -> list[SetupWarning]:  # noqa: ARG001 - as the other
    before_ms = time.time() * 1000
    now_ms = holds.send(holds.commands.server_time())
    after_ms = time.time() * 1000
    info = holds.send(holds.commands.info())
    config = {}
    for name in ("save", "appendfsync"):
        with suppress(BillingError):
            config[name] = holds.send(holds.commands.config(name))
    return [*_redis_keeps(info, config), *_clock("redis_clock", "Redis's", now_ms, before_ms, after_ms)]


def _redis_keeps(info: dict[str, str], config: dict[str, str | None]) -> Iterator[SetupWarning]:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield SetupWarning(
            "redis_eviction",
            f"Redis evicts keys when its memory is full (maxmemory-policy {policy}): holds and usage that waits to be"
            " booked would vanish, and quota be granted twice.",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf",
        )
    if info.get("role") == "slave":
        yield SetupWarning(
            "redis_replica",
            "BILLING_REDIS_URL leads to a replica: nothing can be reserved.",
            "Lead it to the primary",
        )
    appends, snapshots = info.get("aof_enabled") == "1", config.get("save")
    if not appends and snapshots == "":
        yield SetupWarning(
            "redis_persistence",
            "Redis writes nothing to disk: a restart loses usage that waits to be booked.",
            "CONFIG SET appendonly yes, and in redis.conf",
        )
    elif not appends and "aof_enabled" in info:
        yield SetupWarning(
            "redis_snapshots_only",
            "Redis writes snapshots only (appendonly no): a restart loses the usage since the last one that was not"
            " booked yet.",
            "CONFIG SET appendonly yes, and in redis.conf",
        )
    elif config.get("appendfsync") not in (None, "always"):
        yield SetupWarning(
            "redis_fsync",
            f"Redis answers before usage is on disk (appendfsync {config['appendfsync']}): a machine that loses power"
            " loses what was not booked yet.",
            "CONFIG SET appendfsync always, and in redis.conf",
        )


def _of_postgresql(holds: HoldStore, ledger: Ledger, settings: Settings) -> list[SetupWarning]:  # noqa: ARG001
    before_ms = time.time() * 1000
    setup = ledger.server_setup()
    after_ms = time.time() * 1000
    return [*_postgresql_keeps(setup, settings), *_clock(*_POSTGRESQL_CLOCK, setup.now_ms, before_ms, after_ms)]


_POSTGRESQL_CLOCK = "postgresql_clock", "PostgreSQL's"


def _postgresql_keeps(setup: ServerSetup, settings: Settings) -> Iterator[SetupWarning]:
    for name, value in (("fsync", setup.fsync), ("full_page_writes", setup.full_page_writes)):
        if value != "on":
            yield SetupWarning(
                f"postgresql_{name}",
                f"PostgreSQL runs with {name} = {value}: a crash of its machine may destroy the books.",
                f"Set {name} = on in postgresql.conf and reload it",
            )
    if setup.synchronous_commit == "off":
        yield SetupWarning(
            "postgresql_synchronous_commit",
            "PostgreSQL answers before a commit is on disk (synchronous_commit = off), although billing asks for it"
            " when it connects.",
            "Let start-up options through (PgBouncer: no ignore_startup_parameters for options), or set"
            " synchronous_commit = on for the database",
        )
    if setup.in_recovery:
        yield SetupWarning(
            "postgresql_replica",
            "BILLING_DATABASE_URL leads to a standby: nothing can be booked.",
            "Lead it to the primary (target_session_attrs=read-write chooses among several hosts)",
        )
    wanted_ms = round(settings.statement_timeout_seconds * 1000)
    if setup.statement_timeout_ms != wanted_ms:
        yield SetupWarning(
            "postgresql_timeouts",
            f"statement_timeout is {setup.statement_timeout_ms} ms, and billing asked for {wanted_ms} ms when it"
            " connected: a pooler (PgBouncer by transactions, say) drops start-up options, and a statement may run"
            " and keep its locks long after its caller has gone.",
            f"Let the pooler pass options, pool by sessions, or ALTER ROLE ... SET statement_timeout = {wanted_ms}",
        )


def _clock(code: str, whose: str, now_ms: float, before_ms: float, after_ms: float) -> Iterator[SetupWarning]:
    off_ms = max(before_ms - now_ms, now_ms - after_ms)  # between the two it is right, however long the round trip
    if off_ms > CLOCKS_DIFFER_MS:
        yield SetupWarning(
            code,
            f"{whose} clock and this host's differ by {off_ms / 1000:.0f} s: holds expire at other times than meant,"
            " and ids of one host are refused by another.",
            "Run NTP on all hosts",
        )
