"""The only publisher of Celery messages.

`ring` never waits: a thread per process publishes, one message per shard however
often it was rung meanwhile. A ring that is lost with the process, or with the
broker, is healed by the next consume or by beat; the event itself is in the outbox.
`enqueue` waits for the broker and is for what exists nowhere else yet; while the broker
is away one caller a second pays for finding out, and the others are told at once. It sends
from a thread that is left behind when it is overdue: kombu's time-out is one per read, and a
broker that answers byte by byte never meets it. What such a thread sends late after all is
booked once, under the id that the caller files it by meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Final

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from billing_tasks.broker import guards
from billing_tasks.broker.names import EXPIRE_HOLDS, RING_STALE, SETTLE, broker_config
from billing_tasks.errors import Unavailable
from billing_tasks.model.forks import in_child
from billing_tasks.model.ids import now_ms
from billing_tasks.settings import Settings, redact

log = logging.getLogger(__name__)

#: Published even if the broker's memory is full: they empty outboxes and close holds.
FREE_MEMORY: Final = frozenset({SETTLE, EXPIRE_HOLDS, RING_STALE})

#: A message's header: when it was sent, in milliseconds since 1970. A field of the message would be refused by 0.2.0.
SENT_AT_MS: Final = "billing_sent_at_ms"

#: After a broker error: long enough not to hammer it, short enough that no event waits for beat.
RETRY_SECONDS = 1.0
#: A broker that takes the connection and says nothing is given up after this; a retry follows at once.
SILENCE_SECONDS = 2.0
#: What `enqueue` waits for in all: a silence, the retry's silence, and some.
ENQUEUE_SECONDS = 5.0


class Publisher:
    """Publishes for one process. Made anew in a forked child at its first ring."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._reset()
        in_child(self._reset)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # perhaps another thread held it when the process was forked
        self._app: Celery | None = None  # a child must not publish over its parent's sockets
        self._waiting: dict[int, str] = {}
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._publishing = False
        self._away_until = 0.0
        self._overdue: list[threading.Thread] = []

    def ring(self, shard: int, request_id: str) -> None:
        """Have `billing.settle` sent for the shard, soon. Never waits, never raises."""
        if self._pid != os.getpid() or self._thread is None:
            self._start()
        with self._wake:
            self._waiting.setdefault(shard, request_id)
            self._wake.notify_all()

    def _start(self) -> None:
        with self._lock:
            if self._pid != os.getpid():
                self._reset()  # a fork copies the condition and the dictionary, but no thread
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="billing-ringer", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closing:
                    self._wake.wait()
                if not self._waiting:
                    return
                rings, self._waiting = self._waiting, {}
                self._publishing = True
            failed = self._publish(rings)
            with self._wake:
                self._publishing = False
                for shard, request_id in failed.items():
                    self._waiting.setdefault(shard, request_id)
                self._wake.notify_all()
                if failed and self._closing:
                    return
                if failed:
                    self._wake.wait(RETRY_SECONDS)

    def _publish(self, rings: dict[int, str]) -> dict[int, str]:
        """Send them; returns those that were not sent."""
        for sent, (shard, request_id) in enumerate(rings.items()):
            try:
                self.app.send_task(SETTLE, kwargs={"shard": shard, "request_id": request_id})
            except Exception as exc:
                log.warning("could not ring for shard %s: %s", shard, exc)
                return dict(list(rings.items())[sent:])
        return {}

    def enqueue(self, task: str, task_id: str, kwargs: dict[str, Any]) -> None:
        """Send one task and wait until the broker has it, for ENQUEUE_SECONDS at most. Raises Unavailable."""
        away = f"The broker at {redact(self.settings.celery_broker_url)} did not take {task}"
        if time.monotonic() < self._away_until:
            raise Unavailable(f"{away}: it was away a moment ago")
        self._overdue = [thread for thread in self._overdue if thread.is_alive()]
        if self._overdue:
            raise Unavailable(f"{away}: it has not taken an earlier one yet")
        problem: list[Exception] = []
        message = {"kwargs": kwargs, "task_id": task_id, "headers": {SENT_AT_MS: now_ms()}}
        sending = threading.Thread(
            target=self._send, args=(task, message, problem), name="billing-enqueue", daemon=True
        )
        sending.start()
        sending.join(ENQUEUE_SECONDS)
        if sending.is_alive():
            self._overdue = [*self._overdue, sending]
            problem.append(TimeoutError(f"no answer within {ENQUEUE_SECONDS:.0f} s"))
        if not problem:
            return
        self._away_until = time.monotonic() + RETRY_SECONDS
        if not isinstance(problem[0], KombuError | RedisError | OSError):
            raise problem[0]
        raise Unavailable(f"{away}: {problem[0]}") from problem[0]

    def _send(self, task: str, message: dict[str, Any], problem: list[Exception]) -> None:
        try:
            self.app.send_task(task, **message)
        except Exception as exc:  # raised by the caller that waits for it
            problem.append(exc)

    def workers(self, timeout_seconds: float = 1.0) -> list[str]:
        """Names of the workers that answer within the time; none if the broker is away."""
        try:
            answers = self.app.control.ping(timeout=timeout_seconds) or []
        except (KombuError, RedisError, OSError):
            return []
        return sorted(name for answer in answers for name in answer)

    @property
    def app(self) -> Celery:
        """A Celery app that only sends; workers have their own (celery.py)."""
        if self._pid != os.getpid():
            self._start()
        if self._app is None:
            guards.install(allowed_when_full=FREE_MEMORY)
            self._app = Celery("billing_tasks_producer", set_as_current=False)
            self._app.conf.update(_producer_config(self.settings))
        return self._app

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Send what still waits, for at most `timeout_seconds`, and close the connections."""
        thread, deadline = self._thread, time.monotonic() + timeout_seconds
        if thread is not None and self._pid == os.getpid():
            with self._wake:
                self._closing = True
                self._wake.notify_all()
            thread.join(max(0.0, deadline - time.monotonic()))
            self._thread = None
        if self._app is not None and self._pid == os.getpid():
            self._app.close()
            self._app = None


def _producer_config(settings: Settings) -> dict[str, Any]:
    """What a worker waits for (the next message) may take longer than what a producer waits for."""
    config = broker_config(settings)
    options = config["broker_transport_options"]
    if "socket_timeout" in options:
        config["broker_transport_options"] = {**options, "socket_timeout": SILENCE_SECONDS}
    return config
