"""Messages that were in our queue and are not ours: set aside as they came, shown, and handed back.

They lie in queues of the same broker: `<queue>.foreign` has tasks of other applications, `<queue>.unreadable` what
nobody could read. Both are ordinary queues, so this works on every transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty
from typing import Any, Final

from celery import Celery
from kombu import Connection, Exchange, Producer, Queue
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from billing_tasks.errors import Unavailable
from billing_tasks.model.set_aside import FOREIGN, MOST, UNREADABLE, SetAside, name
from billing_tasks.settings import redact

__all__ = ["FOREIGN", "MOST", "UNREADABLE", "SetAside", "count", "fetch_ours", "hand_back", "look", "name", "set_aside"]


def set_aside(app: Celery, message: Any, kept_in: str) -> None:
    """Put a message that was taken from a queue into another one, as it came. Raises what the broker raises."""
    with app.connection_for_write() as connection:
        _put(connection, kept_in, message)


def _put(connection: Connection, queue: str, message: Any) -> None:
    body = message.body
    Producer(connection).publish(
        body if isinstance(body, bytes | str) else str(body),
        routing_key=queue,
        exchange="",
        declare=[_queue(queue)],
        headers=message.headers if isinstance(message.headers, dict) else {},
        content_type=message.content_type or "application/data",
        content_encoding=message.content_encoding or "binary",
        delivery_mode=2,
        retry=True,
        retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0.1},
        **{key: message.properties[key] for key in _PROPERTIES if message.properties.get(key) is not None},
    )


#: Of a message, what its own application may need.
_PROPERTIES: Final = ("correlation_id", "reply_to", "priority", "expiration")


def _queue(queue: str) -> Queue:
    return Queue(queue, Exchange(""), routing_key=queue, durable=True, auto_delete=False)


def count(app: Celery, queue: str) -> int:
    """How many messages lie in a queue; 0 if there is none. Raises Unavailable."""
    with _connected(app) as connection:
        channel: Any = connection.channel()
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0


def look(app: Celery, queue: str, *, most: int = MOST) -> list[SetAside]:
    """The first messages of a queue; they stay. Raises Unavailable."""
    with _connected(app) as connection:
        taken = list(_taken(connection, queue, most))
        seen = [_described(message) for message in taken]
        for message in taken:
            message.requeue()
        return seen


def hand_back(app: Celery, queue: str, to: str, *, most: int = MOST) -> int:
    """Move messages to another queue, as they came; returns how many. Raises Unavailable.

    One at a time, put first and taken away then: a crash in between has one of them twice.
    """
    moved = 0
    with _connected(app) as connection:
        for message in _taken(connection, queue, most):
            _put(connection, to, message)
            message.ack()
            moved += 1
    return moved


def _taken(connection: Connection, queue: str, most: int) -> Iterator[Any]:
    bound = _queue(queue)(connection.channel())
    bound.declare()
    for _ in range(most):
        message = bound.get(no_ack=False, accept=None)
        if message is None:
            return
        yield message


def _described(message: Any) -> SetAside:
    headers = message.headers if isinstance(message.headers, dict) else {}
    body = message.body if isinstance(message.body, str) else bytes(message.body or b"").decode("utf-8", "replace")
    return SetAside(str(headers.get("task", "")), str(headers.get("id", "")), str(message.content_type), body[:500])


#: Ours among the oldest messages of a list, moved in their order; the others stay where they are.
_FETCH: Final = """
local moved, waiting = 0, redis.call('LRANGE', KEYS[1], -1000, -1)
for at = #waiting, 1, -1 do
  if string.find(waiting[at], '"task": ?"billing%.') then
    redis.call('LREM', KEYS[1], -1, waiting[at])
    redis.call('LPUSH', KEYS[2], waiting[at])
    moved = moved + 1
  end
end
return moved"""


def fetch_ours(app: Celery, from_queue: str, to: str) -> int:
    """Take billing's tasks out of a queue that others share, and leave theirs; returns how many. Raises Unavailable.

    Gateways of release 0.2.0 and programs that are not routed yet send there. Redis only: other brokers give messages
    out one by one, and those of others would have to be put back.
    """
    if from_queue == to:
        return 0
    with _connected(app) as connection:
        if connection.transport.driver_type != "redis":
            return 0
        channel: Any = connection.channel()
        with channel.conn_or_acquire() as client:
            return int(client.eval(_FETCH, 2, from_queue, to))
    return 0


def claim(app: Celery, queue: str, installation: str) -> str:
    """Note whose queue this is; returns who has it, `installation` if nobody had. Raises Unavailable.

    Redis only: other brokers have no place for a note, and give each installation a virtual host of its own.
    """
    with _connected(app) as connection:
        if connection.transport.driver_type != "redis":
            return installation
        channel: Any = connection.channel()
        with channel.conn_or_acquire() as client:
            found = client.set(f"{queue}.installation", installation, nx=True, get=True)
            return installation if found is None else str(found.decode() if isinstance(found, bytes) else found)
    return installation


@contextmanager
def _connected(app: Celery) -> Iterator[Connection]:
    url = redact(app.conf.broker_url)
    try:
        with app.connection_for_write(connect_timeout=2) as connection:
            yield connection
    except Empty:
        return
    except (KombuError, RedisError, OSError) as exc:
        raise Unavailable(f"The broker at {url} did not answer: {exc}") from exc


@dataclass(frozen=True, slots=True)
class OtherWorker:
    """A worker of another application that takes messages from our queue."""

    name: str
    tasks: int  # how many it knows, none of them ours


def other_workers(app: Celery, queue: str, task: str, *, timeout_seconds: float = 1.0) -> list[OtherWorker]:
    """Workers that consume `queue` and do not know `task`: what is ours they discard. None if the broker is away."""
    inspect = app.control.inspect(timeout=timeout_seconds)
    try:
        queues = inspect.active_queues() or {}
        consuming = [worker for worker, own in queues.items() if any(one.get("name") == queue for one in own or ())]
        if not consuming:
            return []
        known = app.control.inspect(destination=consuming, timeout=timeout_seconds).registered() or {}
    except (KombuError, RedisError, OSError):
        return []
    return [
        OtherWorker(worker, len(known[worker]))
        for worker in sorted(consuming)
        if worker in known and not any(one.split(" ")[0] == task for one in known[worker])
    ]
