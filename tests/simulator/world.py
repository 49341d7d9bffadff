"""The servers of one process, and the stores of the product over them. Emptied for every history."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from billing_tasks.admin.accounts import Accounts
from billing_tasks.client.base import BookkeeperBase
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.lab.servers import embedded_servers
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings
from tests.simulator.books import Key
from tests.simulator.stepping import Parked, SteppedDatabase
from tests.simulator.watched import WatchedLedger

SHARDS = 2
BATCH = 3
#: Nothing of ours may run out by itself while a history runs: time passes when the history says so.
LONG_MS = 3_000_000
#: A lock that is held is held by a parked transaction: waiting longer changes nothing.
LOCK_SECONDS = 0.005

#: user -> opening quota; token -> (owner, opening quota, unlimited). Users 1 and 3 share a shard.
USERS = {1: 30, 2: 25, 3: 20}
TOKENS = {1: (1, 25, False), 2: (1, 0, True), 3: (2, 40, False), 4: (3, 15, False)}

_TABLES = (
    *("users", "tokens", "channels", "channel_usage", "ledger_entries", "top_ups", "refunds"),
    *("outbox_cursors", "incidents", "dead_letter_history", "dead_letters"),
)
_USERS = ", ".join(f"({user}, {quota})" for user, quota in USERS.items())
_TOKENS = ", ".join(f"({token}, {user}, {quota}, {free})" for token, (user, quota, free) in TOKENS.items())
_FILL = f"""
    set session_replication_role = origin;
    insert into billing.users (id, quota) values {_USERS};
    insert into billing.tokens (id, user_id, remain_quota, unlimited_quota) values {_TOKENS}
"""
#: The ledger's own triggers refuse this, and rightly.
_EMPTY = f"""
    set session_replication_role = replica;
    {"".join(f"delete from billing.{table};" for table in _TABLES)}
    select setval('billing.versions', 1000), setval('billing.dead_letters_id_seq', 1, false);
"""
_TRUNCATE = f"""
    set session_replication_role = replica;
    truncate {", ".join(f"billing.{table}" for table in _TABLES)} restart identity cascade;
"""
_SEQUENCES = """
    select 'billing.' || sequencename as name, coalesce(last_value, start_value) as last,
        last_value is not null as called
    from pg_sequences where schemaname = 'billing'
"""
_BLOCKING = "select distinct unnest(pg_blocking_pids(pid)) from pg_locks where not granted"
#: The run_id of a server that is not there any more.
ANOTHER_RUN = "0" * 40
#: Deleted rows pile up, as autovacuum is off.
_TRUNCATE_EVERY = 100


@contextmanager
def open_world() -> Iterator[World]:
    """Servers of this process's own, for as long as the block; nothing stays."""
    with (
        tempfile.TemporaryDirectory(prefix="billing-simulator-", dir="/tmp") as folder,
        _own_environment(folder),
        embedded_servers(fast=True) as servers,
    ):
        upgrade(servers.database_url)
        with psycopg.connect(servers.database_url, autocommit=True) as sql:
            sql.execute("alter system set autovacuum = off")
            sql.execute("select pg_reload_conf()")
        with closing(World(servers.redis_url, servers.database_url)) as world:
            yield world


