"""Anything in the workers' queue: kept or refused, never a changed balance, and the next message is worked on."""

from __future__ import annotations

import base64
import json
import random
import uuid
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from billing_tasks.model.ids import new_request_id
from tests.conftest import CHANNEL, Payer
from tests.faults.site import Site
from tests.worker.conftest import eventually

#: A user that was never created: what is asked in its name changes nothing.
NO_USER = 777_777


def usage(payer: Payer = (NO_USER, NO_USER), **more: Any) -> dict[str, Any]:
    request_id = new_request_id()
    return {
        "request_id": request_id,
        "user_id": payer[0],
        "token_id": payer[1],
        "channel_id": CHANNEL,
        "quota": 1,
        **more,
    }


def encoded(body: Any) -> str:
    return base64.b64encode(body if isinstance(body, bytes) else json.dumps(body).encode()).decode()


def message(body: Any = None, **headers: Any) -> dict[str, Any]:
    """A message as Celery writes it."""
    task_id = str(uuid.uuid4())
    return {
        "body": encoded([[], usage(), {}] if body is None else body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "go", "task": "billing.consume", "id": task_id, "root_id": task_id, **headers},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "billing"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


def but(**changes: Any) -> dict[str, Any]:
    """A message with other parts; `properties__delivery_tag` reaches into one."""
    changed = message()
    for path, value in changes.items():
        part, _, name = path.replace("-", "_").rpartition("__")
        (changed[part] if part else changed)[name.replace("content_", "content-")] = value
    return changed


def nested(depth: int) -> bytes:
    return b'[[],{"request_id":' + b"[" * depth + b"]" * depth + b"},{}]"


def lists(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


#: Each of the first two groups ended a worker, or a process of its pool, for good.
NO_ENVELOPE: list[Any] = [
    *(b"", b"\xff\xfe garbage", b"hello", b"5", b"null", b"[]", b"{}", b'"\\ud800"', b"[" * 100_000, b"NaN"),
    *(but(properties=None), but(properties=[]), but(headers=[1]), but(headers="x"), but(body=5), but(body=None)),
    *(but(properties__delivery_tag=tag) for tag in (None, {"a": 1}, [1], 5, "\ud800")),
    *(but(properties__body_encoding=value) for value in ([1], "rot13", 5)),
    *(but(content_type=value) for value in (None, [1], 5)),
    *(but(content_encoding=value) for value in ([1], {}, 5)),
    but(properties__delivery_info=[1]),
    *(message(nested(depth)) for depth in (240, 300, 900, 10_000)),
    *(message(zlib.compress(nested(depth)), compression="application/x-gzip") for depth in (300, 10_000)),
    *(message(chain=lists(depth)) for depth in (300, 900)),
]
NO_TASK: list[Any] = [
    *(message(id=value) for value in ([1], {"a": 1})),
    *(message(task=value) for value in ([1], {"a": 1}, None, 5, "os.system", "\ud800")),
    *(message(timelimit=value) for value in ("x", [1], ["x", "y"], {}, 5)),
    *(message(stamps=value, stamped_headers=value) for value in (5, "x", [1])),
    *(message(eta=value) for value in ("never", 5, [1])),
    *(message(expires=value) for value in ("never", 5, [1])),
    *(message(compression=value) for value in ("zlib", [1], "x")),
    *(message(body) for body in (5, None, {"a": 1}, [[]], [[], {}, {}, {}], b"\xff\xfe", b"{", [None, None, None])),
    *(message(body) for body in ([[], [1], {}], [{"a": 1}, {}, {}], [5, {}, {}], [[], {}, [1]])),
    *(but(body=encoded({"task": "billing.consume", **more}), headers={}) for more in ({}, {"id": [1]}, {"args": 5})),
    but(body="no base64!"),
    but(content_type="application/x-python-serialize"),
]
#: The message can carry it; the task refuses it and keeps what came.
REFUSED: list[Any] = [
    *({"quota": value} for value in (-1, 2**53 + 1, 10**400, 1.5, True, "5", None, [], float("nan"), float("inf"))),
    *({"user_id": value} for value in (0, -1, True, "1", None, 2**63)),
    *({"request_id": value} for value in (None, "", "None", 5, {}, "x" * 1_000_000)),
    *({"content": value} for value in ("x" * 1_000_000, "\x00", "\ud800", 5, [])),
    *({"usage": value} for value in ("x", {"a": "x" * 5000}, {"a": "\x00"}, [1])),
    *({field: 1} for field in ("surprise", "args", "self", "\ud800", "")),
]


def push(site: Site, *raw: Any) -> None:
    with site.queue() as client:
        for one in raw:
            client.lpush("billing", one if isinstance(one, bytes) else json.dumps(one))


def goes_on(site: Site, payer: Payer, times: int = 1) -> None:
    """Good messages behind the bad ones are booked."""
    before = site.billing.accounts.user(payer[0]).used_quota
    push(site, *(message([[], usage(payer), {}]) for _ in range(times)))
    eventually(
        lambda: site.billing.accounts.user(payer[0]).used_quota == before + times,
        seconds=60,
        what="good ones are booked",
    )
    eventually(lambda: site.queue().llen("billing") == 0, seconds=120)
    assert site.alive()


def dead_letters(site: Site) -> int:
    return int(site.billing.sql("select count(*) from billing.dead_letters")[0][0])


@pytest.mark.parametrize("bad", [NO_ENVELOPE, NO_TASK], ids=["no envelope", "no task"])
def test_garbage_in_the_queue_ends_no_worker_and_blocks_no_message(site: Site, bad: list[Any]) -> None:
    payer, bystander = site.billing.payer(), site.billing.payer(777)
    unacked = set(site.queue().hkeys("unacked"))  # type: ignore[arg-type]
    for _ in range(2):  # twice, so that every process of both pools meets some of it
        push(site, *bad)
        goes_on(site, payer, 8)
    assert "Timed out waiting for UP" not in site.log("w1") + site.log("w2")
    assert site.billing.accounts.user(bystander[0]).quota == 777
    left = lambda: set(site.queue().hkeys("unacked")) - unacked  # type: ignore[arg-type]  # noqa: E731
    eventually(lambda: not left(), what="nothing waits to come back and do it again")


def test_unreadable_messages_are_kept_beside_the_queue(site: Site) -> None:
    site.queue().delete("billing.unreadable")
    deep = message(nested(300))
    push(site, b"hello", b'{"no": "envelope"}', but(properties=None), deep)
    eventually(lambda: site.queue().llen("billing.unreadable") == 4)
    kept: Any = site.queue().lrange("billing.unreadable", 0, -1)
    assert {b"hello", b'{"no": "envelope"}'} < set(kept)
    assert deep["body"] in {json.loads(one).get("body") for one in kept if one.startswith(b'{"body')}


def test_what_a_task_refuses_is_kept_as_it_came(site: Site) -> None:
    payer, before = site.billing.payer(), dead_letters(site)
    push(site, *(message([[], usage(payer, **wrong), {}]) for wrong in REFUSED))
    push(site, message([[usage(payer)], {}, {}]))  # args, where kwargs are meant
    push(
        site,
        *(
            message([[], {"user_id": payer[0], "request_id": new_request_id(), **wrong}, {}], task="billing.refund")
            for wrong in ({"refund_id": 0}, {"refund_id": False}, {"reason": []}, {"quota": 0}, {"quota": -5})
        ),
    )
    push(site, message(nested(50)))
    goes_on(site, payer)
    expected = len(REFUSED) + 1 + 5 + 1
    eventually(lambda: dead_letters(site) >= before + expected, what=f"{expected} dead letters are kept")
    (kept,) = site.billing.sql(
        "select payload from billing.dead_letters where user_id is null and payload::text like %s",
        "%" + b'"args": [{'.hex() + "%",
    )
    assert json.loads(kept[0])["args"][0]["user_id"] == payer[0]


def test_another_body_under_an_id_that_was_booked_is_kept_and_changes_nothing(site: Site) -> None:
    payer, other = site.billing.payer(), site.billing.payer()
    good = usage(payer, quota=40)
    push(site, message([[], good, {}]))
    eventually(lambda: site.billing.accounts.user(payer[0]).used_quota == 40)
    replays = [{"quota": 41}, {"quota": 0}, {"user_id": other[0], "token_id": other[1]}, {"model_name": "gpt-4o"}]
    push(site, message([[], good, {}]), *(message([[], {**good, **replay}, {}]) for replay in replays))
    goes_on(site, payer)
    site.settled()
    assert site.billing.accounts.user(payer[0]).used_quota == 41
    assert site.billing.accounts.user(other[0]).used_quota == 0
    kept = site.billing.sql("select count(*) from billing.dead_letters where request_id = %s", good["request_id"])
    assert kept[0][0] == len(replays)


def test_usage_on_another_users_token_is_kept_and_touches_neither(site: Site) -> None:
    payer, victim = site.billing.payer(), site.billing.payer(777)
    push(site, message([[], usage((payer[0], victim[1]), quota=500), {}]))
    push(site, message([[], usage((victim[0], payer[1]), quota=500), {}]))
    goes_on(site, payer)
    site.settled()
    assert (site.billing.accounts.user(victim[0]).quota, site.billing.available(victim[0])) == (777, 777)
    assert site.billing.accounts.user(payer[0]).used_quota == 1


HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**53, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", "x", "\x00", "\ud800"),
    *([], {}, [[]], [1, 2], {"a": 1}, {"": None}, "celery", "billing.refund", "x" * 10_000, "1", "2001-01-01T00:00:00"),
]


def mutated(chance: random.Random) -> Any:
    """A good message with some of its parts replaced, removed or added, envelope and body alike."""
    body: list[Any] = [[], usage(), {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    whole = message()
    for _ in range(chance.randint(1, 3)):
        part: Any = chance.choice([whole, whole["headers"], whole["properties"], body, body[0], body[1], body[2]])
        keys = (
            list(range(len(part))) if isinstance(part, list) else [*part, "surprise", "timelimit", "retries", "group"]
        )
        if not keys or not isinstance(part, dict | list):
            continue
        key, value = chance.choice(keys), chance.choice(HOSTILE)
        part[key] = value
        if not (isinstance(whole.get("headers"), dict) and isinstance(whole.get("properties"), dict)):
            break
        if not (len(body) == 3 and isinstance(body[0], list) and all(isinstance(b, dict) for b in body[1:])):
            break
    if whole["body"] and chance.random() < 0.9:
        whole["body"] = encoded(body)
    return whole


@pytest.mark.parametrize("seed", range(2))
def test_messages_with_random_parts_replaced_end_no_worker(site: Site, seed: int) -> None:
    chance = random.Random(seed)
    payer, bystander = site.billing.payer(), site.billing.payer(777)
    for _ in range(2):
        push(site, *(mutated(chance) for _ in range(100)))
        goes_on(site, payer, 4)
    assert site.billing.accounts.user(bystander[0]).quota == 777
    assert site.billing.accounts.user(payer[0]).used_quota == 8
    push(site, *(message([[], usage(payer), {}]) for _ in range(8)))  # every process of both pools still works
    eventually(lambda: site.billing.accounts.user(payer[0]).used_quota == 16)


def test_a_producer_with_celery_itself_is_told_by_dead_letters(site: Site) -> None:
    before = dead_letters(site)
    producer = Celery(broker=site.billing.settings.celery_broker_url, set_as_current=False)
    send: Callable[..., Any] = producer.send_task
    send("billing.consume", args=[1, 2, 3])
    send("billing.refund", args=["x"], kwargs={"user_id": 1})
    producer.close()
    eventually(lambda: dead_letters(site) == before + 2)


def old_protocol(task: str, kwargs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """As Celery before 4.0 and some other languages' clients send it."""
    body = {"task": task, "id": str(uuid.uuid4()), "args": [], "kwargs": kwargs, **more}
    return but(body=encoded(body), headers={})


@pytest.mark.parametrize("form", [message, old_protocol], ids=["protocol 2", "protocol 1"])
def test_usage_that_is_sent_for_later_or_with_an_end_is_booked_now(site: Site, form: Any) -> None:
    payer, many = site.billing.payer(10_000), 1100
    far, past = "2031-01-01T00:00:00+00:00", "2001-01-01T00:00:00+00:00"

    def sent(**more: Any) -> dict[str, Any]:
        return (
            old_protocol("billing.consume", usage(payer), **more)
            if form is old_protocol
            else message([[], usage(payer), {}], **more)
        )

    push(site, *(sent(eta=far, expires=past if number % 2 else None) for number in range(many)))
    eventually(lambda: site.billing.accounts.user(payer[0]).used_quota == many, seconds=90, what="all of it is booked")
    goes_on(site, payer, 5)
