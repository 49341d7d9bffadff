"""Failover: the replica becomes the primary, and the primary its replica; the next one is the way back.

Clean: writes wait until the replica has all. Left behind: it is promoted without what was written since it was cut
off, as happens where replication is asynchronous. Either way clients find the new primary at the old address, and
connections to the old one live on and meet READONLY.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis

from billing_tasks.lab.servers.valkey import EmbeddedValkey

if TYPE_CHECKING:
    from chaos.environment import Environment

#: A replica that has not caught up by then is still being filled: the fault is put off.
CATCH_UP_SECONDS = 1.0
PAUSE_MS = 3_000


class Failover:
    """Moves the primary of a run."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._promote_at: float | None = None  # when a replica that was cut off takes over
        self._to_demote = False  # the old primary is away, or does not know yet that it is one no more
        #: From the cut to the takeover, in milliseconds since 1970: what was written between them is gone.
        self.gaps: list[tuple[int, int]] = []
        self._cut_ms = 0

    def clean(self) -> str:
        """Hand over without a loss; empty if it can't be done now."""
        if not self._ready():
            return ""
        old, new = self._clients()
        try:
            old.client_pause(PAUSE_MS, all=False)
            if not _caught_up(old, new):
                return ""
            new.replicaof("NO", "ONE")
            self._take_over()
            return "Redis failed over to its replica, which had all"
        except redis.RedisError:
            return ""
        finally:
            with suppress(redis.RedisError):
                old.client_unpause()
            old.close()
            new.close()

    def leave_behind(self, seconds: float) -> str:
        """Cut the replica off; it takes over after `seconds`, without what is written meanwhile."""
        if not self._ready():
            return ""
        old, new = self._clients()
        try:
            if not _caught_up(old, new):
                return ""
            self._cut_ms = now_ms()
            new.replicaof("NO", "ONE")
        except redis.RedisError:
            return ""
        finally:
            old.close()
            new.close()
        self._promote_at = time.monotonic() + seconds
        return f"Redis fails over to a replica that is {seconds:.1f} s behind"

    def tend(self) -> None:
        """Do what is due."""
        if self._promote_at is not None and time.monotonic() >= self._promote_at:
            if not self._environment.processes["standby"].is_up:
                return
            self._promote_at = None
            self._take_over()
            self.gaps.append((self._cut_ms, now_ms()))
        if self._to_demote and self._environment.processes["standby"].is_up:
            with suppress(redis.RedisError):
                follow(self._environment.valkey("standby"), self._environment.valkey("redis"))
                self._to_demote = False

    @property
    def is_behind(self) -> bool:
        """A replica that lags takes over soon."""
        return self._promote_at is not None

    def _ready(self) -> bool:
        both = (self._environment.processes[name] for name in ("redis", "standby"))
        return self._promote_at is None and not self._to_demote and all(one.is_up for one in both)

    def _take_over(self) -> None:
        self._environment.change_places()
        self._to_demote = True
        self.tend()

    def _clients(self) -> tuple[Any, Any]:
        return client_of(self._environment.valkey("redis")), client_of(self._environment.valkey("standby"))


def client_of(valkey: EmbeddedValkey) -> Any:
    """A connection that waits for two seconds at most."""
    return redis.Redis.from_url(valkey.url, socket_timeout=2, socket_connect_timeout=2)


def follow(replica: EmbeddedValkey, primary: EmbeddedValkey) -> None:
    """Make it a replica. Raises redis.RedisError."""
    client = client_of(replica)
    try:
        client.config_set("repl-diskless-sync-delay", 0)
        client.replicaof("127.0.0.1", primary.port)
    finally:
        client.close()


def _caught_up(old: Any, new: Any) -> bool:
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while time.monotonic() < deadline:
        seen = new.info("replication")
        is_linked = seen.get("master_link_status") == "up"
        if is_linked and seen["master_repl_offset"] >= old.info("replication")["master_repl_offset"]:
            return True
        time.sleep(0.01)
    return False


def now_ms() -> int:
    """This machine's clock, as the journals have it."""
    return time.time_ns() // 1_000_000


def free_port() -> int:
    """A port of the loopback that no program has."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
