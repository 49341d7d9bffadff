"""Nobody waits for ever: a connection whose answer is overdue is shut from this side of the wire.

PostgreSQL bounds its statements itself, while it runs. One that is stopped, or that a network cut off without a word,
bounds nothing, and a driver waits for its answer for as long as the kernel keeps the connection.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from billing_tasks.errors import Unavailable

#: How often the thread looks, in seconds.
LOOK_EVERY: Final = 0.1


class Watch:
    """Deadlines of the statements under way. One thread per process, while there are any."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}  # of a copy of the socket's descriptor
        self._overdue: set[int] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, descriptor: int, seconds: float) -> Iterator[None]:
        """Shut this socket if the block has not ended after `seconds`. Raises Unavailable then."""
        if self._pid != os.getpid():
            self._reset()
        own = os.dup(descriptor)  # the driver may close its own at any time, and the number be used again
        with self._lock:
            self._deadlines[own] = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="billing-ledger-watch", daemon=True)
                self._thread.start()
        try:
            yield
        except Exception as exc:
            with self._lock:
                overdue = own in self._overdue
            if overdue:
                raise Unavailable(f"PostgreSQL did not answer within {seconds:g} s.", reason="overdue") from exc
            raise
        finally:
            with self._lock:
                self._deadlines.pop(own, None)
                self._overdue.discard(own)
            os.close(own)

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            time.sleep(LOOK_EVERY)
            now = time.monotonic()
            with self._lock:
                for descriptor, deadline in list(self._deadlines.items()):
                    if deadline <= now:
                        del self._deadlines[descriptor]
                        self._overdue.add(descriptor)
                        _shut(descriptor)
                if self._deadlines:
                    idle_since = now
                elif now - idle_since > 1.0:
                    self._thread = None
                    return


def _shut(descriptor: int) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as one:
        one.shutdown(socket.SHUT_RDWR)
