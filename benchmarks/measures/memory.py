"""Memory: what Redis needs for each open hold, and for each request that waits to be booked.

Redis's own account of what it uses, without the buffers of its clients and of the
append-only file, before and after. A request that was consumed leaves a tombstone
for ten minutes, whether its event still waits or not; it is counted apart.
"""

from __future__ import annotations

from benchmarks.backlog import consume_all, file_backlog, hold_all, make_events, some_users
from benchmarks.environment import Environment
from benchmarks.figures import BYTES
from benchmarks.session import Session


def measure(session: Session) -> None:
    """Bytes per hold, per event with its tombstone, per event alone."""
    count = session.size.holds
    with session.environment() as environment:
        file_backlog(environment, make_events(environment, [1]))  # teaches the scripts, which take memory too
        environment.drain()
        for number in session.rounds():
            waiting = make_events(environment, some_users(count, session.size.users, seed=number))
            environment.warm(range(1, session.size.users + 1))
            empty = _used(environment)
            hold_all(environment, waiting)
            held = _used(environment)
            consume_all(environment, waiting)
            queued, outboxes = _used(environment), _outboxes(environment)
            note = session.book.add
            note("memory.hold", "an open hold", BYTES, (held - empty) / count)
            note("memory.event", "a queued event and its tombstone", BYTES, (queued - empty) / count)
            note("memory.outbox", "a queued event alone", BYTES, outboxes / count)
            environment.drain()
            environment.redis("FLUSHALL")  # the tombstones: the next round starts from where this one did


def _used(environment: Environment) -> int:
    facts = dict(
        line.split(":", 1) for line in environment.redis("INFO", "memory").decode().splitlines() if ":" in line
    )
    return int(facts["used_memory"]) - int(facts["mem_clients_normal"]) - int(facts["mem_aof_buffer"])


def _outboxes(environment: Environment) -> int:
    outboxes = map(environment.runtime.commands.keys.outbox, range(environment.settings.shards))
    return sum(int(environment.redis("MEMORY", "USAGE", outbox, "SAMPLES", 0) or 0) for outbox in outboxes)
