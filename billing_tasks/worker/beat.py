"""Beat's scheduler: Celery's, and the broker does not fill up with its tasks while no worker takes them."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.beat import PersistentScheduler

from billing_tasks.broker import foreign
from billing_tasks.errors import Unavailable

#: Messages that wait in the queue before beat sends less. Workers that are merely busy take these in seconds.
MANY_WAIT = 1000
#: Then each entry is sent so often: a queue that is long for good still gets its maintenance.
SELDOM_SECONDS = 600.0
#: The queue is not asked more often than that.
LOOK_SECONDS = 10.0

log = logging.getLogger(__name__)


class Scheduler(PersistentScheduler):
    """What it sends is looked for again at each run, so one that is left out is made up by the next."""

    _looked_at = float("-inf")
    _waiting = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sent_at: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send a task that is due, unless so much waits that it would only wait behind it."""
        now = time.monotonic()
        if self._many_wait(now) and now - self._sent_at.get(entry.name, float("-inf")) < SELDOM_SECONDS:
            if advance:
                self.reserve(entry)
            log.warning("%s is left out: %s messages wait, and no worker takes them in time", entry.name, self._waiting)
            return None
        self._sent_at[entry.name] = now
        return super().apply_async(entry, producer=producer, advance=advance, **kwargs)

    def _many_wait(self, now: float) -> bool:
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            try:
                self._waiting = foreign.count(self.app, self.app.conf.task_default_queue)
            except Unavailable:
                self._waiting = 0  # sending says so
        return self._waiting >= MANY_WAIT