@contextmanager
def _own_environment(folder: str) -> Iterator[None]:
    """As root, PostgreSQL's programs and data go below `folder`; the caller's own BILLING_* decides nothing."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("BILLING_")]:
        del os.environ[name]
    if os.geteuid() == 0:
        Path(folder).chmod(0o755)
        os.environ["BILLING_LAB_PUBLIC_FOLDER"] = str(Path(folder) / "lab")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class World:
    """One process's servers. `ledger` gives up at a lock, `patient` queues for it."""

    def __init__(self, redis_url: str, database_url: str) -> None:
        self.settings = Settings(
            redis_url=redis_url,
            database_url=database_url,
            shards=SHARDS,
            batch_size=BATCH,
            backlog_limit=24,
            fresh_seconds=600,
            refusal_fresh_seconds=30,
            hold_ttl_seconds=LONG_MS // 1000,
            tombstone_seconds=LONG_MS // 1000,
            lease_ms=LONG_MS,
            doorbell_ms=LONG_MS,
            max_attempts=3,
            database_connections=8,
            lock_timeout_seconds=LOCK_SECONDS,
            redis_timeout_seconds=10,
        )
        #: after the storm the order of things matters less than the time it takes
        self.calm_settings = self.settings.model_copy(update={"batch_size": 100})
        self.runtime = Runtime(self.settings)
        self.runtime.ledger = self.ledger = WatchedLedger(SteppedDatabase(self.settings))
        patient = self.settings.model_copy(update={"lock_timeout_seconds": 30.0, "statement_timeout_seconds": 60.0})
        self.patient = WatchedLedger(SteppedDatabase(patient))
        self.commands = self.runtime.commands
        self.gateway = BookkeeperBase(self.settings, self.commands)
        self.enqueueing = BookkeeperBase(self.settings.model_copy(update={"dispatch": "request"}), self.commands)
        self.accounts = Accounts(self.runtime)
        self.redis: Any = self.runtime.holds.client
        self.sql = psycopg.connect(database_url, autocommit=True)
        self._emptied = 0
        self._run = ""  # of PostgreSQL, since a restore

    def empty(self) -> None:
        """As at the beginning of every history."""
        self.redis.execute_command("FLUSHDB")
        self._emptied += 1
        emptying = _TRUNCATE if self._emptied % _TRUNCATE_EVERY == 1 else ""
        self.sql.execute(emptying + _EMPTY + _FILL)
        self._run = ""

    def opening_versions(self) -> list[tuple[Key, int]]:
        """Of the accounts of a history that has just begun."""
        rows = self.sql.execute("select 'user', id, version from billing.users union all"
                                " select 'token', id, version from billing.tokens")  # fmt: skip
        return [((which, account), version) for which, account, version in rows]

    def close(self) -> None:
        """Give everything back."""
        self.sql.close()
        self.patient.dispose()
        self.runtime.close()

    # -- Redis --------------------------------------------------------------------------------------------

    def send(self, command: Command[Any]) -> Any:
        """One command."""
        return self.runtime.holds.send(command)

    def account_key(self, key: Key) -> str:
        """Where a user or token is cached, and its counters."""
        which, account = key
        keys = self.commands.keys
        return (
            keys.user(keys.shard_of(account), account)
            if which == "user"
            else keys.token(keys.shard_of(TOKENS[account][0]), account)
        )

    def fields(self, keys: list[Key], *names: str) -> list[list[int | None]]:
        """Fields of several accounts at one moment."""
        words = [("HMGET", self.account_key(key), *names) for key in keys]
        reads = tuple(Command(w, lambda reply: [None if v is None else int(v) for v in reply]) for w in words)
        return self.runtime.holds.send_all(Pipeline(reads))

    def version_in(self, key: Key) -> int | None:
        """Of an account as it is cached."""
        return self.fields([key], "version")[0][0]

    def look(self, keys: list[Key]) -> list[dict[str, Any]]:
        """Counters and cached accounts; `loaded`: as reserve.lua would see it."""
        names = ("held", "unposted", "balance", "version", "loaded_epoch", "loaded_at")
        words = [("HMGET", self.commands.keys.meta(at), "epoch", "loads", "run_id", "replid") for at in range(SHARDS)]
        metas = [Command(w, list) for w in words]
        reads = [Command(("HMGET", self.account_key(key), *names), list) for key in keys]
        now_ms, *replies = self.runtime.holds.send_all(Pipeline((self.commands.server_time(), *metas, *reads)))
        seen = []
        for key, reply in zip(keys, replies[SHARDS:], strict=True):
            cached: dict[str, Any] = dict(zip(names, map(_int_or_text, reply), strict=True))
            epoch, loads, *run = replies[(key[1] if key[0] == "user" else TOKENS[key[1]][0]) % SHARDS]
            loaded = cached["loaded_epoch"] is not None and epoch is not None and ANOTHER_RUN.encode() not in run
            loaded = loaded and cached["loaded_epoch"] == _int_or_text(epoch + b"." + loads if loads else epoch)
            seen.append({**cached, "loaded": loaded, "age_ms": now_ms - (cached["loaded_at"] or 0)})
        return seen

    def loading(self, at: int) -> str:
        """The epoch in which cached accounts of a shard count."""
        return self.send(self.commands.epoch(at)).loading

    # -- PostgreSQL ---------------------------------------------------------------------------------------

    def save_postgresql(self) -> None:
        """All that is committed."""
        tables = [f"create table saved.{table} as table billing.{table}" for table in _TABLES]
        tables.append(f"create table saved.sequences as {_SEQUENCES}")
        self.sql.execute("drop schema if exists saved cascade; create schema saved; " + "; ".join(tables))

    def restore_postgresql(self) -> None:
        """Into new files, as any restore. Sequences go back, too."""
        inserts = [f"insert into billing.{table} overriding system value table saved.{table}" for table in _TABLES]
        self.sql.execute(_TRUNCATE + "; ".join(inserts) + "; set session_replication_role = origin")
        self.sql.execute("select setval(name, last, called) from saved.sequences")
        ((self._run,),) = self.sql.execute("select billing.server_run()").fetchall()

    def is_aware(self, at: int) -> bool:
        """Whether this shard of Redis knows which run of PostgreSQL answers, or none at all."""
        known = self.redis.execute_command("HGET", self.commands.keys.meta(at), "ledger")
        return not self._run or known is None or known.decode() == self._run

    def saw_nothing(self, at: int) -> bool:
        """Whether this shard of Redis saw nothing of PostgreSQL, and has nothing to tell it.

        Then it may know an earlier run: who was late to tell it of two restores, told it that. The next account that
        is loaded there meets the run of today.
        """
        seen = self.redis.execute_command("HMGET", self.commands.keys.meta(at), "settled", "version")
        here = self.commands.keys.shard(at)
        cached = [key for kind in ("user", "token") for key in self.redis.execute_command("KEYS", f"{here}{kind}:*")]
        return not cached and not any(map(int, filter(None, seen)))

    def lost_numbers(self) -> set[tuple[int, int, int]]:
        """Shard, epoch and number of what incidents say is gone."""
        return self._numbers("select shard, coalesce(of_epoch, epoch), unnest(lost) as part from billing.incidents")

    def accounted_numbers(self) -> set[tuple[int, int, int]]:
        """Of what was posted or set aside."""
        return self._numbers("select shard, epoch, unnest(accounted) as part from billing.outbox_cursors")

    def _numbers(self, parts: str) -> set[tuple[int, int, int]]:
        rows = self.sql.execute(f"select *, lower(part), upper(part) from ({parts}) as found").fetchall()
        return {(shard, epoch, seq) for shard, epoch, _, first, end in rows for seq in range(first, end)}

    def call_queueing(self, call: Callable[[Any], Any], parked: list[Parked], let_go: Callable[[Parked], None]) -> Any:
        """A call of the ledger that waits for locks; transactions that hold them are let go while it waits."""
        outcome: list[Any] = []
        thread = threading.Thread(target=_run, args=(call, self.patient, outcome))
        thread.start()
        while thread.is_alive():
            for (blocking,) in self.sql.execute(_BLOCKING).fetchall():
                for transaction in [t for t in parked if t.pid == blocking]:
                    let_go(transaction)
            thread.join(0.0005)
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]


def _int_or_text(value: bytes | None) -> int | str | None:
    if value is None:
        return None
    return int(value) if value.lstrip(b"-").isdigit() else value.decode()


def _run(call: Callable[[Any], Any], ledger: WatchedLedger, outcome: list[Any]) -> None:
    try:
        outcome.append(call(ledger))
    except BaseException as error:
        outcome.append(error)
