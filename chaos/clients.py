"""Clients: how a gateway makes its calls, by AsyncBookkeeper or by Bookkeeper in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
from billing_tasks.client.bookkeeper import Bookkeeper
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.reservation import Receipt, Reservation
from billing_tasks.pricing import Price

T = TypeVar("T")

REASON = "upstream 502"


class Client(Protocol):
    """The calls of a gateway."""

    async def reserve(
        self, quota: int, user_id: int, token_id: int, price: Price, request_id: str, ttl_seconds: int
    ) -> Reservation:
        """pre_consume_quota"""
        ...

    async def consume(self, log: ConsumeLog) -> Receipt:
        """consume"""
        ...

    async def release(self, reservation: Reservation) -> Receipt:
        """refund_quota"""
        ...

    async def refund(self, user_id: int, request_id: str, refund_id: str, quota: int | None) -> Receipt:
        """refund_charge"""
        ...

    async def renew(self, reservation: Reservation, ttl_seconds: int) -> int:
        """renew"""
        ...


class AsyncClient:
    """As an asyncio gateway does it."""

    def __init__(self, bookkeeper: AsyncBookkeeper) -> None:
        self._bookkeeper = bookkeeper

    async def reserve(
        self, quota: int, user_id: int, token_id: int, price: Price, request_id: str, ttl_seconds: int
    ) -> Reservation:
        return await self._bookkeeper.pre_consume_quota(
            quota, user_id=user_id, token_id=token_id, price=price, request_id=request_id, ttl_seconds=ttl_seconds
        )

    async def consume(self, log: ConsumeLog) -> Receipt:
        return await self._bookkeeper.consume(log)

    async def release(self, reservation: Reservation) -> Receipt:
        return await self._bookkeeper.refund_quota(reservation, reason=REASON)

    async def refund(self, user_id: int, request_id: str, refund_id: str, quota: int | None) -> Receipt:
        return await self._bookkeeper.refund_charge(
            user_id=user_id, request_id=request_id, refund_id=refund_id, quota=quota, reason=REASON
        )

    async def renew(self, reservation: Reservation, ttl_seconds: int) -> int:
        return await self._bookkeeper.renew(reservation, ttl_seconds)


class ThreadedClient:
    """As a gateway with a pool of threads does it."""

    def __init__(self, bookkeeper: Bookkeeper, threads: int) -> None:
        self._bookkeeper = bookkeeper
        self._pool = ThreadPoolExecutor(threads)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def reserve(
        self, quota: int, user_id: int, token_id: int, price: Price, request_id: str, ttl_seconds: int
    ) -> Reservation:
        return await self._run(
            lambda: self._bookkeeper.pre_consume_quota(
                quota, user_id=user_id, token_id=token_id, price=price, request_id=request_id, ttl_seconds=ttl_seconds
            )
        )

    async def consume(self, log: ConsumeLog) -> Receipt:
        return await self._run(partial(self._bookkeeper.consume, log))

    async def release(self, reservation: Reservation) -> Receipt:
        return await self._run(partial(self._bookkeeper.refund_quota, reservation, reason=REASON))

    async def refund(self, user_id: int, request_id: str, refund_id: str, quota: int | None) -> Receipt:
        return await self._run(
            lambda: self._bookkeeper.refund_charge(
                user_id=user_id, request_id=request_id, refund_id=refund_id, quota=quota, reason=REASON
            )
        )

    async def renew(self, reservation: Reservation, ttl_seconds: int) -> int:
        return await self._run(partial(self._bookkeeper.renew, reservation, ttl_seconds))
