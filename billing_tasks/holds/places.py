"""Who waits for a connection to Redis, and when waiting is given up.

There are fewer connections than callers. While Redis answers, whoever waits gets
one within microseconds. When it stops answering, each call costs a time-out, and
the callers behind would pay it one after the other: so those who waited while
others timed out give up with them, and nobody pays more than about one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis


class NoPlace(redis.RedisError):
    """All connections were busy for too long, or Redis timed out for those who had one. Nothing was sent."""


class Answers:
    """When Redis last answered, and when it last failed to, by the monotonic clock."""

    def __init__(self) -> None:
        self._answered = self._timed_out = 0.0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Around one call: notes whether it timed out. An error is an answer, too."""
        try:
            yield
        except redis.TimeoutError:
            self._timed_out = time.monotonic()
            raise
        else:
            self._answered = time.monotonic()

    def check(self, since: float) -> None:
        """Raise NoPlace if calls timed out since then, and none was answered after that."""
        if since < self._timed_out and self._answered < self._timed_out:
            raise NoPlace("it timed out for the calls before this one")


class Places:
    """As many callers at once as there are connections; the others wait. For threads; made anew in a forked child."""

    def __init__(self, places: int, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._count = places
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._free = threading.Semaphore(self._count)
        self.answers = Answers()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Around one round trip. Raises NoPlace."""
        if self._pid != os.getpid():
            self._reset()  # places that the parent's threads held are not given back here
        free, answers, began = self._free, self.answers, time.monotonic()
        if not free.acquire(timeout=self._wait_seconds):
            raise NoPlace("all connections of this process are busy; raise BILLING_REDIS_CONNECTIONS")
        try:
            answers.check(began)
            with answers.watch():
                yield
        finally:
            free.release()
