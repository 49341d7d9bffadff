"""Gateway: the traffic of one process, made as an asyncio gateway would make it.

The upstream is simulated. As fast as possible it answers at once; at a speed it
takes the time that its answer would take, divided by the speed. If this process
is killed, what it held expires and what it consumed is booked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.lab.replay.plan import Fate
from billing_tasks.lab.replay.requests import Shot, Tally, Told
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.reservation import Reservation
from billing_tasks.pricing import Price
from billing_tasks.settings import Settings

T = TypeVar("T")

#: Milliseconds to the first token and per token after it, roughly those of a large hosted model.
FIRST_TOKEN_MS = 300
TOKEN_MS = 15
#: A server that is away for a moment must not end a replay: repeat with the same id, this often.
ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.05
TICK_SECONDS = 0.1
MOST_CONNECTIONS = 256

Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a process makes its shots."""

    concurrency: int
    speed: float  # 0: as fast as possible
    hold_ttl_seconds: int  # of holds that are going to be abandoned


async def run_shots(shots: Sequence[Shot], *, settings: Settings, pace: Pace, tick: Tick) -> Tally:
    """Make all shots; `tick` hears now and then how many are done. Raises nothing a server does."""
    # More in flight than connections would measure the queue for a connection.
    wide = max(settings.redis_connections, min(pace.concurrency, MOST_CONNECTIONS))
    async with AsyncBookkeeper.from_settings(settings.model_copy(update={"redis_connections": wide})) as bookkeeper:
        traffic = _Traffic(shots, bookkeeper, pace)
        ticking = asyncio.create_task(_tick(traffic, tick))
        try:
            await traffic.run()
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
    tick(traffic.done)
    return traffic.tally


async def _tick(traffic: _Traffic, tick: Tick) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        tick(traffic.done)


class _Traffic:
    """The shots on their way."""

    def __init__(self, shots: Sequence[Shot], bookkeeper: AsyncBookkeeper, pace: Pace) -> None:
        self.tally = Tally.of_size(len(shots))
        self.done = 0
        self._shots = shots
        self._bookkeeper = bookkeeper
        self._pace = pace
        self._prices: dict[tuple[str, str], Price] = {}

    async def run(self) -> None:
        """All shots, `concurrency` at a time, none before its time."""
        self.tally.began_ns = time.monotonic_ns()
        places = iter(range(len(self._shots)))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._pace.concurrency, len(self._shots))):
                group.create_task(self._work(places))
        self.tally.ended_ns = time.monotonic_ns()

    async def _work(self, places: Iterator[int]) -> None:
        task = asyncio.current_task()
        for place in places:
            shot = self._shots[place]
            await self._until(place, shot.at_us)
            await self._shoot(place, shot)
            self.done += 1
            # asyncio.wait_for, which redis-py sends with, can lose a cancellation before Python 3.12
            # (seen in one of two tries); Ctrl-C must end the traffic all the same.
            if task is not None and task.cancelling():
                raise asyncio.CancelledError

    async def _until(self, place: int, at_us: int) -> None:
        if self._pace.speed:
            due_ns = self.tally.began_ns + int(at_us * 1000 / self._pace.speed)
            await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            self.tally.behind_ns[place] = time.monotonic_ns() - due_ns

    async def _shoot(self, place: int, shot: Shot) -> None:
        """One request, from its reservation to its end. What is raised by a server becomes what was told."""
        request_id = self.tally.request_ids[place] = new_request_id()
        try:
            reservation = await self._reserve(place, shot, request_id)
            self.tally.told[place] = Told.HELD
            if shot.fate is Fate.ABANDONED:
                return  # as a gateway that is killed now would
            await self._upstream(shot)
            if shot.fate is Fate.FAILS:
                await self._refund(place, reservation)
            else:
                await self._consume(place, shot, reservation)
        except BillingError as exc:
            self.tally.because(place, self._told(place, exc), reason_of(exc))

    def _told(self, place: int, exc: BillingError) -> Told:
        if self.tally.told[place] != Told.NOTHING:
            return Told.UNCLEAR  # only a reservation may be refused; anything later needs explaining
        return Told.UNANSWERED if isinstance(exc, Unavailable) else Told.REFUSED

    async def _reserve(self, place: int, shot: Shot, request_id: str) -> Reservation:
        price = self._price(shot.group, shot.model)
        began = time.perf_counter_ns()
        try:
            return await _patiently(
                lambda: self._bookkeeper.pre_consume_quota(
                    price.estimate(shot.prompt_tokens, shot.max_tokens),
                    user_id=shot.user_id,
                    token_id=shot.token_id,
                    price=price,
                    request_id=request_id,
                    # A living gateway renews its hold while it waits; the settings' long ttl stands in for that.
                    ttl_seconds=self._pace.hold_ttl_seconds if shot.fate is Fate.ABANDONED else None,
                )
            )
        finally:
            self.tally.reserve_ns[place] = time.perf_counter_ns() - began

    async def _consume(self, place: int, shot: Shot, reservation: Reservation) -> None:
        began = time.perf_counter_ns()
        log = reservation.log(
            channel_id=shot.channel_id,
            prompt_tokens=shot.prompt_tokens,
            completion_tokens=shot.completion_tokens,
            elapsed_ms=upstream_ms(shot),
            is_stream=shot.is_stream,
        )
        receipt = await _patiently(lambda: self._bookkeeper.consume(log))
        self.tally.consume_ns[place] = time.perf_counter_ns() - began
        self.tally.told[place] = Told.CONSUMED
        self.tally.quota[place] = receipt.quota
        self.tally.late[place] = receipt.late

    async def _refund(self, place: int, reservation: Reservation) -> None:
        receipt = await _patiently(lambda: self._bookkeeper.refund_quota(reservation, reason="upstream 502"))
        self.tally.told[place] = Told.REFUNDED
        self.tally.late[place] = receipt.again

    async def _upstream(self, shot: Shot) -> None:
        if self._pace.speed:
            await asyncio.sleep(upstream_ms(shot) / 1000 / self._pace.speed)

    def _price(self, group: str, model: str) -> Price:
        if (group, model) not in self._prices:
            self._prices[group, model] = self._bookkeeper.price(group=group, model=model)
        return self._prices[group, model]


def upstream_ms(shot: Shot) -> int:
    """How long the simulated upstream takes: to fail, or to write its answer."""
    return FIRST_TOKEN_MS + (0 if shot.fate is Fate.FAILS else TOKEN_MS * shot.completion_tokens)


def reason_of(exc: BillingError) -> str:
    """The error's code, with the rule behind it if it has one: `pre_consume_token_quota_failed (quota)`."""
    return f"{exc.code} ({exc.reason})" if exc.reason else exc.code


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat while a server is away, with the same request_id, which is what makes it safe."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    return await call()
