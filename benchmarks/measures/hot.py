"""Hot: everything of one user, and everything over one channel, beside the same load spread out.

Where each settlement is a transaction of its own, a hot row makes all of them wait
for each other. Drained by one process, in turns.
"""

from __future__ import annotations

import time

from benchmarks.backlog import file_backlog, make_events, some_users
from benchmarks.environment import Environment
from benchmarks.figures import PER_SECOND, counted
from benchmarks.opponents import reference
from benchmarks.session import Session


def measure(session: Session) -> None:
    """Drains of three backlogs of the same length; the reference with all its clients on one user."""
    size = session.size
    events = max(100, size.events // 4)
    with session.environment() as environment:
        reference.prepare(environment, size.users)
        for number in session.rounds():
            spread = some_users(events, size.users, seed=number)
            note = session.book.add
            note("hot.spread", "spread out", PER_SECOND, _rate(environment, spread, None))
            note("hot.user", "one user", PER_SECOND, _rate(environment, [7] * events, None))
            note("hot.channel", "one channel", PER_SECOND, _rate(environment, spread, 3))
            for clients in size.clients:
                bench = reference.run(environment, reference.SETTLE, users=1, clients=clients, seconds=size.seconds)
                side = f"reference SQL, one user, {counted(clients, 'client')}"
                note(f"hot.reference{clients}", side, PER_SECOND, bench.per_second)
        reference.drop(environment)


def _rate(environment: Environment, users: list[int], channel_id: int | None) -> float:
    file_backlog(environment, make_events(environment, users, channel_id=channel_id))
    environment.settle_down()
    began = time.perf_counter()
    environment.drain()
    return len(users) / (time.perf_counter() - began)
