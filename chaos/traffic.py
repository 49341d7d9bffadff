"""Traffic: the requests of one gateway, each from its reservation to its end, with a journal line before and after
each call.

Usage never exceeds its hold, so whatever falls below zero has been overspent. A
call that finds the servers away is repeated with the same id for PATIENCE_SECONDS,
as a client does; then the journal says that there was no answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeVar

from billing_tasks.broker.names import CONSUME, REFUND
from billing_tasks.errors import BillingError, InvalidRequest, Refused, ReservationClosed, Unavailable
from billing_tasks.lab.replay.requests import PlannedRequest
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.reservation import Reservation
from billing_tasks.pricing import Price
from chaos.clients import Client
from chaos.journal import Journal, Step

T = TypeVar("T")

#: Together well below the ttl of an ordinary hold: only a hold that was meant to expire does.
PATIENCE_SECONDS = 15.0
HOLD_TTL_SECONDS = 35
RENEW_BELOW_SECONDS = 20.0
SHORT_TTL_SECONDS = 3
LONGEST_PAUSE_SECONDS = 1.0
#: Messages that wait for a broker that is away; more are left out, not queued.
MOST_MESSAGES = 16

Send = Callable[[str, str, dict[str, Any]], None]


class Turn(Enum):
    """What a request comes to once it is held."""

    USED = auto()
    USED_TWICE = auto()  # consumed, and once more, as a client does that saw a time-out
    USED_AND_TOLD = auto()  # consumed, and the same ConsumeLog comes as messages
    GIVEN_BACK = auto()  # consumed, and then refunded in part or whole
    FAILED = auto()  # refunded before the charge
    FAILED_BY_MESSAGE = auto()  # the same, as messages to the workers
    ABANDONED = auto()  # its gateway does not come back for the hold
    RENEWED = auto()  # a short hold, kept open while a stream runs


TURNS = {
    Turn.USED: 62,
    Turn.USED_TWICE: 5,
    Turn.USED_AND_TOLD: 3,
    Turn.GIVEN_BACK: 8,
    Turn.FAILED: 11,
    Turn.FAILED_BY_MESSAGE: 2,
    Turn.ABANDONED: 5,
    Turn.RENEWED: 4,
}


@dataclass(slots=True)
class Traffic:
    """The requests of one process. `client` makes its calls, `send` publishes a Celery message."""

    client: Client
    journal: Journal
    dice: random.Random
    price: Callable[[str, str], Price]
    send: Send
    messengers: ThreadPoolExecutor
    poor_users: frozenset[int]
    tight_tokens: frozenset[int]
    turns: Mapping[Turn, int] = field(default_factory=lambda: TURNS)
    pauses: float = 1.0  # 0: neither upstreams nor clients take time
    sending: int = 0

    async def run(self, request: PlannedRequest) -> None:
        """One request. Whatever a server answers ends up in the journal."""
        request_id = new_request_id()
        try:
            await self._run(request_id, request)
        except Unavailable as exc:
            self.journal.write(Step.GAVE_UP, request_id, user=request.user_id, word=exc.code)
        except Exception as exc:  # what it was is the finding
            self.journal.write(Step.UNEXPECTED, request_id, user=request.user_id, word=f"{type(exc).__name__}: {exc}")

    async def _run(self, request_id: str, request: PlannedRequest) -> None:
        turn = self._turn(request)
        short = turn in (Turn.ABANDONED, Turn.RENEWED)
        reservation = await self._reserve(request_id, request, SHORT_TTL_SECONDS if short else HOLD_TTL_SECONDS)
        if reservation is None:
            return
        seconds = self._upstream_seconds()
        await self._pause(min(seconds, SHORT_TTL_SECONDS / 4) if turn is Turn.RENEWED else seconds)
        match turn:
            case Turn.ABANDONED:
                return
            case Turn.FAILED:
                await self._release(reservation)
            case Turn.FAILED_BY_MESSAGE:
                self.journal.write(Step.RELEASE, request_id, user=request.user_id, word="message")
                self._tell(
                    REFUND, request_id, {"user_id": request.user_id, "request_id": request_id, "reason": "twice"}
                )
            case _:
                await self._use(turn, reservation, request)

    async def _use(self, turn: Turn, reservation: Reservation, request: PlannedRequest) -> None:
        await self._keep_open(reservation, turn)
        log = usage_of(reservation, request)
        self.journal.write(Step.CONSUME, log.request_id, user=log.user_id, token=log.token_id, quota=log.quota)
        if turn is Turn.USED_AND_TOLD:
            self._tell(CONSUME, log.request_id, log.model_dump(exclude_defaults=True))
        await self._consume(log)
        if turn is Turn.USED_TWICE:
            self.journal.write(Step.REPEAT, log.request_id, word=Step.CONSUME)
            await self._pause(self.dice.choice((0.0, 0.05, 1.0)))
            await self._consume(log)
        if turn is Turn.GIVEN_BACK and log.quota:
            await self._refund_request(log)

    async def _reserve(self, request_id: str, request: PlannedRequest, ttl_seconds: int) -> Reservation | None:
        price = self.price(request.group, request.model)
        quota = price.estimate(request.prompt_tokens, max(request.max_tokens, request.completion_tokens))
        write = self.journal.write
        write(Step.RESERVE, request_id, user=request.user_id, token=request.token_id, quota=quota)
        try:
            reservation = await self._patiently(
                lambda: self.client.reserve(quota, request.user_id, request.token_id, price, request_id, ttl_seconds)
            )
        except ReservationClosed as exc:  # it was made, its answer got lost, and it has expired since
            write(Step.CLOSED, request_id, word=str(exc.reason))
            return None
        except InvalidRequest as exc:  # its clock was set back between two tries, so its id is of the future
            if "dated more than" not in exc.message:
                raise
            write(Step.REFUSED, request_id, word="dated")
            return None
        except Refused as exc:
            write(Step.REFUSED, request_id, word=f"{exc.code} {exc.reason or ''}".strip())
            return None
        write(Step.HELD, request_id)
        return reservation

    async def _consume(self, log: ConsumeLog) -> None:
        receipt = await self._patiently(lambda: self.client.consume(log))
        word = " ".join(name for name in ("late", "posted", "spooled") if getattr(receipt, name))
        self.journal.write(Step.CONSUMED, log.request_id, quota=receipt.quota, word=word)

    async def _release(self, reservation: Reservation) -> None:
        request_id = reservation.request_id
        self.journal.write(Step.RELEASE, request_id, user=reservation.user_id)
        for again in (False, True)[: 1 + (self.dice.random() < 0.2)]:
            if again:
                self.journal.write(Step.REPEAT, request_id, word=Step.RELEASE)
            await self._patiently(lambda: self.client.release(reservation))
            self.journal.write(Step.RELEASED, request_id)

    async def _refund_request(self, log: ConsumeLog) -> None:
        """Give a charge back: at once, mostly before it is booked, or a little later."""
        await self._pause(self.dice.choice((0.0, 0.0, 0.5, 3.0)))
        part = self.dice.random() < 0.6
        for number in range(1 + (part and self.dice.random() < 0.4)):
            refund_id = f"case-{log.request_id}-{number}"
            quota = max(1, log.quota // 3) if part else None
            if number and log.quota < 2:
                return  # two parts of one unit would be more than the charge
            self.journal.write(Step.REFUND, log.request_id, user=log.user_id, quota=quota or 0, word=refund_id)
            if self.dice.random() < 0.15:
                message = {"user_id": log.user_id, "request_id": log.request_id, "refund_id": refund_id}
                self._tell(REFUND, log.request_id, message if quota is None else {**message, "quota": quota})
            await self._refund(log, refund_id, quota)
            if self.dice.random() < 0.2:
                self.journal.write(Step.REPEAT, log.request_id, word=Step.REFUND)
                await self._refund(log, refund_id, quota)

    async def _refund(self, log: ConsumeLog, refund_id: str, quota: int | None) -> None:
        await self._patiently(lambda: self.client.refund(log.user_id, log.request_id, refund_id, quota))
        self.journal.write(Step.REFUNDED, log.request_id, quota=quota or 0, word=refund_id)

    async def _keep_open(self, reservation: Reservation, turn: Turn) -> None:
        """Renew a short hold while its stream runs, and one whose reservation took long to be answered."""
        left_seconds = reservation.expires_at_ms / 1000 - time.time()
        if turn is not Turn.RENEWED and left_seconds > RENEW_BELOW_SECONDS:
            return
        try:
            await self._patiently(lambda: self.client.renew(reservation, HOLD_TTL_SECONDS), seconds=5.0)
        except (ReservationClosed, Unavailable):
            return  # then the usage comes late, and the journal will say so
        if turn is Turn.RENEWED:
            await self._pause(self.dice.uniform(1.0, 4.0))

    def _tell(self, task: str, request_id: str, message: dict[str, Any]) -> None:
        """Publish the same message two or three times; the gateway does not wait for the broker."""
        if self.sending >= MOST_MESSAGES:
            return
        times = self.dice.choice((2, 2, 3))
        self.sending += 1
        self.journal.write(Step.MESSAGE, request_id, quota=times, word=task)

        def publish() -> None:
            try:
                for number in range(times):
                    self.send(task, f"{task}:{request_id}:{number}", message)
            except BillingError:
                pass  # lost with the broker: what is not told is not promised
            finally:
                self.sending -= 1

        self.messengers.submit(publish)

    async def _patiently(self, call: Callable[[], Awaitable[T]], *, seconds: float = PATIENCE_SECONDS) -> T:
        deadline, pause = time.monotonic() + seconds, 0.05
        while True:
            try:
                return await call()
            except Unavailable:
                if time.monotonic() + pause > deadline:
                    raise
            await asyncio.sleep(pause * self.dice.uniform(0.5, 1.0))
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.pauses)

    def _turn(self, request: PlannedRequest) -> Turn:
        turn = self.dice.choices(list(self.turns), list(self.turns.values()))[0]
        # A short hold that is renewed too late is charged late, which may overspend: only where there is plenty.
        scarce = request.user_id in self.poor_users or request.token_id in self.tight_tokens
        return Turn.USED if turn is Turn.RENEWED and scarce else turn

    def _upstream_seconds(self) -> float:
        return self.dice.uniform(2.0, 5.0) if self.dice.random() < 0.03 else self.dice.expovariate(1 / 0.15)


def usage_of(reservation: Reservation, request: PlannedRequest) -> ConsumeLog:
    """What the upstream says was used; never more than is held."""
    price = reservation.price
    assert price is not None
    return reservation.log(
        channel_id=request.channel_id,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.completion_tokens,
        quota=min(reservation.held_quota, price.quota(request.prompt_tokens, request.completion_tokens)),
        is_stream=request.is_stream,
    )
