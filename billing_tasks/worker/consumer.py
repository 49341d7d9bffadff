"""What a worker takes from its queue: its own tasks. Anything else is set aside, on every transport, never discarded.

Celery discards a message of a task that it does not know, of another serializer, or of no shape that it knows, and
ends on some. Another application that shares the broker and Celery's default queue would lose its tasks to us, so they
are put into `<queue>.foreign`, where `billing-tasks foreign` shows them and hands them back; what nobody can read goes
into `<queue>.unreadable`. Put there first and acknowledged then: a crash in between has it twice.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer

from billing_tasks.admin import Admin
from billing_tasks.broker import foreign, names
from billing_tasks.broker.guards import check_message
from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.model.ids import shorten

#: How often a worker looks for tasks of ours in the old queue.
FETCH_EVERY_SECONDS = 1.0

#: Not worth more than that: beat does the same every few seconds.
RING_EXPIRES_SECONDS = 60
#: Retries of ours wait for up to a minute. Whatever waits is held by the worker, and it holds no more than so many.
FARTHEST_ETA_SECONDS = 120
#: Their messages are all there is of what they tell, so they never expire.
NEVER_EXPIRE = frozenset({names.CONSUME, names.REFUND})

log = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """Celery's, with another answer to what is not its own."""

    _fetching: Any = None
    connection_errors: tuple[type[Exception], ...]  # of the transport, as Celery sets them
    channel_errors: tuple[type[Exception], ...]

    def on_ready(self) -> None:
        """Once it is connected, and after each reconnection."""
        super().on_ready()
        if not self._is_our_queue():
            state.should_stop = os.EX_CONFIG  # type: ignore[assignment] # before the first message is taken
            return
        if self._fetching is not None:
            self._fetching.cancel()
        old_queue = self.app.conf.billing_old_queue
        if old_queue and old_queue != self.app.conf.task_default_queue:
            self._fetching = self.timer.call_repeatedly(FETCH_EVERY_SECONDS, self._fetch, (old_queue,))
        threading.Thread(target=self._look_around, name="billing-neighbours", daemon=True).start()

    def _fetch(self, old_queue: str) -> None:
        """Tasks of ours that were sent to the old queue. The transport says if the broker is away; this need not."""
        with suppress(Unavailable):
            foreign.fetch_ours(self.app, old_queue, self.app.conf.task_default_queue)

    def _is_our_queue(self) -> bool:
        """False if the queue has the messages of another installation: its usage must not be booked here.

        A server that is away says nothing; its tasks fail until it is back, and then this worker is connected anew.
        """
        queue = self.app.conf.task_default_queue
        with suppress(BillingError):
            with Admin.from_settings() as admin:
                ours = admin.installation()
            owner = foreign.claim(self.app, queue, ours)
            if owner != ours:
                log.critical(
                    "queue %s is of installation %s, and PostgreSQL is %s: usage of the one would be booked in the"
                    " other. Set BILLING_QUEUE, everywhere, or another broker. If this ledger takes the place of the"
                    " other, delete the key %s.installation of the broker",
                    queue,
                    owner,
                    ours,
                    queue,
                )
                return False
        return True

    def _look_around(self) -> None:
        with suppress(*self.connection_errors, *self.channel_errors):
            # What was called for before may be lost with the broker, and calls become rare while no worker answers.
            self.app.send_task(names.RING_STALE, kwargs={"anew": True}, expires=RING_EXPIRES_SECONDS)
        self._warn_of_others()
        with Admin.from_settings() as admin:
            for warning in admin.audit.setup():
                log.warning("%s", warning)

    def _warn_of_others(self) -> None:
        queue = self.app.conf.task_default_queue
        for other in foreign.other_workers(self.app, queue, names.SETTLE):
            log.warning(
                "worker %s of another application consumes queue %s, too: what it takes of billing's tasks it"
                " discards. Give it a queue of its own, or set BILLING_QUEUE",
                other.name,
                queue,
            )

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        receive = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                check_message(message)
            except (TypeError, ValueError) as exc:
                self._set_aside(message, foreign.UNREADABLE, exc)
                return
            _due_now(message)
            try:
                receive(message)
            except (*self.connection_errors, *self.channel_errors):
                raise
            except Exception as exc:
                if message.acknowledged:
                    raise
                self._set_aside(message, foreign.UNREADABLE, exc)

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's signature
        self._set_aside(message, foreign.UNREADABLE, "it is no task")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        self._set_aside(message, foreign.FOREIGN, f"task {exc} is another application's")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        self._set_aside(message, foreign.UNREADABLE, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._set_aside(message, foreign.UNREADABLE, exc)

    def _set_aside(self, message: Any, where: str, why: object) -> None:
        queue = self.app.conf.task_default_queue
        kept_in = foreign.name(queue, where)
        log.error("a message in queue %s is set aside in %s: %s", queue, kept_in, shorten(str(why), 300))
        foreign.set_aside(self.app, message, kept_in)
        message.ack_log_error(log, self.connection_errors)


def _due_now(message: Any) -> None:
    """Have a task of ours run when it comes, if its sender wanted it far later, or never after a while.

    What was used is booked whenever it is told. A worker keeps what is to wait in its memory; a thousand of those and
    it would take nothing else. Messages of Celery's old protocol have the same words in their body.
    """
    words = message.headers
    if "task" not in words:
        words = message.payload if isinstance(message.payload, dict) else {}
    if not str(words.get("task", "")).startswith("billing."):
        return
    if words.get("expires") is not None and words["task"] in NEVER_EXPIRE:
        words["expires"] = None
    if words.get("eta") is not None and _seconds_until(words["eta"]) > FARTHEST_ETA_SECONDS:
        log.warning(
            "%s %s was sent for %s and is done now", *map(shorten, (words["task"], words.get("id"), words["eta"]))
        )
        words["eta"] = None


def _seconds_until(eta: Any) -> float:
    """0 for what is no moment; Celery says so itself."""
    try:
        moment = maybe_iso8601(eta)
        return 0.0 if moment is None else (maybe_make_aware(moment) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return 0.0
