"""Reserve and consume: what a gateway waits for, call by call, beside one write to Redis.

From one caller and from 32 at once, from threads and from asyncio, with the
append-only file synced always and every second. Accounts are warm, no worker runs,
all sides take turns within a round. Beside it: the reference's reservation, which
is four statements of PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from benchmarks.backlog import consume_all, held_quota, hold_all, make_log, make_logs, some_users
from benchmarks.clock import time_awaited, time_calls
from benchmarks.environment import Environment
from benchmarks.figures import MS, Book, percentile
from benchmarks.opponents import one_write, reference
from benchmarks.session import Session
from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.reservation import Reservation

Operation = Literal["reserve", "consume"]
T = TypeVar("T")

FSYNC = ("always", "everysec")
#: How a gateway calls, and how many calls at once.
CALLERS = (("sync", 1), ("sync", 32), ("asyncio", 1), ("asyncio", 32))
PERCENTILES = (50, 99)


def measure_reserve(session: Session) -> None:
    """pre_consume_quota beside one write, and beside the reference's four statements."""
    with session.environment() as environment:
        _measure(session, environment, "reserve")
        session.tell("  the reference's reservation")
        reference.prepare(environment, session.size.users)
        for _ in session.rounds():
            for clients in (1, 32):
                bench = reference.run(
                    environment,
                    reference.RESERVE,
                    users=session.size.users,
                    clients=clients,
                    seconds=session.size.seconds,
                    with_latencies=True,
                )
                _note(session.book, f"reserve.reference{clients}", f"reference SQL, {clients}", bench.latencies_ms)
        reference.drop(environment)


def measure_consume(session: Session) -> None:
    """consume beside one write."""
    with session.environment() as environment:
        _measure(session, environment, "consume")


def _measure(session: Session, environment: Environment, operation: Operation) -> None:
    for number in session.rounds():
        for fsync in FSYNC:
            with environment.appendfsync(fsync):
                for index, (door, at_once) in enumerate(CALLERS):
                    seed = 1000 * number + 10 * index + FSYNC.index(fsync)
                    users = some_users(session.size.calls, session.size.users, seed=seed)
                    timed_by = _Asyncio if door == "asyncio" else _Threads
                    timed = timed_by(environment, operation, users, at_once, session.size.blocks).run()
                    for side, label in (("ours", operation), ("limit", "one write"), ("client", "one write, redis-py")):
                        key = f"{operation}.{fsync}.{door}{at_once}.{side}"
                        latencies = [ns / 1e6 for ns in getattr(timed, side)]
                        _note(session.book, key, f"{label}: {door}, {at_once} at once, {fsync}", latencies)
        environment.drain()


def _note(book: Book, key: str, side: str, latencies_ms: Sequence[float]) -> None:
    for percent in PERCENTILES:
        book.add(f"{key}.p{percent}", f"{side}, p{percent}", MS, percentile(latencies_ms, percent))


def in_blocks(items: Sequence[T], blocks: int) -> Iterator[Sequence[T]]:
    """The items in so many parts of about the same size."""
    size = -(-len(items) // blocks)
    return (items[at : at + size] for at in range(0, len(items), size))


@dataclass(slots=True)
class Timed:
    """Nanoseconds of each call, by side."""

    ours: list[int] = field(default_factory=list)
    limit: list[int] = field(default_factory=list)  # one write over the product's connections
    client: list[int] = field(default_factory=list)  # one write by redis-py's client


class _Threads:
    """One round of one kind of caller: timed calls of all sides in turns, and what makes them possible, untimed."""

    def __init__(
        self, environment: Environment, operation: Operation, users: list[int], at_once: int, blocks: int
    ) -> None:
        self.environment, self.operation, self.at_once = environment, operation, at_once
        self.blocks = list(in_blocks(users, blocks))
        self.held = held_quota(environment)
        self.made: list[Reservation] = []
        self.first = (users * at_once)[: 4 * at_once]  # untimed: opens every connection
        environment.warm(users)

    def run(self) -> Timed:
        """All sides in turns, block by block."""
        timed = Timed()
        write, client_write = one_write.writer(self.environment), one_write.client_writer(self.environment)
        for untimed in (write, client_write, self._reserve):
            time_calls(untimed, self.first, self.at_once)
        time_calls(self.environment.bk.consume, self._used(), self.at_once)
        for users in self.blocks:
            timed.client += time_calls(client_write, users, self.at_once)
            timed.limit += time_calls(write, users, self.at_once)
            if self.operation == "reserve":
                timed.ours += time_calls(self._reserve, users, self.at_once)
                self._use_up()
            else:
                timed.ours += time_calls(self.environment.bk.consume, self._held(users), self.at_once)
        return timed

    def _reserve(self, user: int) -> None:
        self.made.append(
            self.environment.bk.pre_consume_quota(self.held, user_id=user, token_id=user, price=self.environment.price)
        )

    def _held(self, users: Sequence[int]) -> list[ConsumeLog]:
        logs = make_logs(self.environment, users)
        hold_all(self.environment, [events.of_log(log) for log in logs])
        return logs

    def _used(self) -> list[ConsumeLog]:
        """Logs of what was reserved since the last call."""
        logs = [make_log(made, number) for number, made in enumerate(self.made)]
        self.made.clear()
        return logs

    def _use_up(self) -> None:
        consume_all(self.environment, [events.of_log(log) for log in self._used()])


class _Asyncio(_Threads):
    """The same through AsyncBookkeeper."""

    def run(self) -> Timed:
        return asyncio.run(self._run())

    async def _run(self) -> Timed:
        timed = Timed()
        async with (
            AsyncBookkeeper.from_settings(self.environment.settings) as bk,
            one_write.async_writer(self.environment) as write,
            one_write.async_client_writer(self.environment) as client_write,
        ):

            async def reserve(user: int) -> None:
                self.made.append(
                    await bk.pre_consume_quota(self.held, user_id=user, token_id=user, price=self.environment.price)
                )

            for untimed in (write, client_write, reserve):
                await time_awaited(untimed, self.first, self.at_once)
            await time_awaited(bk.consume, self._used(), self.at_once)
            for users in self.blocks:
                timed.client += await time_awaited(client_write, users, self.at_once)
                timed.limit += await time_awaited(write, users, self.at_once)
                if self.operation == "reserve":
                    timed.ours += await time_awaited(reserve, users, self.at_once)
                    self._use_up()
                else:
                    timed.ours += await time_awaited(bk.consume, self._held(users), self.at_once)
        return timed
