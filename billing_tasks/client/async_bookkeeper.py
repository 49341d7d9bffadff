"""AsyncBookkeeper: the same door for asyncio.

Redis is awaited; the rare calls of PostgreSQL and of the broker run in threads
(SQLAlchemy's sync engine serves workers and web apps alike).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from billing_tasks.client.base import BookkeeperBase, takes
from billing_tasks.client.charge import AsyncCharge
from billing_tasks.client.price_keeper import PriceKeeper
from billing_tasks.client.relayer import relay_from_now_on
from billing_tasks.errors import BillingError, ReservationClosed
from billing_tasks.flows.effects import Effect, Flow, Ring
from billing_tasks.holds.async_store import AsyncHoldStore
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.reservation import Receipt, Reservation
from billing_tasks.pricing import Price, PriceBook
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings, load_settings

log = logging.getLogger(__name__)

T = TypeVar("T")


class AsyncBookkeeper(BookkeeperBase):
    """Bookkeeper's methods with `await`; see there for what each means and raises."""

    def __init__(self, runtime: Runtime) -> None:
        keeper = PriceKeeper(runtime, PriceBook(**runtime.settings.price_book))
        super().__init__(runtime.settings, runtime.commands, keeper)
        self._prices = keeper
        self._runtime = runtime
        self._holds = AsyncHoldStore(runtime.holds)
        # More than connections to PostgreSQL: a call that waits for one must not keep the broker's waiting.
        self._threads = ThreadPoolExecutor(runtime.settings.database_connections + 4, "billing-async")
        self._settling: set[asyncio.Task[None]] = set()
        self._relayer = relay_from_now_on(runtime)
        _ = runtime.doorbell  # loads Celery now, and not in the middle of the first request

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """An AsyncBookkeeper as BILLING_* says, or as `settings` says. Raises BadSettings, BadRatios."""
        return cls(Runtime(settings or load_settings()))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            effect = flow.send(None)
            while True:
                try:
                    reply = await self._perform(effect)
                except BillingError as exc:
                    effect = flow.throw(exc)
                else:
                    effect = flow.send(reply)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _perform(self, effect: Effect[Any]) -> Any:
        match effect:
            case Command():
                return await self._holds.send(effect)
            case Pipeline():
                return await self._holds.send_all(effect)
            case Ring():
                return self._runtime.perform(effect)  # only wakes a thread
            case _:
                # Threads of our own: the application's would be kept waiting by a server that does not answer.
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._runtime.perform, effect)

    async def user_has_enough_quota(self, user_id: int, quota: int) -> bool:
        """See Bookkeeper.user_has_enough_quota."""
        return await self._run(self._available(user_id)) >= quota

    async def user_has_much_more_quota(self, user_id: int, quota: int) -> bool:
        """See Bookkeeper.user_has_much_more_quota."""
        return await self._run(self._available(user_id)) > self.settings.trust_multiplier * quota

    async def pre_consume_quota(
        self,
        quota: int,
        *,
        user_id: int,
        token_id: int,
        price: Price | None = None,
        request_id: str | None = None,
        ttl_seconds: int | None = None,
        client_key: str = "",
    ) -> Reservation:
        """See Bookkeeper.pre_consume_quota."""
        return await self._run(self._reserve(quota, user_id, token_id, price, request_id, ttl_seconds, client_key))

    async def consume(self, log: ConsumeLog) -> Receipt:
        """See Bookkeeper.consume."""
        return await self._run(self._consume(log))

    async def refund_quota(
        self,
        reservation: Reservation | None = None,
        *,
        user_id: int | None = None,
        request_id: str | None = None,
        reason: str = "",
    ) -> Receipt:
        """See Bookkeeper.refund_quota."""
        return await self._run(self._refund_quota(reservation, user_id, request_id, reason))

    async def refund_charge(
        self, *, user_id: int, request_id: str, refund_id: str, quota: int | None = None, reason: str = ""
    ) -> Receipt:
        """See Bookkeeper.refund_charge."""
        return await self._run(self._refund_charge(user_id, request_id, refund_id, quota, reason))

    async def find_reservation(self, *, user_id: int, request_id: str) -> Reservation:
        """See Bookkeeper.find_reservation."""
        return await self._run(self._find_reservation(user_id, request_id))

    async def renew(self, reservation: Reservation, ttl_seconds: int | None = None, *, quota: int | None = None) -> int:
        """See Bookkeeper.renew."""
        return await self._run(self._renew_with(reservation, ttl_seconds, quota))

    async def extend(self, reservation: Reservation, *, quota: int, ttl_seconds: int | None = None) -> Reservation:
        """See Bookkeeper.extend."""
        return await self._run(self._extend(reservation, quota, ttl_seconds))

    @takes(BookkeeperBase._ask_for)
    async def open_charge(self, **asked: Any) -> AsyncCharge:
        """See Bookkeeper.open_charge; the charge is used by `async with`."""
        flow, made = self._ask_for(**asked)
        return AsyncCharge(await self._run(flow), bookkeeper=self, **made)

    @takes(BookkeeperBase._ask_for)
    @asynccontextmanager
    async def charge(self, **asked: Any) -> AsyncIterator[AsyncCharge]:
        """See Bookkeeper.charge. A cancelled task settles all the same, shielded from the cancellation."""
        async with await self.open_charge(**asked) as charge:
            yield charge

    def _keep_open(self, charge: AsyncCharge) -> None:
        charge.stop_renewing = asyncio.create_task(self._renew_until_cancelled(charge)).cancel

    async def _settle(self, charge: AsyncCharge, exc: BaseException | None) -> None:
        charge.stop_renewing()
        await self._shielded(self._run(self._settle_charge(charge, exc)))

    async def _renew_until_cancelled(self, charge: AsyncCharge) -> None:
        ttl = charge.ttl_seconds or self.settings.hold_ttl_seconds
        task = asyncio.current_task()
        # A cancellation can get lost inside a call that ends at the same moment (Python 3.11's wait_for does that).
        while task is not None and not task.cancelling():
            await asyncio.sleep(ttl / 2)
            try:
                await self.renew(charge.reservation, ttl)
            except ReservationClosed:
                return
            except BillingError as exc:  # it expires in time and the usage is charged late, which the ledger shows
                log.warning("hold of request %s was not renewed: %s", charge.request_id, exc)

    async def _shielded(self, settling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(settling)
        # The loop keeps only weak references; a task whose awaiter was cancelled twice must still end.
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for charges that are still settling, send waiting rings, close connections."""
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self._holds.close()
        await asyncio.to_thread(self._prices.close)
        await asyncio.to_thread(self._relayer.close)
        await asyncio.to_thread(self._runtime.close)
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
