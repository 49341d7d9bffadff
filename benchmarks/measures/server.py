"""Server: how long Redis works on a script, by its own account, away from clients, sockets and disks.

What is left of a call beside one write when everything else is as quick as it can be:
a reservation is a dozen commands inside its script, and one write is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.backlog import consume_all, make_events, reserve_all, some_users
from benchmarks.environment import PAGE, Environment
from benchmarks.figures import Unit
from benchmarks.opponents import one_write
from benchmarks.session import Session
from billing_tasks.holds.commands import Pipeline

MICROSECONDS = Unit("us of Redis", "lower")


def measure(session: Session) -> None:
    """Microseconds per reservation, per consume, per event that leaves the outbox, and per single write."""
    with session.environment() as environment, environment.appendfsync("everysec"):
        for number in session.rounds():
            users = some_users(session.size.calls, session.size.users, seed=number)
            environment.warm(users)
            waiting = make_events(environment, users)
            _note(session, environment, "limit", "one write", partial(_write_all, environment, users))
            _note(session, environment, "reserve", "reserve", partial(reserve_all, environment, waiting))
            _note(session, environment, "consume", "consume", partial(consume_all, environment, waiting))
            _note(
                session,
                environment,
                "settled",
                "an event that leaves the outbox, its share of a drain",
                environment.drain,
            )


def _note(session: Session, environment: Environment, what: str, side: str, work: Callable[[], object]) -> None:
    session.book.add(f"server.{what}", side, MICROSECONDS, _spent(environment, work) / session.size.calls)


def _write_all(environment: Environment, users: list[int]) -> None:
    writes = one_write.commands(environment, users)
    for at in range(0, len(writes), PAGE):
        environment.runtime.perform(Pipeline(tuple(writes[at : at + PAGE])))


def _spent(environment: Environment, work: Callable[[], object]) -> float:
    """Microseconds that the server spent in EVALSHA meanwhile."""
    environment.redis("CONFIG", "RESETSTAT")
    work()
    for line in environment.redis("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_evalsha:"):
            return float(dict(pair.split("=") for pair in line.split(":", 1)[1].split(","))["usec"])
    return 0.0
