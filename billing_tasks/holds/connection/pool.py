"""The pool of connections to Redis: which caller gets one, and when the others stop waiting.

There are fewer connections than callers. While Redis answers, a caller that
waits gets one within microseconds. When it stops answering, each call costs a time-out, and
the callers behind would pay it one after the other: so callers that
waited while others timed out give up with them, and none pays more than about one.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from billing_tasks.holds.commands import Command
from billing_tasks.holds.connection.connection import Connection
from billing_tasks.holds.connection.watch import Watch


class PoolTimeout(redis.RedisError):
    """All connections were busy for too long, or Redis timed out for the callers that had one. Nothing was sent."""


class ConnectionPool:
    """The connections of a process's threads. Made anew in a forked child, whose parent goes on with the old ones."""

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        size: int,
        wait_seconds: float,
        longest_seconds: float = math.inf,
    ) -> None:
        self._open_connection = open_connection
        self._wait_seconds = wait_seconds
        self._longest_seconds = longest_seconds
        self._size = size
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._free = threading.Semaphore(self._size)
        self._idle: list[Connection] = []  # the one used last is used next
        self._answered = self._timed_out = 0.0  # when, by the monotonic clock
        self._watch = Watch(self._longest_seconds)

    def exchange(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """One round trip. Raises PoolTimeout, or what redis-py raises; replies that are errors are returned."""
        if self._pid != os.getpid():
            self._reset()  # connections that the parent's threads held come back in the parent only
        free, idle, began = self._free, self._idle, time.monotonic()
        if not free.acquire(timeout=self._wait_seconds):
            raise PoolTimeout("all connections of this process are busy; raise BILLING_REDIS_CONNECTIONS")
        try:
            if began < self._timed_out and self._answered < self._timed_out:
                raise PoolTimeout("it timed out for the calls before this one")
            connection = _taken(idle) or self._watch.over(self._open_connection())
            self._watch.begins(connection)
            try:
                replies = self._exchange(connection, commands)
            finally:
                connection.began = None
                idle.append(connection)
        except redis.TimeoutError:
            self._timed_out = time.monotonic()
            raise
        finally:
            free.release()
        self._answered = time.monotonic()
        return replies

    def _exchange(self, connection: Connection, commands: Sequence[Command[Any]]) -> list[Any]:
        try:
            replies = connection.exchange(commands)
        except redis.ConnectionError as exc:
            if connection.overdue:
                raise redis.TimeoutError("Timeout reading from socket") from exc
            # It may have died with its server while it was idle; now it is opened anew.
            return connection.exchange(commands)
        if demoted(replies):
            # The server is no primary any more, and its address may lead to another one by now. Nothing was applied.
            connection.close()
            self.close()
            replies = connection.exchange(commands)
            if demoted(replies):
                connection.close()
        return replies

    def close(self) -> None:
        """Close the connections that are idle; they open again when they are used."""
        while connection := _taken(self._idle):
            self._watch.leave(connection)
            connection.close()


def demoted(replies: Sequence[Any]) -> bool:
    """True if the server refused to write because it is a replica."""
    return any(isinstance(reply, redis.exceptions.ReadOnlyError) for reply in replies)


def _taken(idle: list[Connection]) -> Connection | None:
    try:
        return idle.pop()
    except IndexError:
        return None
