"""A script that fails on what another program put in a key's place has changed nothing: it is sent once more.

Every script that writes, every key of it, of another type or with a field that is no number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from billing_tasks import Reservation
from billing_tasks.errors import BillingError
from billing_tasks.flows.requests.release import release_event
from billing_tasks.flows.settlement import settle
from billing_tasks.holds.commands import Command
from billing_tasks.model import events
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.refund import RefundRequest
from tests.conftest import Billing, Payer


def _reserve(b: Billing, payer: Payer, _: Reservation) -> Command[Any]:
    more = {"ttl_ms": 60_000, "backlog_limit": 100, "fresh_ms": 0, "client_key": "k"}
    return b.runtime.commands.reserve(
        request_id=new_request_id(), user_id=payer[0], token_id=payer[1], amount=5, **more
    )


def _extend(b: Billing, payer: Payer, held: Reservation) -> Command[Any]:
    return b.runtime.commands.extend(
        request_id=held.request_id, user_id=payer[0], token_id=payer[1], total=25, ttl_ms=60_000, fresh_ms=0
    )


def _shrink(b: Billing, payer: Payer, held: Reservation) -> Command[Any]:
    return b.runtime.commands.extend(
        request_id=held.request_id, user_id=payer[0], token_id=payer[1], total=3, ttl_ms=60_000, fresh_ms=0
    )


def _consumed(b: Billing, payer: Payer, request_id: str, quota: int = 7) -> Command[Any]:
    event = events.of_log(
        Reservation(request_id, *payer, 10, 0).log(channel_id=3, quota=quota)  # as a gateway files it
    )
    return b.runtime.commands.consume(
        request_id=request_id,
        user_id=payer[0],
        token_id=payer[1],
        quota=quota,
        fingerprint=event.fingerprint,
        payload=events.payload(event),
    )


def _consume(b: Billing, payer: Payer, held: Reservation) -> Command[Any]:
    return _consumed(b, payer, held.request_id)


def _consume_late(b: Billing, payer: Payer, _: Reservation) -> Command[Any]:
    return _consumed(b, payer, new_request_id())


def _consume_nothing(b: Billing, payer: Payer, held: Reservation) -> Command[Any]:
    return _consumed(b, payer, held.request_id, quota=0)


def _release(b: Billing, payer: Payer, held: Reservation) -> Command[Any]:
    event = release_event(held.request_id, *payer, 10, reason="", expired=False)
    return b.runtime.commands.release(
        request_id=held.request_id, user_id=payer[0], token_id=payer[1], payload=events.payload(event)
    )


def _expire(b: Billing, payer: Payer, held: Reservation) -> Command[Any]:
    keys = b.runtime.commands.keys
    b.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, held.request_id)
    event = release_event(held.request_id, *payer, 10, reason="expired", expired=True)
    return b.runtime.commands.expire(
        request_id=held.request_id, user_id=payer[0], token_id=payer[1], payload=events.payload(event)
    )


def _refund(b: Billing, payer: Payer, _: Reservation) -> Command[Any]:
    event = RefundRequest(payer[0], new_request_id(), refund_id="case").event
    return b.runtime.commands.refund(request_id=event.request_id, user_id=payer[0], payload=events.payload(event))


def _settled(b: Billing, payer: Payer, held: Reservation) -> Command[Any]:
    """Booked, and about to leave the outbox."""
    b.use(held, 4)
    commands, shard = b.runtime.commands, b.runtime.commands.keys.shard_of(payer[0])
    sent: list[Command[Any]] = []
    real = type(commands).settled

    def noted(self: Any, *args: Any, **kwargs: Any) -> Command[Any]:
        sent.append(real(self, *args, **kwargs))
        return sent[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(commands), "settled", noted)
        flow = settle.drain(shard, owner="me", commands=commands, settings=b.settings, now=lambda: 0.0)
        effect, reply = flow.send(None), None
        while not sent:
            reply = b.runtime.perform(effect)
            if sent:
                break
            effect = flow.send(reply)
        flow.close()
    b.redis("DEL", commands.keys.drainer(shard))
    return sent[0]


MAKE: dict[str, Callable[[Billing, Payer, Reservation], Command[Any]]] = {
    make.__name__.strip("_"): make
    for make in (
        *(_reserve, _extend, _shrink, _consume, _consume_late, _consume_nothing, _release, _expire, _refund),
        _settled,
    )
}
#: By key, the commands that make it another program's; what has a field's name sets that of the hash that is there.
TYPES = (("SET", "x"), ("RPUSH", "x"))
WRONG: dict[str, tuple[tuple[str, ...], ...]] = {
    "meta": (*TYPES, *(("HSET", field, "?") for field in ("seq", "rings", "settled", "version"))),
    "user": (*TYPES, ("HSET", "held", "1.5"), ("HSET", "held", "?"), ("HSET", "unposted", "?")),
    "token": (*TYPES, ("HSET", "held", "1.5"), ("HSET", "held", "?"), ("HSET", "unposted", "?")),
    "due": (*TYPES, ("HSET", "x", "y")),
    "outbox": (*TYPES, ("HSET", "x", "y")),
    "doorbell": (("RPUSH", "x"), ("HSET", "x", "y")),
}
READ = {"hash": ("HGETALL",), "string": ("GET",), "list": ("LRANGE", 0, -1), "zset": ("ZRANGE", 0, -1)}
#: What `verify` says of a key that is gone, whoever took it.
OF_THE_KEY = ("key that billing did not write", "hold that would never expire", "events of outbox", "cursor of outbox")


def _content(b: Billing) -> dict[bytes, Any]:
    """Everything in Redis but when holds are due: one that is taken back is due at once."""
    found: dict[bytes, Any] = {}
    for key in b.redis("KEYS", "*"):
        command, *rest = READ.get(b.redis("TYPE", key).decode(), ("XRANGE", "-", "+"))
        value = b.redis(command, key, *rest)
        found[key] = {f: v for f, v in value.items() if v != b"0"} if isinstance(value, dict) else value
    return found


def _sent_without_mending(b: Billing, command: Command[Any]) -> bool:
    """Whether it failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("billing_tasks.holds.store.mending", lambda *_: None)
        try:
            b.runtime.holds.send(command)
        except (BillingError, redis.ResponseError):
            return True
    return False


