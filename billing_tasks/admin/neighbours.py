"""Neighbours: messages of other applications that came into our queue. Shown, and handed back."""

from __future__ import annotations

from billing_tasks.admin.types import SetAside
from billing_tasks.errors import InvalidRequest
from billing_tasks.model import set_aside
from billing_tasks.model.validation import check_int, check_text
from billing_tasks.runtime import Runtime


class Neighbours:
    """What workers set aside. All methods raise Unavailable if the broker is away, InvalidRequest for a wrong limit."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def find(self, *, unreadable: bool = False, limit: int = 100) -> list[SetAside]:
        """Messages of tasks that billing does not know, or, `unreadable`, that no worker could read; oldest first."""
        limit = check_int("limit", limit, 1, set_aside.MOST)
        from billing_tasks.broker import foreign  # noqa: PLC0415 - Celery, which most of what operators do needs not

        return foreign.look(self._runtime.doorbell.app, self._kept_in(unreadable), most=limit)

    def hand_back(self, queue: str, *, unreadable: bool = False, limit: int = set_aside.MOST) -> int:
        """Move them to `queue`, as they came; returns how many. A crash meanwhile has one of them twice.

        Raises InvalidRequest if `queue` is empty or billing's own.
        """
        queue = check_text("queue", queue, 200)
        if not queue or queue == self._runtime.settings.queue:
            raise InvalidRequest("queue must name the other application's queue, and not billing's.")
        limit = check_int("limit", limit, 1, set_aside.MOST)
        from billing_tasks.broker import foreign  # noqa: PLC0415 - likewise

        return foreign.hand_back(self._runtime.doorbell.app, self._kept_in(unreadable), queue, most=limit)

    def _kept_in(self, unreadable: bool) -> str:
        return set_aside.name(self._runtime.settings.queue, set_aside.UNREADABLE if unreadable else set_aside.FOREIGN)
