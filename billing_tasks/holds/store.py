"""Sends commands to Redis, sync. Thread- and fork-safe; connects at the first call.

redis-py's own retries are off (it would repeat a script up to ten times); a
connection that turned out dead is replaced once, with the same ids, which every
script is safe for. A time-out is never repeated here: the caller decides.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from billing_tasks.errors import BadSettings, Unavailable
from billing_tasks.holds.commands import QUIET_AFTER_FAILURE_MS, Command, Commands, Layout, Pipeline
from billing_tasks.holds.connection.connection import Connection
from billing_tasks.holds.connection.pool import ConnectionPool
from billing_tasks.holds.keys import Keys, keys_of_layout
from billing_tasks.holds.mending import mending, recounts
from billing_tasks.holds.replies import text
from billing_tasks.model.forks import in_child
from billing_tasks.settings import Settings, redact

R = TypeVar("R")

#: A server that was away when the ledger's name was to be compared is not asked again at each call.
ASKS_AGAIN_SECONDS = 5.0


def commands_for(settings: Settings) -> Commands:
    """The builder of commands that these settings call for."""
    return Commands(
        Layout(
            Keys(settings.key_prefix, settings.shards, settings.shard_tags),
            doorbell_ms=settings.doorbell_ms,
            tombstone_ms=settings.tombstone_seconds * 1000,
            idle_seconds=settings.idle_seconds,
            hold_ttl_ms=settings.hold_ttl_seconds * 1000,
            longest_ring_ms=2 * max(settings.doorbell_ms, settings.lease_ms, QUIET_AFTER_FAILURE_MS),
        )
    )


def connection_options(settings: Settings) -> dict[str, Any]:
    """What the sync and the asyncio client have in common, apart from their retry object."""
    return {
        "socket_timeout": settings.redis_timeout_seconds,
        "socket_connect_timeout": settings.redis_timeout_seconds,
        "max_connections": settings.redis_connections,
        "timeout": settings.redis_timeout_seconds,  # for connections of `client`; the request path has pool.py
        "protocol": 2,
        "client_name": "billing-tasks",
    }


def wait_seconds(settings: Settings) -> float:
    """How long a call waits for a connection: callers queue, they don't fail because many came at once."""
    return max(5.0, settings.redis_timeout_seconds * 5)


def unavailable(exc: redis.RedisError, settings: Settings) -> Unavailable:
    """What the caller gets to see of a Redis error."""
    return Unavailable(
        f"Redis at {redact(settings.cache_url)} did not answer as it should: {exc or type(exc).__name__}"
    )


def with_body(command: Command[Any], error: redis.ResponseError) -> Command[Any]:
    """The command with its script, if it failed because the server does not know it; raises the error otherwise."""
    if command.script is None or not isinstance(error, redis.exceptions.NoScriptError):
        raise error
    return Command(("EVAL", command.script.body, *command.words[2:]), command.read, command.script)


