"""Drives the plain Celery port (plain_app.py): fills its queue, makes its requests, waits until all is booked.

Its reservation is as cheap as one can be: a single script on two counters in Redis.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
import sqlalchemy as sa
from celery import Celery

from benchmarks.environment import CHANNELS, POLL_SECONDS, Environment
from benchmarks.opponents import plain_app
from billing_tasks.lab.parts import PartProcess
from billing_tasks.model.ids import new_request_id
from billing_tasks.settings import Settings

RESERVE = """
if tonumber(redis.call('GET', KEYS[1])) < tonumber(ARGV[1]) then return 0 end
if tonumber(redis.call('GET', KEYS[2])) < tonumber(ARGV[1]) then return 0 end
redis.call('DECRBY', KEYS[1], ARGV[1])
redis.call('DECRBY', KEYS[2], ARGV[1])
return 1
"""
HELD, CHARGED = 600, 700
APP = "benchmarks.opponents.plain_app"
WAITING = "-waiting"
SECONDS = 300.0


def prepare(environment: Environment, users: int) -> None:
    """Its tables in the environment's database, empty but for accounts; room on the pages, as ours have."""
    drop(environment)
    environment.sql("create schema plain")
    engine = sa.create_engine(environment.settings.sqlalchemy_url)
    plain_app.tables.create_all(engine)
    engine.dispose()
    for table in ("users", "tokens", "channels"):
        environment.sql(f"alter table plain.{table} set (fillfactor = 60)")
    environment.sql(
        "insert into plain.users (id, quota) select n, 1000000000000 from generate_series(1, %s) as n", [users]
    )
    environment.sql("insert into plain.tokens (id, user_id, remain_quota) select id, id, quota from plain.users")
    environment.sql("insert into plain.channels (id) select n from generate_series(1, %s) as n", [CHANNELS])
    environment.sql("vacuum analyze plain.users, plain.tokens, plain.channels, plain.logs")


def drop(environment: Environment) -> None:
    """Take the tables away again."""
    environment.sql("drop schema if exists plain cascade")


def make_log(user: int, number: int) -> dict[str, Any]:
    """One task's arguments: what the reference's log row says."""
    return {
        "request_id": new_request_id(),
        "user_id": user,
        "token_id": user,
        "channel_id": 1 + number % CHANNELS,
        "quota": CHARGED,
        "prompt_tokens": 374,
        "completion_tokens": 44,
        "model_name": "gpt-4o",
        "token_name": f"token of {user}",
        "elapsed_ms": 1200,
        "is_stream": True,
    }


@contextmanager
def sender(settings: Settings, queue: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Sends one task per call over one connection."""
    app: Celery = plain_app.make_app(settings)
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:

        def send(log: dict[str, Any]) -> None:
            app.send_task(plain_app.CONSUME, kwargs=log, producer=producer, queue=queue)

        yield send
    app.close()


def fill_queue(environment: Environment, queue: str, tasks: int, users: int, *, seed: int) -> None:
    """So many tasks wait where no worker looks: sending them must not take its processor while they are booked."""
    draw = random.Random(seed)  # noqa: S311 - spread, not secrecy
    with sender(environment.settings, queue + WAITING) as send:
        for number in range(tasks):
            send(make_log(draw.randint(1, users), number))


def release(environment: Environment, queue: str) -> None:
    """Hand all that waits to the workers at once."""
    with redis.Redis.from_url(environment.settings.redis_url) as broker:
        broker.rename(queue + WAITING, queue)


def open_counters(environment: Environment, users: int) -> None:
    """The counters its reservations take from."""
    with environment.runtime.holds.client.pipeline(transaction=False) as pipe:
        for user in range(1, users + 1):
            pipe.execute_command("MSET", f"plain:user:{user}", 10**12, f"plain:token:{user}", 10**12)
        pipe.execute()


@contextmanager
def requester(settings: Settings, users: int, *, seed: int) -> Iterator[Callable[[int], None]]:
    """Makes so many requests as a gateway process of this port does: reserve, then send the consume."""
    draw = random.Random(seed)  # noqa: S311 - spread, not secrecy
    with redis.Redis.from_url(settings.cache_url) as client, sender(settings, settings.queue) as send:
        reserve = client.register_script(RESERVE)

        def make(requests: int) -> None:
            for number in range(requests):
                user = draw.randint(1, users)
                if reserve(keys=[f"plain:user:{user}", f"plain:token:{user}"], args=[HELD]) != 1:
                    raise RuntimeError("the plain port refused a reservation")
                send(make_log(user, number))

        yield make


def await_booked(
    environment: Environment, queue: str, wanted: int, worker: PartProcess, *, seconds: float = SECONDS
) -> None:
    """Return when its log has so many rows. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    with redis.Redis.from_url(environment.settings.redis_url) as broker:
        # Counting rows is dear; while messages wait there is no need to.
        while broker.llen(queue) or environment.sql("select count(*) from plain.logs")[0][0] < wanted:
            if time.monotonic() > deadline or not worker.is_running:
                raise TimeoutError(f"the plain worker did not book everything. {worker.post_mortem()}")
            time.sleep(POLL_SECONDS)
