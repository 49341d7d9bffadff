"""Round trips: what each call asks of which server, counted by the server and by the runner of flows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import redis

from benchmarks.backlog import file_backlog, held_quota, make_events, make_log, some_users
from benchmarks.environment import Environment
from benchmarks.figures import COMMANDS, TRIPS
from benchmarks.session import Session
from billing_tasks.client.bookkeeper import Bookkeeper
from billing_tasks.flows.effects import Effect, InLedger, Meanwhile
from billing_tasks.flows.settlement import settle
from billing_tasks.runtime import Runtime

END = "end of the call"


def measure(session: Session) -> None:
    """Commands that Redis sees per call; trips per batch of a drain, to Redis and to PostgreSQL."""
    with session.environment(users=max(session.size.users, 16)) as environment:
        _calls(session, environment)
        _batch(session, environment)


def _calls(session: Session, environment: Environment) -> None:
    bk, held, note = environment.bk, held_quota(environment), session.book.add

    def reserve(user: int) -> Any:
        return bk.pre_consume_quota(held, user_id=user, token_id=user, price=environment.price)

    bk.refund_quota(reserve(1))  # teaches the scripts, opens the connection
    bk.consume(make_log(reserve(1), 0))
    note("trips.cold", "reserve, account not in Redis", COMMANDS, _seen(environment, lambda: reserve(2)))
    note("trips.reserve", "reserve", COMMANDS, _seen(environment, lambda: reserve(1)))
    log = make_log(reserve(1), 0)
    note("trips.consume", "consume", COMMANDS, _seen(environment, lambda: bk.consume(log)))
    held_one = reserve(1)
    note("trips.refund", "refund_quota", COMMANDS, _seen(environment, lambda: bk.refund_quota(held_one)))
    environment.drain()


def _seen(environment: Environment, call: Callable[[], object]) -> int:
    """Commands of clients on the quota database during the call; the broker's are on another."""
    with redis.Redis.from_url(environment.settings.cache_url) as client, client.monitor() as monitor:
        call()
        environment.redis("ECHO", END)
        seen = 0
        for command in monitor.listen():
            if command["command"] == f"ECHO {END}":
                return seen
            seen += command["client_type"] != "lua" and command["db"] == 1
    raise RuntimeError("the monitor ended early")


class _Counting(Runtime):
    """Counts what flows ask for, by server."""

    asked: Counter[str]

    def perform(self, effect: Effect[Any]) -> Any:
        # Meanwhile is one call of the ledger; what it does on Redis is performed, and counted, by itself.
        self.asked["PostgreSQL" if isinstance(effect, InLedger | Meanwhile) else "Redis"] += 1
        return super().perform(effect)


def _batch(session: Session, environment: Environment) -> None:
    """A shard's backlog of three full batches, so that what a drain does once is seen beside what it repeats."""
    shards = environment.settings.shards
    users = [
        user - user % shards or shards
        for user in some_users(3 * environment.settings.batch_size, session.size.users, seed=1)
    ]
    file_backlog(environment, make_events(environment, users))
    runtime = _Counting(environment.settings)
    runtime.asked = Counter()
    flow = settle.drain(0, owner="trips", commands=runtime.commands, settings=environment.settings, now=lambda: 0.0)
    runtime.run(flow)
    for server, asked in runtime.asked.items():
        session.book.add(f"trips.batch.{server}", f"drain of three batches, to {server}", TRIPS, asked)
    Bookkeeper(runtime).close()