class HoldStore:
    """The sync door to Redis. `client` is for what is no command of ours; its pool makes all connections."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.commands = commands_for(settings)
        self._pool: Any = redis.BlockingConnectionPool.from_url(
            settings.cache_url, retry=Retry(NoBackoff(), 0), **connection_options(settings)
        )
        self.client: Any = redis.Redis(connection_pool=self._pool)  # its types don't cover execute_command
        self.client.response_callbacks.clear()  # replies are read by the command, not by redis-py
        self._connections = ConnectionPool(
            self._open_connection,
            settings.redis_connections,
            wait_seconds(settings),
            longest_seconds=2 * settings.redis_timeout_seconds,  # the socket's own comes first, usually
        )
        self._layout_checked = False
        #: Names the ledger that these keys have to be of, or raises Unavailable; None: nobody is to ask.
        self.installation: Callable[[], str] | None = None
        self.installation_checked = False
        self._renew_lock()
        in_child(self._renew_lock)

    def _renew_lock(self) -> None:
        """In a forked child another thread may have held it."""
        self._asking, self._asks_from = threading.Lock(), 0.0

    def _open_connection(self) -> Connection:
        return Connection(self._pool.make_connection(), behind_proxy=self.settings.redis_proxy)

    def send(self, command: Command[R]) -> R:
        """One round trip. Raises Unavailable; then the command was perhaps applied."""
        if not self._layout_checked:
            self.check_layout()
        try:
            (reply,) = self._connections.exchange((command,))
            return command.read(self._teach(command, reply) if isinstance(reply, redis.ResponseError) else reply)
        except redis.RedisError as exc:
            raise unavailable(exc, self.settings) from exc

    def send_all(self, pipeline: Pipeline[R]) -> list[R]:
        """One round trip for several commands. Raises Unavailable; then each was perhaps applied."""
        if not self._layout_checked:
            self.check_layout()
        commands = pipeline.commands
        try:
            replies = self._connections.exchange(commands)
            for at, reply in enumerate(replies):
                if isinstance(reply, redis.ResponseError):
                    replies[at] = self._teach(commands[at], reply)
        except redis.RedisError as exc:
            raise unavailable(exc, self.settings) from exc
        return [command.read(reply) for command, reply in zip(commands, replies, strict=True)]

    def _teach(self, command: Command[Any], error: redis.ResponseError) -> Any:
        """The reply after all, if only the script was not known, or what another program wrote was in its way. Raises
        redis.ResponseError."""
        mend = mending(command, error, self.commands)
        if mend is None:
            return self._exchange(with_body(command, error))
        for recount in recounts(mend.read(self._exchange_known(mend)), self.commands, self.settings):
            self._exchange_known(recount)
        return self._exchange_known(command)

    def _exchange_known(self, command: Command[Any]) -> Any:
        try:
            return self._exchange(command)
        except redis.exceptions.NoScriptError as exc:
            return self._exchange(with_body(command, exc))

    def _execute(self, *words: Any) -> Any:
        return self._exchange(Command(words, lambda reply: reply))

    def _exchange(self, command: Command[Any]) -> Any:
        (reply,) = self._connections.exchange((command,))
        if isinstance(reply, redis.ResponseError):
            raise reply
        return reply

    def check_layout(self, *, change: bool = False) -> None:
        """Refuse another number of shards than this Redis was filled with.

        `change` accepts the new number, if nothing is left in the old shards; every other process must be
        stopped then, or it would go on with the old ones. Raises BadSettings, Unavailable.
        """
        # By all threads at once, if they come at once: behind a lock, each would wait for the time-outs of all.
        try:
            self._check_layout(change)
        except redis.RedisError as exc:
            raise unavailable(exc, self.settings) from exc
        with suppress(Unavailable):  # PostgreSQL is away: it is asked again before anything is booked
            self.check_installation()
        self._layout_checked = True

    def check_installation(self, *, change: bool = False) -> None:
        """Refuse a Redis whose accounts, holds and events are another ledger's. `change` makes them this ledger's.

        One caller asks, the others wait for its answer; while a server is away, not each of them. Raises BadSettings,
        and Unavailable if either server is away.
        """
        with self._asking:
            if not change and (self.installation_checked or time.monotonic() < self._asks_from):
                return
            try:
                self._compare_installations(change)
            except Unavailable:
                self._asks_from = time.monotonic() + ASKS_AGAIN_SECONDS
                raise

    def _compare_installations(self, change: bool) -> None:
        if self.installation is None:
            return
        ours, key = self.installation(), self.commands.keys.installation
        try:
            found = self._execute("SET", key, ours, "GET") if change else self._claimed(key, ours)
        except redis.RedisError as exc:
            raise unavailable(exc, self.settings) from exc
        if not change and found not in (None, ours.encode()):
            raise BadSettings(other_ledger(self.settings, text(found), ours))
        self.installation_checked = True

    def _claimed(self, key: str, ours: str) -> bytes | None:
        found: bytes | None = self._execute("GET", key) or self._execute("SET", key, ours, "NX", "GET")
        return found

    def _check_layout(self, change: bool) -> None:
        keys = self.commands.keys
        execute = self._execute
        # Asked for before it is set: a Redis whose memory is full answers, and refuses every SET.
        found = execute("GET", keys.layout) or execute("SET", keys.layout, keys.layout_name, "NX", "GET")
        if found is None or found == keys.layout_name.encode():
            return
        try:
            old = keys_of_layout(keys.prefix, found.decode())
        except ValueError:  # no text either
            raise BadSettings(f"A later release filled this Redis ({keys.layout} is {found!r}).") from None
        other, as_it_is = _difference(keys, old)
        if not change:
            raise BadSettings(
                f"{other} Set {as_it_is}; or stop everything and run `billing-tasks migrate --change-layout` once with "
                "the new setting."
            )
        for shard in range(old.shards):
            events, holds = int(execute("XLEN", old.outbox(shard))), int(execute("ZCARD", old.due(shard)))
            if events or holds:
                raise BadSettings(
                    f"{other} Shard {shard} still has {events} events and {holds} open holds. Start workers with "
                    f"{as_it_is} until `billing-tasks status` shows none, then change it."
                )
        self._delete_keys_of(old)
        execute("SET", keys.layout, keys.layout_name)

    def _delete_keys_of(self, old: Keys) -> None:
        """Caches, tombstones and numberings. A shard of the new layout that found them would go on with the numbers of
        another one, and the ledger would miss events."""
        tags, cursor = {tag.encode() for tag in old.tags}, b"0"
        while True:
            cursor, found = self._execute("SCAN", cursor, "MATCH", f"{old.prefix}:{{*}}:*", "COUNT", 1000)
            own = [name for name in found if name.split(b"{", 1)[1].split(b"}", 1)[0] in tags]
            if own:
                self._execute("UNLINK", *own)
            if cursor == b"0":
                return

    def close(self) -> None:
        """Give the connections back. The store may be used again; it reconnects."""
        self._connections.close()
        self.client.close()
        self._pool.disconnect()


def other_ledger(settings: Settings, known: str, ours: str) -> str:
    """What to do about two installations on one Redis."""
    return (
        f"Redis at {redact(settings.cache_url)} has the accounts of another ledger under the prefix"
        f" {settings.key_prefix!r}: of installation {known}, and PostgreSQL at {redact(settings.database_url)} is"
        f" {ours}. Give each installation its own BILLING_KEY_PREFIX or Redis, and its own BILLING_QUEUE. If this"
        " ledger takes the place of the other, stop everything and run `billing-tasks migrate --change-ledger` once."
    )


def _difference(keys: Keys, old: Keys) -> tuple[str, str]:
    """How the keys differ from those that Redis is filled with, and the setting that keeps the latter."""
    was, by = ("numbered", "release 0.1.0 did") if old.shared_with_0_1_0 else ("spread", "today's default is")
    if old.shards == keys.shards:
        return (
            f"This Redis is filled with {was} hash tags of its shards, as {by}.",
            f"BILLING_SHARD_TAGS={was}",
        )
    tags = " BILLING_SHARD_TAGS=numbered" if old.shared_with_0_1_0 else ""
    return (
        f"BILLING_SHARDS is {keys.shards}, but this Redis is filled for {old.shards} shards.",
        f"BILLING_SHARDS={old.shards}{tags}",
    )
