"""What Bookkeeper and AsyncBookkeeper share: arguments in, flow out. They differ in who runs the flow."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Concatenate, ParamSpec, TypeVar

from billing_tasks.client.charge import ChargeBase, WithoutUsage, release_reason
from billing_tasks.client.price_keeper import PriceKeeper
from billing_tasks.errors import InvalidRequest, ReservationClosed, Unavailable
from billing_tasks.flows.effects import Flow
from billing_tasks.flows.requests import consume, extend, refund, release, renew, reserve
from billing_tasks.flows.requests.balance import available_quota
from billing_tasks.holds.commands import Commands
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.ids import check_new_request_id, check_request_id, new_request_id, shorten
from billing_tasks.model.refund import RefundRequest
from billing_tasks.model.reservation import Receipt, Reservation
from billing_tasks.model.validation import check_int, check_text
from billing_tasks.pricing import PROVIDERS, Price, PriceBook, unpacked
from billing_tasks.settings import Settings

#: However short a model's answers were.
LEAST_LEARNED_TOKENS = 16

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def takes(
    other: Callable[Concatenate[Any, P], Any],
) -> Callable[[Callable[Concatenate[S, ...], R]], Callable[Concatenate[S, P], R]]:
    """The method that follows takes what `other` takes: said once, for type checkers and for `help`."""

    def with_its_parameters(method: Callable[Concatenate[S, ...], R]) -> Callable[Concatenate[S, P], R]:
        returns = inspect.signature(method).return_annotation
        method.__signature__ = inspect.signature(other).replace(return_annotation=returns)  # type: ignore[attr-defined]
        return method

    return with_its_parameters


class BookkeeperBase:
    """Prices, checks arguments and picks the flow. Raises InvalidRequest before anything is touched."""

    def __init__(self, settings: Settings, commands: Commands, keeper: PriceKeeper | None = None) -> None:
        self.settings = settings
        self._commands = commands
        self._keeper = keeper
        self.price_book = PriceBook(**settings.price_book) if keeper is None else keeper.book

    # -- prices: no server is asked -----------------------------------------------------------------------

    @property
    def ratio_book(self) -> PriceBook:
        """`price_book`, as releases before 0.4.0 called it."""
        return self.price_book

    def price(
        self,
        *,
        model: str,
        group: str = "default",
        user_group: str = "",
        channel_type: int | None = None,
        channel_id: int | None = None,
        token_id: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Price:
        """What a request costs: see Price.estimate, Price.quota and Price.quota_of. Fixed from here on.

        `group` is the one that is paid for; `user_group` that of the user, where it is another one. Channel and token
        matter where a factor is for them. `facts`: what is known of the request, like {"region": "eu"}. Raises
        UnknownModel for a model without a price, InvalidRequest for a malformed name or channel type.
        """
        self._know_prices()
        return self._price_of(
            model=model,
            group=group,
            user_group=user_group,
            channel_type=channel_type,
            channel_id=channel_id,
            token_id=token_id,
            facts=facts,
        )

    def _price_of(self, **asked: Any) -> Price:
        return self.price_book.price(**asked)

    def _know_prices(self) -> None:
        """Before the first price of this process, in the caller's thread."""
        if self._keeper is not None and not self._keeper.known:
            self._keeper.know_now()

    def model_ratio(self, model: str, channel_type: int | None = None) -> Fraction:
        """Ratio of the model; 1 is 2 USD per million prompt tokens. Raises as `price` does."""
        return self.price(model=model, channel_type=channel_type).model_ratio

    def completion_ratio(self, model: str, channel_type: int | None = None) -> Fraction:
        """How many times a prompt token's price a completion token costs. Raises as `price` does."""
        return self.price(model=model, channel_type=channel_type).completion_ratio

    def group_ratio(self, group: str) -> Fraction:
        """The group's factor on every price. Unknown: 1. Raises InvalidRequest for a malformed name."""
        self._know_prices()
        return self.price_book.prices.group_ratio(group)

    def ratio(self, group: str, model: str) -> Fraction:
        """Quota per prompt token: group ratio times model ratio. Raises as `price` does."""
        return self.price(model=model, group=group).ratio

    # -- flows --------------------------------------------------------------------------------------------

    def _reserve(
        self,
        quota: int,
        user_id: int,
        token_id: int,
        price: Price | None,
        request_id: str | None,
        ttl_seconds: int | None,
        client_key: str,
    ) -> Flow[Reservation]:
        wanted = reserve.Wanted(
            request_id=new_request_id() if request_id is None else check_new_request_id(request_id),
            user_id=check_int("user_id", user_id, 1),
            token_id=check_int("token_id", token_id, 1),
            amount=check_int("quota", quota, 0),
            ttl_ms=self._ttl_ms(ttl_seconds),
            price=price,
            client_key=check_text("client_key", client_key, 200) if client_key else "",
        )
        return self._reserve_priced(wanted)

    async def _reserve_priced(self, wanted: reserve.Wanted) -> Reservation:
        """The price's list is stored first: what a hold names must be found by whoever consumes it."""
        if self._keeper is not None and wanted.price is not None:
            wanted = wanted.at(await self._keeper.stored(wanted.price))
        return await reserve.reserve(wanted, commands=self._commands, settings=self.settings)

    async def _find_reservation(self, user_id: int, request_id: str) -> Reservation:
        user_id, request_id = check_int("user_id", user_id, 1), check_request_id(request_id)
        hold = await self._commands.hold(user_id=user_id, request_id=request_id)
        if hold is None or hold.state != "held" or hold.user_id != user_id:
            raise ReservationClosed(
                f"User {user_id} has no open hold of request {request_id}.",
                reason=hold.state if hold is not None and hold.user_id == user_id else "closed",
                request_id=request_id,
            )
        price = None
        if hold.price and self._keeper is not None:
            version, question = unpacked(hold.price)
            price = (await self._keeper.list_of(version)).price(**question)
        return Reservation(
            request_id=request_id,
            user_id=user_id,
            token_id=hold.token_id,
            held_quota=hold.quota,
            expires_at_ms=await self._commands.hold_expires_at(user_id=user_id, request_id=request_id),
            price=price,
            client_key=hold.client_key,
            again=True,
        )

    def _consume(self, log: ConsumeLog) -> Flow[Receipt]:
        if not isinstance(log, ConsumeLog):
            raise InvalidRequest(f"consume takes a ConsumeLog, got {shorten(log)}.")
        if self.settings.dispatch == "request":
            return consume.enqueue(log, commands=self._commands)
        return consume.consume(log, commands=self._commands)

    def _refund_quota(
        self, reservation: Reservation | None, user_id: int | None, request_id: str | None, reason: str
    ) -> Flow[Receipt]:
        if reservation is not None:
            if user_id is not None or request_id is not None:
                raise InvalidRequest("refund_quota takes a reservation, or user_id= and request_id=, not both.")
            user_id, request_id = reservation.user_id, reservation.request_id
        wanted = self._refund_request(user_id, request_id, reason)
        if self.settings.dispatch == "request":
            return refund.enqueue(wanted, commands=self._commands)
        return release.release_hold(
            wanted,
            token_id=reservation.token_id if reservation else None,
            held=reservation.held_quota if reservation else 0,
            client_key=reservation.client_key if reservation else "",
            commands=self._commands,
        )

    def _refund_charge(
        self, user_id: int, request_id: str, refund_id: str, quota: int | None, reason: str
    ) -> Flow[Receipt]:
        refund_id = check_text("refund_id", refund_id, 200)
        if not refund_id:
            raise InvalidRequest("refund_id must not be empty: it tells a repeated refund from a second one.")
        amount = None if quota is None else check_int("quota", quota, 1)
        wanted = self._refund_request(user_id, request_id, reason, amount, refund_id)
        if self.settings.dispatch == "request":
            return refund.enqueue(wanted, commands=self._commands)
        return refund.refund_charge(wanted, commands=self._commands)

    def _refund_request(
        self, user_id: object, request_id: object, reason: str, quota: int | None = None, refund_id: str = ""
    ) -> RefundRequest:
        return RefundRequest(
            user_id=check_int("user_id", user_id, 1),
            request_id=check_request_id(request_id),
            reason=check_text("reason", reason, 2000),
            quota=quota,
            refund_id=refund_id,
        )

    def _ask_for(
        self,
        /,
        *,
        user_id: int,
        token_id: int,
        channel_id: int,
        model: str,
        prompt_tokens: int,
        max_tokens: int | None = None,
        group: str = "default",
        user_group: str = "",
        channel_type: int | None = None,
        facts: Mapping[str, Any] | None = None,
        also: Mapping[str, Any] | None = None,
        provider: str | None = None,
        request_id: str | None = None,
        ttl_seconds: int | None = None,
        client_key: str = "",
        again: bool = False,
        without_usage: WithoutUsage | None = None,
        **details: Any,
    ) -> tuple[Flow[Reservation], dict[str, Any]]:
        """A charge as it was asked for: the flow that reserves, and what its Charge is made of beside that."""
        if without_usage not in (None, "nothing", "prompt", "counted"):
            raise InvalidRequest(f"without_usage must be nothing, prompt or counted, got {shorten(without_usage)}.")
        if provider is not None and provider not in PROVIDERS:
            raise InvalidRequest(f"There is no provider {shorten(provider)}; known are {', '.join(PROVIDERS)}.")

        async def flow() -> Reservation:
            if self._keeper is not None and not self._keeper.known:
                await self._keeper.know()
            price = self._price_of(
                model=model,
                group=group,
                user_group=user_group,
                channel_type=channel_type,
                channel_id=channel_id,
                token_id=token_id,
                facts=facts,
            )
            amount = price.estimate(prompt_tokens, max_tokens or self._max_tokens(model), also=also or {})
            return await self._reserve(amount, user_id, token_id, price, request_id, ttl_seconds, client_key)

        made = {
            "channel_id": channel_id,
            "details": details,
            "prompt_tokens": prompt_tokens,
            "without_usage": without_usage or self.settings.without_usage,
            "unreadable_usage": self.settings.unreadable_usage,
            "provider": provider,
            "overdraft_quota": self.settings.overdraft_quota,
            "ttl_seconds": ttl_seconds,
        }
        return self._once(flow(), again=again), made

    async def _once(self, flow: Flow[Reservation], *, again: bool) -> Reservation:
        """A block that runs a second time would call the upstream a second time, and charge once."""
        reservation = await flow
        if reservation.again and not again:
            raise ReservationClosed(
                f"Request {reservation.request_id} is under way already: its quota was reserved before. If that call is"
                " known to be gone, or was never answered, ask with again=True.",
                reason="again",
                request_id=reservation.request_id,
            )
        return reservation

    def _max_tokens(self, model: str) -> int | None:
        """Of a request that names none: as said for its model, else learned, else as said for any."""
        limits = self.settings.max_tokens
        learned = self._keeper.learned.get(model) if self._keeper is not None else None
        if model in limits or learned is None:
            return limits.get(model, limits.get("*"))
        return max(learned, LEAST_LEARNED_TOKENS)

    async def _settle_charge(self, charge: ChargeBase, exc: BaseException | None) -> None:
        """Consume what was handed over, or release the hold; a server that is away is asked once more."""
        usage = charge.log(exc)
        for last in (False, True):
            try:
                if usage is not None:
                    charge.receipt = await self._consume(usage)
                else:
                    charge.receipt = await self._refund_quota(charge.reservation, None, None, release_reason(exc))
                return
            except Unavailable as failed:
                if last and usage is None and exc is not None:
                    exc.add_note(f"and the hold was not released: {failed}; it expires by itself")
                    return  # the block's own error matters more
                if last:
                    raise
            except ReservationClosed:
                return  # another call consumed it under this request_id: then there is nothing to release

    def _ttl_ms(self, ttl_seconds: int | None) -> int:
        ttl = self.settings.hold_ttl_seconds if ttl_seconds is None else ttl_seconds
        return check_int("ttl_seconds", ttl, 1, 86_400) * 1000

    def _renew(self, reservation: Reservation, ttl_seconds: int | None) -> Flow[int]:
        return renew.renew(reservation, ttl_ms=self._ttl_ms(ttl_seconds), commands=self._commands)

    async def _renew_with(self, reservation: Reservation, ttl_seconds: int | None, quota: int | None) -> int:
        if quota is None:
            return await self._renew(reservation, ttl_seconds)
        return (await self._extend(reservation, quota, ttl_seconds)).expires_at_ms

    def _extend(self, reservation: Reservation, quota: int, ttl_seconds: int | None) -> Flow[Reservation]:
        total, ttl_ms = check_int("quota", quota, 0), self._ttl_ms(ttl_seconds)
        return extend.extend(reservation, total, ttl_ms=ttl_ms, commands=self._commands, settings=self.settings)

    def _available(self, user_id: int) -> Flow[int]:
        return available_quota(check_int("user_id", user_id, 1), commands=self._commands, settings=self.settings)
