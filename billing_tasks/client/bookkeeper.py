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

from billing_tasks.client.base import BookkeeperBase, takes
from billing_tasks.client.charge import Charge
from billing_tasks.client.price_keeper import PriceKeeper
from billing_tasks.client.relayer import relay_from_now_on
from billing_tasks.client.renewer import Renewer
from billing_tasks.flows.effects import Flow
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.reservation import Receipt, Reservation
from billing_tasks.pricing import Price, PriceBook
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings, load_settings

T = TypeVar("T")


class Bookkeeper(BookkeeperBase):
    """Prices, reserves, consumes and refunds. Thread-safe and fork-safe; nothing connects before the first call.

    Quota is int, 500,000 of it are 1 USD; counts of a model's tokens are int, too. `ttl_seconds` is how long a hold
    stays open, 1 to 86,400 seconds; left out, BILLING_HOLD_TTL_SECONDS.
    """

    def __init__(self, runtime: Runtime) -> None:
        keeper = PriceKeeper(runtime, PriceBook(**runtime.settings.price_book))
        super().__init__(runtime.settings, runtime.commands, keeper)
        self._prices = keeper
        self._runtime = runtime
        self._renewer = Renewer(self.renew)
        self._relayer = relay_from_now_on(runtime)
        _ = runtime.doorbell  # loads Celery now, and not in the middle of the first request

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """A Bookkeeper as BILLING_* says, or as `settings` says. Raises BadSettings, BadRatios."""
        return cls(Runtime(settings or load_settings()))

    def _run(self, flow: Flow[T]) -> T:
        return self._runtime.run(flow)

    def user_has_enough_quota(self, user_id: int, quota: int) -> bool:
        """True if the user's available quota is at least `quota`. A look, not a promise: reserve to be sure.

        Raises UserNotFound, UserQuotaUnreadable.
        """
        return self._run(self._available(user_id)) >= quota

    def user_has_much_more_quota(self, user_id: int, quota: int) -> bool:
        """True if the user's available quota is more than `trust_multiplier` (100) times `quota`.

        Raises as user_has_enough_quota does.
        """
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

    def find_reservation(self, *, user_id: int, request_id: str) -> Reservation:
        """An open hold of another process, at the price that was fixed there: to consume or release it here.

        Raises ReservationClosed if none is open, Unavailable if Redis, or PostgreSQL for the price list, does not
        answer.
        """
        return self._run(self._find_reservation(user_id, request_id))

    def renew(self, reservation: Reservation, ttl_seconds: int | None = None, *, quota: int | None = None) -> int:
        """Keep a hold open for another ttl; returns when it expires, in milliseconds since 1970 by Redis's clock.

        With `quota` that much is held altogether from then on, as by `extend`, and raises as that does. Raises
        ReservationClosed, Unavailable.
        """
        return self._run(self._renew_with(reservation, ttl_seconds, quota))

    def extend(self, reservation: Reservation, *, quota: int, ttl_seconds: int | None = None) -> Reservation:
        """Have a hold hold `quota` altogether, for another ttl: one round trip. Safe to repeat: the total is set.

        Raises what pre_consume_quota raises, and then the hold is as it was; ReservationClosed if none is open.
        """
        return self._run(self._extend(reservation, quota, ttl_seconds))

    @takes(BookkeeperBase._ask_for)
    def open_charge(self, **asked: Any) -> Charge:
        """Reserve now, settle later: `with` the charge that is returned, wherever the answer is streamed.

        For a gateway that has to refuse before its response begins; the arguments are those of `charge`. A charge that
        is never entered leaves its hold to expire. Raises as `charge` does.
        """
        flow, made = self._ask_for(**asked)
        return Charge(self._run(flow), bookkeeper=self, **made)

    @takes(BookkeeperBase._ask_for)
    @contextmanager
    def charge(self, **asked: Any) -> Iterator[Charge]:
        """Reserve, run the block, then consume the usage it handed over, or release the hold if it handed none.

        Whatever ends the block (an exception, GeneratorExit of a stream whose client
        left, KeyboardInterrupt), usage that was handed over is consumed. The hold is renewed while the block runs.
        Without `max_tokens` BILLING_MAX_TOKENS says how much is set aside.

        Raises what pre_consume_quota raises, and ReservationClosed if the request is under way already (unless
        `again`).
        """
        with self.open_charge(**asked) as charge:
            yield charge

    def _keep_open(self, charge: Charge) -> None:
        self._renewer.add(charge.reservation, charge.ttl_seconds or self.settings.hold_ttl_seconds)

    def _settle(self, charge: Charge, exc: BaseException | None) -> None:
        self._renewer.remove(charge.reservation)
        self._run(self._settle_charge(charge, exc))

    def close(self) -> None:
        """Send waiting rings, close connections."""
        self._renewer.close()
        self._prices.close()
        self._relayer.close()
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
