"""Reach: does PostgreSQL answer this process just now? So that not every caller finds out for itself.

Asked for reads of accounts only, which wait for no lock. One that its caller can do without (a row to be refreshed) is
not even tried while PostgreSQL is away or an answer is overdue; one caller after the other tries whether it is back.
One that is needed is tried, unless PostgreSQL was away and another caller is trying already.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from billing_tasks.errors import Unavailable

#: An answer that takes longer than this is overdue: others need not wait for it as well. In seconds.
OVERDUE_SECONDS = 0.25
#: After a failure, how long calls that can be done without are not tried. In seconds.
AWAY_SECONDS = 1.0


class Reach:
    """Shared by the threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[int, float] = {}  # calls under way: since when
        self._failed_at: float | None = None  # None: the last answer came

    @contextmanager
    def asking(self, *, needed: bool) -> Iterator[None]:
        """One call. Raises Unavailable instead, if it is known to be in vain."""
        now, number = time.monotonic(), threading.get_ident()
        with self._lock:
            if self._in_vain(now, needed=needed):
                raise Unavailable("PostgreSQL did not answer a moment ago.")
            self._asked[number] = now
        try:
            yield
        except Unavailable:
            with self._lock:
                self._failed_at = time.monotonic()
            raise
        else:
            with self._lock:
                self._failed_at = None
        finally:
            with self._lock:
                self._asked.pop(number, None)

    def _in_vain(self, now: float, *, needed: bool) -> bool:
        if self._failed_at is not None and self._asked:
            return True
        if needed:
            return False
        overdue = now - min(self._asked.values(), default=now) > OVERDUE_SECONDS
        return overdue or (self._failed_at is not None and now - self._failed_at < AWAY_SECONDS)
