"""Server: how long Redis works on a script, by its own account, away from clients, sockets and disks.

What is left of a call beside one write when everything else is as quick as it can be:
a reservation is a dozen commands inside its script, and one write is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.backlog import consume_all, make_events, reserve_all, some_users
from benchmarks.environment import PAGE, Ground
from benchmarks.figures import Unit
from benchmarks.opponents import one_write
from benchmarks.session import Session
from billing_tasks.holds.commands import Pipeline

MICROSECONDS = Unit("us of Redis", "lower")


def measure(session: Session) -> None:
    """Microseconds per reservation, per consume, per event that leaves the outbox, and per single write."""
    with session.ground() as ground, ground.appendfsync("everysec"):
        for number in session.rounds():
            users = some_users(session.size.calls, session.size.users, seed=number)
            ground.warm(users)
            waiting = make_events(ground, users)
            _note(session, ground, "limit", "one write", partial(_write_all, ground, users))
            _note(session, ground, "reserve", "reserve", partial(reserve_all, ground, waiting))
            _note(session, ground, "consume", "consume", partial(consume_all, ground, waiting))
            _note(session, ground, "settled", "an event that leaves the outbox, its share of a drain", ground.drain)


def _note(session: Session, ground: Ground, what: str, says: str, work: Callable[[], object]) -> None:
    session.book.add(f"server.{what}", says, MICROSECONDS, _spent(ground, work) / session.size.calls)


def _write_all(ground: Ground, users: list[int]) -> None:
    writes = one_write.commands(ground, users)
    for at in range(0, len(writes), PAGE):
        ground.runtime.perform(Pipeline(tuple(writes[at : at + PAGE])))


def _spent(ground: Ground, work: Callable[[], object]) -> float:
    """Microseconds that the server spent in EVALSHA meanwhile."""
    ground.redis("CONFIG", "RESETSTAT")
    work()
    for line in ground.redis("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_evalsha:"):
            return float(dict(pair.split("=") for pair in line.split(":", 1)[1].split(","))["usec"])
    return 0.0
