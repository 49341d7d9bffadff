"""kombu's Redis transport, repaired: a worker outlives a restart of Redis, a full one, and whatever lies in its queue.

When the broker dies while a message is unacknowledged, kombu 5.7 asks the
closed channel for a connection and fails with AttributeError, which no caller
expects, so the worker's main process ends ("Unrecoverable error"; three of
eleven restarts under load ended so). Said as the connection error that it is, every
caller handles it: the worker reconnects, and the message, still in Redis's
`unacked` hash, is delivered again.

A Redis whose memory is full refuses kombu's writes, so that no worker could be called
to drain the outboxes that fill it. Calls of tasks that free memory, and the note
that a message was taken, are written all the same.

A Redis that answers "not now" (READONLY and UNBLOCKED in a failover, MISCONF, NOREPLICAS, LOADING) ended the worker,
too. Said as a connection error, it is an outage like another: the worker asks again until it is over.

A message that is not JSON, or JSON of another shape than Celery's, ends the
worker, too; and one that was noted as unacknowledged before it did so comes
back and ends the next one; and so does one nested so deeply that it can't be
pickled for a process of the pool. Such a message is taken out of the queue, logged,
and kept in the list `<queue>.unreadable` beside it for a person to look at.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from queue import Empty
from time import time
from types import NoneType
from typing import Any, ClassVar

from kombu.exceptions import OperationalError
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from billing_tasks.model.ids import shorten

log = logging.getLogger(__name__)

#: Unreadable messages kept per queue; older ones are dropped.
UNREADABLE_KEPT = 1000

#: Lists and objects inside one another: more than a ConsumeLog's usage may have (200), and far less than what pickle,
#: which recurses into each, can take: with Python 3.11 it failed at 900, if enough callers were above it.
DEEPEST = 250
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

#: What Celery and kombu take for granted. The headers here are read after a pool process was set apart for the
#: task: whatever fails there, that process is never used again.
_MESSAGE = {"headers": dict, "body": str, "content-type": str, "content-encoding": str}
_PROPERTIES = {"body_encoding": str, "delivery_info": dict}
_HEADERS = {"task": str, "timelimit": list, "stamps": dict, "stamped_headers": list}

#: Of the broker and the way to it, and nothing that a message is to blame for.
_BROKER_ERRORS = (RedisError, OSError, OperationalError)


#: One command that Redis would refuse for want of memory; the two of `QoS.append`, all or none.
_ANYWAY = "#!lua flags=allow-oom\nreturn redis.call(unpack(ARGV))"
_NOTE_UNACKED = """#!lua flags=allow-oom
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])"""


class QoS(kombu_redis.QoS):
    """Notes a message as unacknowledged even if memory is full: it was taken out of its queue already."""

    def append(self, message: Any, delivery_tag: str) -> None:
        try:
            super().append(message, delivery_tag)
        except OutOfMemoryError:
            channel: Any = self.channel  # here and below, what kombu's stubs leave out
            info = message.delivery_info
            note = dumps([message._raw, info["exchange"], info["routing_key"]])
            with channel.conn_or_acquire() as client:
                client.eval(_NOTE_UNACKED, 2, self.unacked_index_key, self.unacked_key, delivery_tag, time(), note)
            virtual.QoS.append(self, message, delivery_tag)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        with suppress(OutOfMemoryError):  # what was lost on its way is looked for again, in ten seconds
            super().restore_visible(*args, **kwargs)


class Message(virtual.Message):
    """Refuses a body that is nested too deeply, compressed or not, before it is decoded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.body, bytes):
            _check_depth(self.body)


