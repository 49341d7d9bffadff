"""kombu's Redis transport, with one repair: a worker outlives a restart of Redis.

When the broker dies while a message is unacknowledged, kombu 5.7 asks the
closed channel for a connection and fails with AttributeError, which no caller
expects, so the worker's main process ends ("Unrecoverable error"; three of
eleven restarts under load ended so). Said as the connection error that it is, every
caller handles it: the worker reconnects, and the message, still in Redis's
`unacked` hash, is delivered again.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError


class Channel(kombu_redis.Channel):
    """Says "connection lost" for a channel whose connection is gone."""

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the channel's connection to the broker is closed")
        return super()._connparams(asynchronous)  # type: ignore[misc]  # kombu's stubs leave it out


def install() -> None:
    """Have this process's Redis transport use the repaired channel."""
    kombu_redis.Transport.Channel = Channel
