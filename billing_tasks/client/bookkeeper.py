"""Bookkeeper: the door for gateways and other metered web apps.

    bk = Bookkeeper.from_settings()
    with bk.charge(user_id=42, token_id=7, channel_id=3, model="gpt-4o", prompt_tokens=374, max_tokens=512) as charge:
        answer = upstream(...)
        charge.usage(prompt_tokens=374, completion_tokens=44)

Thread-safe and fork-safe. Nothing connects before the first call that needs a
server. It holds no power to top up: that is Accounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from billing_tasks.client.base import BookkeeperBase
from billing_tasks.client.charge import Charge
from billing_tasks.client.relayer import relay_from_now_on
from billing_tasks.client.renewer import Renewer
from billing_tasks.flows.effects import Flow
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.reservation import Receipt, Reservation
from billing_tasks.pricing import Price
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings, load_settings

T = TypeVar("T")


class Bookkeeper(BookkeeperBase):
    """Prices, reserves, consumes and refunds. Quota is int; errors are those of errors.py."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime.settings, runtime.commands)
        self._runtime = runtime
        self._renewer = Renewer(self.renew)
        self._relayer = relay_from_now_on(runtime)
        _ = runtime.doorbell  # loads Celery now, and not in the middle of the first request

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """A Bookkeeper as BILLING_* says, or as `settings` says."""
        return cls(Runtime(settings or load_settings()))

    def _run(self, flow: Flow[T]) -> T:
        return self._runtime.run(flow)

    def user_has_enough_quota(self, user_id: int, quota: int) -> bool:
        """True if the user's available quota is at least `quota`. A look, not a promise: reserve to be sure."""
        return self._run(self._available(user_id)) >= quota

    def user_has_much_more_quota(self, user_id: int, quota: int) -> bool:
        """True if the user's available quota is more than `trust_multiplier` (100) times `quota`."""
        return self._run(self._available(user_id)) > self.settings.trust_multiplier * quota

    def pre_consume_quota(
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
        """Set `quota` aside before the upstream call: one round trip when the account is warm.

        Repeating with the same request_id gives the same reservation (`again`).
        Raises Refused (InsufficientUserQuota, TokenRefused, UserNotFound, UserDisabled,
        IdempotencyConflict, ReservationClosed, InvalidRequest) or Unavailable (HoldNotWritten,
        UserQuotaUnreadable, BacklogFull), whose request_id is the one to repeat with.
        """
        return self._run(self._reserve(quota, user_id, token_id, price, request_id, ttl_seconds, client_key))

    def consume(self, log: ConsumeLog) -> Receipt:
        """Close the hold and have the usage booked: one round trip. Safe to repeat.

        Raises InvalidRequest, IdempotencyConflict, NotBooked; and UserNotFound or
        TokenRefused if Redis is away and PostgreSQL knows better.
        """
        return self._run(self._consume(log))

    def refund_quota(
        self,
        reservation: Reservation | None = None,
        *,
        user_id: int | None = None,
        request_id: str | None = None,
        reason: str = "",
    ) -> Receipt:
        """Give a reservation back, typically because the upstream call failed. Safe to repeat.

        Raises ReservationClosed if it was consumed, IdempotencyConflict, HoldNotWritten.
        """
        return self._run(self._refund_quota(reservation, user_id, request_id, reason))

    def refund_charge(
        self, *, user_id: int, request_id: str, refund_id: str, quota: int | None = None, reason: str = ""
    ) -> Receipt:
        """Give a charge back after it was consumed: `quota` of it, or all that is left. Safe to repeat by refund_id.

        It is booked with the next settlement; what can't be booked (no such charge,
        above the charge) is kept as a dead letter. Raises InvalidRequest, NotBooked.
        """
        return self._run(self._refund_charge(user_id, request_id, refund_id, quota, reason))

    def renew(self, reservation: Reservation, ttl_seconds: int | None = None) -> int:
        """Keep a hold open for another ttl; returns when it expires, in ms. Raises ReservationClosed, Unavailable."""
        return self._run(self._renew(reservation, ttl_seconds))

    @contextmanager
    def charge(
        self,
        *,
        user_id: int,
        token_id: int,
        channel_id: int,
        model: str,
        prompt_tokens: int,
        max_tokens: int | None = None,
        group: str = "default",
        channel_type: int | None = None,
        request_id: str | None = None,
        ttl_seconds: int | None = None,
        client_key: str = "",
        **details: Any,
    ) -> Iterator[Charge]:
        """Reserve, run the block, then consume the usage it handed over, or release the hold if it handed none.

        Whatever ends the block (an exception, GeneratorExit of a stream whose client
        left, KeyboardInterrupt), usage that was handed over is consumed. The hold is renewed while the block runs.
        """
        price = self.price(model=model, group=group, channel_type=channel_type)
        reservation = self.pre_consume_quota(
            price.estimate(prompt_tokens, max_tokens),
            user_id=user_id,
            token_id=token_id,
            price=price,
            request_id=request_id,
            ttl_seconds=ttl_seconds,
            client_key=client_key,
        )
        charge = Charge(reservation, channel_id, details)
        self._renewer.add(reservation, ttl_seconds or self.settings.hold_ttl_seconds)
        try:
            yield charge
        except BaseException as exc:
            self._settle(charge, exc)
            raise
        else:
            self._settle(charge, None)
        finally:
            self._renewer.remove(reservation)

    def _settle(self, charge: Charge, exc: BaseException | None) -> None:
        self._renewer.remove(charge.reservation)
        self._run(self._settle_charge(charge, exc))

    def close(self) -> None:
        """Send waiting rings, close connections."""
        self._renewer.close()
        self._relayer.close()
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
