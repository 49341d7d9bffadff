"""A bound for a whole round trip: redis-py's time-out begins anew with each byte that arrives."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from billing_tasks.holds.connection.connection import Connection

#: With no round trip for so long, the thread sleeps until there is one.
QUIET_SECONDS = 5.0


class Watch:
    """One thread for all connections of a pool. A round trip costs it two assignments and no lock."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self._connections: list[Connection] = []
        self._awake = False
        self._starting = threading.Lock()
        self._ended = threading.Event()

    def over(self, connection: Connection) -> Connection:
        """A new connection, watched from now on."""
        self._connections.append(connection)
        return connection

    def leave(self, connection: Connection) -> None:
        """It is used no more; with the last of them the thread ends."""
        with suppress(ValueError):
            self._connections.remove(connection)
        if not self._connections:
            self.end()

    def end(self) -> None:
        """Nothing is watched any more; the thread ends. What comes later is watched again."""
        self._connections.clear()
        self._ended.set()

    def begins(self, connection: Connection) -> None:
        """A round trip begins; it ends when `began` is None again."""
        connection.overdue = False
        connection.began = time.monotonic()
        if not self._awake and self._longest_seconds < float("inf"):
            with self._starting:
                if not self._awake:
                    self._awake = True
                    self._ended.clear()
                    threading.Thread(target=self._run, name="billing-redis-watch", daemon=True).start()

    def _run(self) -> None:
        busy_at = time.monotonic()
        while not self._ended.wait(self._longest_seconds / 4):
            now = time.monotonic()
            began = [(one, since) for one in list(self._connections) if (since := one.began) is not None]
            for connection, since in began:
                if now - since > self._longest_seconds:
                    connection.shut()
            if began:
                busy_at = now
            elif now - busy_at > QUIET_SECONDS:
                self._awake = False
                # A round trip that began just before this was said finds no thread; it is looked for once more.
                if not any(one.began is not None for one in self._connections):
                    return
                self._awake = True
        self._awake = False
