"""Environment: one database and one key prefix of Redis, with everything the product needs to run on them.

Several environments may share the servers (a small ledger beside a large one). Accounts
are numbered from 1, and each user has one token of the same number.
"""

from __future__ import annotations

import gc
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis

from billing_tasks.client.bookkeeper import Bookkeeper
from billing_tasks.flows.audit import verify
from billing_tasks.flows.settlement import settle
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.lab.servers import Servers
from billing_tasks.ledger.columns import tokens_from_json, users_from_json
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.model.posting import ServerRun
from billing_tasks.pricing import Price
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings

MODEL, GROUP = "gpt-4o", "default"
CHANNELS = 20
POLL_SECONDS = 0.01
PAGE = 250  # commands per round trip while filling

_EMPTY = """
set session_replication_role = replica;  -- the ledger's own triggers refuse this, and rightly
truncate billing.users, billing.tokens, billing.channels, billing.channel_usage, billing.ledger_entries,
    billing.top_ups, billing.refunds, billing.outbox_cursors, billing.incidents, billing.dead_letters
    restart identity cascade;
set session_replication_role = default
"""


class Environment:
    """The product over one database of the servers. Close it."""

    def __init__(self, servers: Servers, name: str = "bench", **settings: Any) -> None:
        self.servers = servers
        self.name = name
        database_url = urlsplit(servers.database_url)._replace(path=f"/{name}").geturl()
        self.settings = Settings(
            redis_url=servers.redis_url, database_url=database_url, broker_url=None, key_prefix=name, **settings
        )
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            if connection.execute("select from pg_database where datname = %s", [name]).fetchone() is None:
                connection.execute(f"create database {name}".encode())
        upgrade(database_url)
        self._sql = psycopg.connect(database_url, autocommit=True)
        self.runtime = Runtime(self.settings)
        self.bk = Bookkeeper(self.runtime)

    @cached_property
    def price(self) -> Price:
        """Of the model that everything here uses. Not before Redis is emptied, which may be another environment's."""
        return self.bk.price(model=MODEL, group=GROUP)

    # -- servers ------------------------------------------------------------------------------------------

    def sql(self, statement: str, values: Sequence[object] | Mapping[str, object] | None = None) -> list[Any]:
        """Plain SQL, autocommitted."""
        cursor = self._sql.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def redis(self, *words: object) -> Any:
        """One raw command on the quota database."""
        return self.runtime.holds.client.execute_command(*words)

    @contextmanager
    def appendfsync(self, mode: str) -> Iterator[None]:
        """The server's append-only file is synced so for a while."""
        before = self.redis("CONFIG", "GET", "appendfsync")[1]
        self.redis("CONFIG", "SET", "appendfsync", mode)
        try:
            yield
        finally:
            self.redis("CONFIG", "SET", "appendfsync", before)

    def settle_down(self) -> None:
        """Write out what is dirty now, so that the next measure does not pay for the last one."""
        # The hundred thousand requests that a benchmark keeps are not the product's garbage to look through.
        gc.collect()
        gc.freeze()
        self._sql.execute("checkpoint")
        # Filling makes the append-only file grow so fast that it would be rewritten in the middle of a measure.
        with suppress(redis.ResponseError):  # it is being rewritten already
            self.redis("BGREWRITEAOF")
        while b"aof_rewrite_in_progress:1" in (info := self.redis("INFO", "persistence")) or (
            b"aof_rewrite_scheduled:1" in info
        ):
            time.sleep(POLL_SECONDS)

    def empty(self) -> None:
        """No accounts, no history, and nothing in Redis (for every environment on these servers)."""
        self._sql.execute(_EMPTY)
        self.redis("FLUSHALL")

    def variables(self, **more: str) -> Mapping[str, str]:
        """What makes a process work here."""
        root = str(Path(__file__).resolve().parents[1])
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "BILLING_REDIS_URL": self.settings.redis_url,
            "BILLING_DATABASE_URL": self.settings.database_url,
            "BILLING_BROKER_URL": self.settings.celery_broker_url,
            "BILLING_KEY_PREFIX": self.settings.key_prefix,
            "BILLING_QUEUE": self.settings.queue,
            **more,
        }

    # -- the product --------------------------------------------------------------------------------------

    def warm(self, user_ids: Iterable[int]) -> None:
        """Load users and their tokens into Redis, as the first reservation would put them there."""
        wanted = sorted(set(user_ids))
        commands = self.runtime.commands
        server = ServerRun(*self.sql("select billing.server_run(), billing.last_version()")[0])
        for at in range(0, len(wanted), PAGE):
            page = wanted[at : at + PAGE]
            clocks = {s: self.runtime.perform(commands.balance(user_id=s)) for s in range(self.settings.shards)}
            users = "select json_agg(billing.user_row(u))::text from billing.users as u where id = any (%s)"
            tokens = "select json_agg(billing.token_row(t))::text from billing.tokens as t where user_id = any (%s)"
            loads: list[Command[Any]] = []
            for user in users_from_json(self.sql(users, [page])[0][0]):
                clock = clocks[commands.keys.shard_of(user.id)]
                loads.append(commands.load_user(user, began_ms=clock.now_ms, epoch=clock.epoch, server=server))
            for token in tokens_from_json(self.sql(tokens, [page])[0][0]):
                clock = clocks[commands.keys.shard_of(token.user_id)]
                loads.append(commands.load_token(token, began_ms=clock.now_ms, epoch=clock.epoch, server=server))
            self.runtime.perform(Pipeline(tuple(loads)))

    def backlog(self) -> int:
        """Events that wait in all outboxes."""
        lengths = Pipeline(tuple(self.runtime.commands.backlog(shard) for shard in range(self.settings.shards)))
        return sum(self.runtime.perform(lengths))

    def drain(self) -> int:
        """Book everything that waits, in this process, shard after shard; how many were posted."""
        posted = 0
        for shard in range(self.settings.shards):
            while True:
                owner = secrets.token_hex(4)
                flow = settle.drain(
                    shard, owner=owner, commands=self.runtime.commands, settings=self.settings, now=time.monotonic
                )
                posted += self.runtime.run(flow).posted
                if not self.runtime.perform(self.runtime.commands.backlog(shard)):
                    break
        return posted

    def ring_all(self) -> None:
        """Call a worker for every outbox, as the gateways that filled it would have."""
        for shard in range(self.settings.shards):
            self.runtime.doorbell.ring(shard, "benchmark")

    def await_empty_outboxes(self, *, seconds: float = 300.0) -> None:
        """Return when workers have booked everything. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while left := self.backlog():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} events were not booked within {seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def verify(self) -> list[str]:
        """The guarantees that don't hold, as sentences."""
        report = verify.check(holds=self.runtime.holds, ledger=self.runtime.ledger)
        return [str(finding) for finding in report.findings]

    def close(self) -> None:
        """Give all connections back."""
        self._sql.close()
        self.bk.close()