class Channel(kombu_redis.Channel):
    """Says "connection lost" for a channel whose connection is gone, and sets unreadable messages aside."""

    QoS = QoS
    Message = Message

    #: Names of tasks that free memory.
    allowed_when_full: ClassVar[frozenset[str]] = frozenset()

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the channel's connection to the broker is closed")
        return super()._connparams(asynchronous)  # type: ignore[misc]

    def _queue_bind(self, *args: Any) -> None:
        try:
            super()._queue_bind(*args)  # type: ignore[misc]
        except OutOfMemoryError:  # tasks find their queue by its name; only Flower and remote control miss this
            log.warning("the broker's memory is full; events of tasks may not be seen until workers are restarted")

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        try:
            super()._put(queue, message, **kwargs)
        except OutOfMemoryError:
            if message["headers"].get("task") not in self.allowed_when_full:
                raise
            channel: Any = self
            key = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))
            with channel.conn_or_acquire() as client:
                client.eval(_ANYWAY, 0, "LPUSH", key, dumps(message))

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (ValueError, RecursionError) as exc:  # not JSON; all that comes later is caught in `_deliver`
            text = getattr(exc, "doc", None) or getattr(exc, "object", b"")
            self._set_aside(next(iter(self.active_queues), "celery"), text, exc)
            raise Empty from None

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        answer = super().basic_consume(queue, *args, **kwargs)
        callbacks: dict[str, Any] = self.connection._callbacks  # type: ignore[assignment]
        callbacks[queue] = partial(self._deliver, queue, callbacks[queue])
        return answer

    def _deliver(self, queue: str, deliver: Callable[[Any], None], message: Any) -> None:
        """Hand a message on, unless it is of a kind that Celery does not survive."""
        tag = None
        try:
            tag = check_envelope(message)
            deliver(message)
        except _BROKER_ERRORS:
            raise
        except Exception as exc:
            self._set_aside(queue, message, exc)
            if tag is not None:  # it may be noted as unacknowledged, and would be delivered again
                self.basic_reject(tag, requeue=False)

    def _set_aside(self, queue: str, message: Any, why: Exception) -> None:
        log.error("a message in queue %s can't be read (%s); it is kept in %s.unreadable", queue, shorten(why), queue)
        try:
            text = message if isinstance(message, str | bytes) else json.dumps(message)
        except RecursionError:  # its headers; what is to be booked is in its body, which is a string
            text = json.dumps({"body": message.get("body"), "headers": "nested too deeply to be written"})
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            kept = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
            pipe.lpush(f"{queue}.unreadable", kept).ltrim(f"{queue}.unreadable", 0, UNREADABLE_KEPT - 1).execute()


def check_envelope(message: Any) -> str:
    """The delivery tag of a message whose envelope has the shape of Celery's. Raises TypeError."""
    if not isinstance(message, dict) or not isinstance(message.get("properties"), dict):
        raise TypeError("it is no JSON object with properties")
    tag = message["properties"].get("delivery_tag")
    if not isinstance(tag, str) or not tag.isascii():
        raise TypeError("it has no delivery_tag")
    _check_types(message, _MESSAGE)
    _check_types(message["properties"], _PROPERTIES)
    _check_headers(message.get("headers") or {})
    return tag


def _check_headers(headers: dict[str, Any]) -> None:
    _check_types(headers, _HEADERS)
    _check_depth(json.dumps(headers, default=str).encode())
    limits = headers.get("timelimit") or (None, None)
    if len(limits) != 2 or not all(isinstance(limit, int | float | None) for limit in limits):
        raise TypeError(f"its timelimit is {shorten(limits)}")


def check_message(message: Any) -> None:
    """The same for a message as kombu has it, of whatever transport: what Celery takes for granted. Raises TypeError
    or ValueError."""
    if not isinstance(message.headers, dict) or not isinstance(message.properties, dict):
        raise TypeError("it has no headers")
    if not isinstance(message.body, bytes | str | memoryview):
        raise TypeError(f"its body is {shorten(message.body)}")
    _check_headers(message.headers)
    body = message.body if isinstance(message.body, str) else bytes(message.body)
    _check_depth(body.encode("utf-8", "surrogateescape") if isinstance(body, str) else body)
    if "task" in message.headers and not isinstance(message.headers.get("id"), str):
        raise TypeError(f"its id is {shorten(message.headers.get('id'))}")
    if "task" in message.headers and str(message.content_type).endswith("json"):
        _check_arguments(body)


def _check_arguments(body: bytes | str) -> None:
    """What a worker unpacks: [args, kwargs, embed]."""
    parts = json.loads(body)
    if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[0], list):
        raise TypeError("its body is no [args, kwargs, embed]")
    if not isinstance(parts[1], dict) or not isinstance(parts[2], dict | NoneType):
        raise TypeError("its body is no [args, kwargs, embed]")


def _check_types(part: dict[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(part.get(name), (kind, NoneType)):
            raise TypeError(f"its {name} is {shorten(part[name])}")


def _check_depth(text: bytes) -> None:
    """Raise ValueError if this JSON is nested deeper than DEEPEST. Counts brackets, and recurses nowhere."""
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return
    depth = 0
    for bracket in re.findall(rb"[\[{}\]]", _STRING.sub(b"", text)):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def install(*, allowed_when_full: frozenset[str]) -> None:
    """Have this process's Redis transport use the repaired channel; name the tasks that free memory."""
    Channel.allowed_when_full = allowed_when_full
    kombu_redis.Transport.Channel = Channel
    if ResponseError not in kombu_redis.Transport.connection_errors:
        kombu_redis.Transport.connection_errors = (*kombu_redis.Transport.connection_errors, ResponseError)
