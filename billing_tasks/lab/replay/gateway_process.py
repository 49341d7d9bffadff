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
from billing_tasks.lab.replay.requests import PlannedRequest, Tally, Told
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.reservation import Reservation
from billing_tasks.pricing import Price, Usage, facts_of
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
    """How fast a process makes its requests."""

    concurrency: int
    speed: float  # 0: as fast as possible
    hold_ttl_seconds: int  # of holds that are going to be abandoned


async def run_requests(requests: Sequence[PlannedRequest], *, settings: Settings, pace: Pace, tick: Tick) -> Tally:
    """Make all requests; `tick` hears now and then how many are done. Raises nothing a server does."""
    # More in flight than connections would measure the queue for a connection.
    wide = max(settings.redis_connections, min(pace.concurrency, MOST_CONNECTIONS))
    async with AsyncBookkeeper.from_settings(settings.model_copy(update={"redis_connections": wide})) as bookkeeper:
        traffic = _Traffic(requests, bookkeeper, pace)
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
    """The requests on their way."""

    def __init__(self, requests: Sequence[PlannedRequest], bookkeeper: AsyncBookkeeper, pace: Pace) -> None:
        self.tally = Tally.of_size(len(requests))
        self.done = 0
        self._requests = requests
        self._bookkeeper = bookkeeper
        self._pace = pace
        self._prices: dict[tuple[str, str], Price] = {}

    async def run(self) -> None:
        """All requests, `concurrency` at a time, none before its time."""
        self.tally.began_ns = time.monotonic_ns()
        indexes = iter(range(len(self._requests)))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._pace.concurrency, len(self._requests))):
                group.create_task(self._work(indexes))
        self.tally.ended_ns = time.monotonic_ns()

    async def _work(self, indexes: Iterator[int]) -> None:
        task = asyncio.current_task()
        for index in indexes:
            request = self._requests[index]
            await self._until(index, request.at_us)
            await self._make(index, request)
            self.done += 1
            # asyncio.wait_for, which redis-py sends with, can lose a cancellation before Python 3.12
            # (seen in one of two tries); Ctrl-C must end the traffic all the same.
            if task is not None and task.cancelling():
                raise asyncio.CancelledError

    async def _until(self, index: int, at_us: int) -> None:
        if self._pace.speed:
            due_ns = self.tally.began_ns + int(at_us * 1000 / self._pace.speed)
            await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            self.tally.behind_ns[index] = time.monotonic_ns() - due_ns

    async def _make(self, index: int, request: PlannedRequest) -> None:
        """One request, from its reservation to its end. What is raised by a server becomes what was told."""
        request_id = self.tally.request_ids[index] = new_request_id()
        try:
            reservation = await self._reserve(index, request, request_id)
            self.tally.told[index] = Told.HELD
            if request.fate is Fate.ABANDONED:
                return  # as a gateway that is killed now would
            await self._upstream(request)
            if request.fate is Fate.FAILS:
                await self._refund(index, reservation)
            else:
                await self._consume(index, request, reservation)
        except BillingError as exc:
            self.tally.because(index, self._told(index, exc), reason_of(exc))

    def _told(self, index: int, exc: BillingError) -> Told:
        if self.tally.told[index] != Told.NOTHING:
            return Told.UNCLEAR  # only a reservation may be refused; anything later needs explaining
        return Told.UNANSWERED if isinstance(exc, Unavailable) else Told.REFUSED

    async def _reserve(self, index: int, request: PlannedRequest, request_id: str) -> Reservation:
        price = self._price(request.group, request.model)
        began = time.perf_counter_ns()
        try:
            return await _patiently(
                lambda: self._bookkeeper.pre_consume_quota(
                    price.estimate(request.prompt_tokens, request.max_tokens),
                    user_id=request.user_id,
                    token_id=request.token_id,
                    price=price,
                    request_id=request_id,
                    # A gateway that runs renews its hold while it waits; the settings' long ttl stands in for that.
                    ttl_seconds=self._pace.hold_ttl_seconds if request.fate is Fate.ABANDONED else None,
                )
            )
        finally:
            self.tally.reserve_ns[index] = time.perf_counter_ns() - began

    async def _consume(self, index: int, request: PlannedRequest, reservation: Reservation) -> None:
        began = time.perf_counter_ns()
        log = reservation.log(
            channel_id=request.channel_id,
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.completion_tokens,
            used=None if request.answer is None else Usage.from_response(request.answer),
            facts=None if request.answer is None else facts_of(request.answer),
            elapsed_ms=upstream_ms(request),
            is_stream=request.is_stream,
        )
        receipt = await _patiently(lambda: self._bookkeeper.consume(log))
        self.tally.consume_ns[index] = time.perf_counter_ns() - began
        self.tally.told[index] = Told.CONSUMED
        self.tally.quota[index] = receipt.quota
        self.tally.late[index] = receipt.late

    async def _refund(self, index: int, reservation: Reservation) -> None:
        receipt = await _patiently(lambda: self._bookkeeper.refund_quota(reservation, reason="upstream 502"))
        self.tally.told[index] = Told.REFUNDED
        self.tally.late[index] = receipt.again

    async def _upstream(self, request: PlannedRequest) -> None:
        if self._pace.speed:
            await asyncio.sleep(upstream_ms(request) / 1000 / self._pace.speed)

    def _price(self, group: str, model: str) -> Price:
        if (group, model) not in self._prices:
            self._prices[group, model] = self._bookkeeper.price(group=group, model=model)
        return self._prices[group, model]


def upstream_ms(request: PlannedRequest) -> int:
    """How long the simulated upstream takes: to fail, or to write its answer."""
    return FIRST_TOKEN_MS + (0 if request.fate is Fate.FAILS else TOKEN_MS * request.completion_tokens)


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
