"""Light load: how long a charge waits from the call of consume until PostgreSQL has committed it.

50 requests per second at random moments, one gateway, a worker with two processes.
The moment of the commit is PostgreSQL's own (`track_commit_timestamp`), by the same
machine's clock; the server that records it is one of its own.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from benchmarks.backlog import held_quota, make_log, some_users
from benchmarks.environment import Environment
from benchmarks.figures import MS, percentile
from benchmarks.session import Session
from benchmarks.workers import running_worker
from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
from billing_tasks.lab.processes import Program
from billing_tasks.lab.servers import EmbeddedPostgres, EmbeddedValkey, Servers, StateFolder

PER_SECOND = 50

_COMMITTED = (
    "select request_id::text, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000000)::bigint"
    " from billing.ledger_entries where kind = 'consume'"
)


class _TimedPostgres(EmbeddedPostgres):
    """Remembers when each transaction was committed."""

    def prepare(self) -> Program:
        program = super().prepare()
        return replace(program, argv=(*program.argv, "-c", "track_commit_timestamp=on"))


@contextmanager
def _timed_servers() -> Iterator[Servers]:
    with ExitStack() as cleanup:
        folder = tempfile.mkdtemp(prefix="billing-state-")
        cleanup.callback(shutil.rmtree, folder)
        state = cleanup.enter_context(StateFolder(folder))
        postgres, valkey = _TimedPostgres(state), EmbeddedValkey(state)
        cleanup.callback(postgres.discard)
        cleanup.callback(valkey.stop)
        postgres.start()
        valkey.start()
        yield Servers(state, postgres, valkey)


def measure(session: Session) -> None:
    """Milliseconds from consume to posted, p50, p99 and the longest."""
    with (
        _timed_servers() as servers,
        session.environment(servers=servers) as environment,
        running_worker(servers.state, "light", processes=2, environ=environment.variables()),
    ):
        asyncio.run(_traffic(session, environment, 100, seed=-1))  # the first requests wait for connections
        environment.await_empty_outboxes()
        for number in session.rounds():
            environment.settle_down()
            called = asyncio.run(_traffic(session, environment, session.size.light_requests, seed=number))
            environment.await_empty_outboxes()
            committed = dict(environment.sql(_COMMITTED))
            waited = [(committed[request_id] - ns) / 1e6 for request_id, ns in called.items()]
            for percent in (50, 99, 100):
                which = "longest" if percent == 100 else f"p{percent}"
                side = f"consume to posted at {PER_SECOND}/s, {which}"
                session.book.add(f"light.p{percent}", side, MS, percentile(waited, percent))


async def _traffic(session: Session, environment: Environment, requests: int, *, seed: int) -> dict[str, int]:
    """When consume was called for each request, in nanoseconds since 1970."""
    called: dict[str, int] = {}
    pauses = random.Random(seed)  # noqa: S311 - spread, not secrecy
    held = held_quota(environment)
    async with AsyncBookkeeper.from_settings(environment.settings) as bk, asyncio.TaskGroup() as group:

        async def request(number: int, user: int) -> None:
            reservation = await bk.pre_consume_quota(held, user_id=user, token_id=user, price=environment.price)
            called[reservation.request_id] = time.time_ns()
            await bk.consume(make_log(reservation, number))

        due = time.monotonic()
        for number, user in enumerate(some_users(requests, session.size.users, seed=seed)):
            due += pauses.expovariate(PER_SECOND)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(request(number, user))
    return called
