"""How many events a batch takes: fewer after one took PostgreSQL too long, more again when it is faster.

Remembered by the process from one run to the next: a run that began with the full size again would meet the same
time-out, and the shard would never drain.
"""

from __future__ import annotations

from billing_tasks.errors import Unavailable

#: Reasons of Unavailable that a smaller batch may help against: statement_timeout, and an answer that was overdue.
TOO_SLOW = frozenset({"57014", "overdue"})
#: A time-out costs seconds, so few of them must lead from a thousand events to one.
SHRINK_BY = 4
#: Batches in a row that were in time before a larger one is tried: it may cost a time-out.
GROW_AFTER = 8


class BatchSizes:
    """By shard."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._in_time: dict[int, int] = {}  # batches in a row

    def of(self, shard: int, most: int) -> int:
        """How many events to take, `most` of them at most."""
        return min(self._sizes.get(shard, most), most)

    def posted(self, shard: int, most: int) -> None:
        """A batch was booked in time."""
        size = self._sizes.get(shard)
        if size is None:
            return
        self._in_time[shard] = self._in_time.get(shard, 0) + 1
        if self._in_time[shard] < GROW_AFTER:
            return
        self._in_time[shard] = 0
        self._sizes[shard] = size * 2
        if size * 2 >= most:
            del self._sizes[shard]

    def failed(self, shard: int, events: int, error: Unavailable) -> None:
        """A batch of so many was not booked."""
        if error.reason in TOO_SLOW:
            self._sizes[shard], self._in_time[shard] = max(1, events // SHRINK_BY), 0


#: Of this process.
SIZES = BatchSizes()
