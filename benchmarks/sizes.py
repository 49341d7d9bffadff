"""How much is measured: the whole, a quick look, and what the tests run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Counts per round unless the comment says otherwise."""

    rounds: int
    users: int  # accounts, each with one token
    calls: int  # timed calls per kind of caller
    blocks: int  # both sides of a pair take turns this often within a round
    events: int  # of a backlog that is drained
    tasks: int  # of the plain Celery port, which is slower
    cycles: int  # whole requests with live workers
    seconds: int  # per run of pgbench
    clients: tuple[int, ...]  # of pgbench; the best counts
    light_requests: int  # at 50 requests per second
    holds: int  # opened for the measure of memory
    many_users: int  # growth: against `users`
    some_entries: int  # growth: ledger rows ...
    many_entries: int  # ... and many of them


FULL = Size(
    rounds=5,
    users=10_000,
    calls=2000,
    blocks=5,
    events=100_000,
    tasks=5000,
    cycles=30_000,
    seconds=5,
    clients=(1, 8, 32),
    light_requests=1500,
    holds=100_000,
    many_users=1_000_000,
    some_entries=1_000_000,
    many_entries=10_000_000,
)
QUICK = Size(
    rounds=2,
    users=2000,
    calls=200,
    blocks=2,
    events=8000,
    tasks=400,
    cycles=2000,
    seconds=1,
    clients=(8, 32),
    light_requests=150,
    holds=10_000,
    many_users=10_000,
    some_entries=5000,
    many_entries=50_000,
)
#: Shows that everything runs; its figures mean nothing.
TINY = Size(
    rounds=1,
    users=40,
    calls=40,
    blocks=2,
    events=200,
    tasks=20,
    cycles=64,
    seconds=1,
    clients=(2,),
    light_requests=10,
    holds=100,
    many_users=200,
    some_entries=500,
    many_entries=1000,
)
SIZES = {"full": FULL, "quick": QUICK, "tiny": TINY}