@pytest.mark.parametrize("which", WRONG)
@pytest.mark.parametrize("script", MAKE)
def test_what_fails_has_changed_nothing_and_is_right_once_it_is_sent_again(
    billing: Billing, script: str, which: str
) -> None:
    failed = 0
    for wrong in WRONG[which]:
        billing.redis("FLUSHDB")
        payer = billing.payer(1_000)
        billing.use(billing.reserve(payer, 1), 1)
        billing.settle()
        command = MAKE[script](billing, payer, billing.reserve(payer, 10))
        (key,) = [key for key in command.words[3 : 3 + command.words[2]] if f"}}:{which}" in key] or [""]
        if not key:
            return
        if not (wrong[0] == "HSET" and billing.redis("TYPE", key) == b"hash"):
            billing.redis("DEL", key)
        billing.redis(wrong[0], key, *wrong[1:])
        before = _content(billing)
        if _sent_without_mending(billing, command):
            failed += 1
            assert _content(billing) == before, (wrong, "has changed something")
            billing.runtime.holds.send(command)
            found = [one for one in billing.verify().findings if not one.what.startswith(OF_THE_KEY)]
            assert found == [] or which == "outbox", wrong  # its events are gone with it, and their weight stays
    billing.redis("FLUSHDB")
    billing.sql("truncate billing.outbox_cursors, billing.incidents")
    assert failed or which in ("doorbell", "outbox", "due", "token", "user")
