"""Charge: one request from reservation to settlement, as a `with` block. What both kinds of Bookkeeper share."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from billing_tasks.client.answers import Answers
from billing_tasks.client.usage import UsageSoFar, refuse, whole_number
from billing_tasks.errors import InsufficientUserQuota, InvalidRequest
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.reservation import Receipt, Reservation
from billing_tasks.pricing import Price, Usage
from billing_tasks.pricing.exact import MAX_TOKENS

if TYPE_CHECKING:
    from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
    from billing_tasks.client.bookkeeper import Bookkeeper

log = logging.getLogger(__name__)

_TOKENS = ("prompt_tokens", "completion_tokens")
_AMOUNTS = frozenset({*_TOKENS, "quota"})

#: What is charged if no usage was reported: nothing, the prompt, or what the gateway counted itself.
WithoutUsage = Literal["nothing", "prompt", "counted"]
#: What is charged if an upstream's usage can't be read: the last that could be, else what was held; or what was held.
UnreadableUsage = Literal["last", "estimate"]


@dataclass(slots=True)
class ChargeBase:
    """What runs inside `with bk.charge(...)`.

    Usage that was handed over is consumed however the block ends; if none was,
    `without_usage` says what is charged, by default nothing: the hold is released. Hand usage over as soon as it is
    known, again and again if it grows: a later value replaces the one before, what is left out or None stays.
    """

    reservation: Reservation  # its hold
    channel_id: int  # the upstream that the usage goes through
    details: dict[str, Any]  # further fields of its ConsumeLog
    prompt_tokens: int = 0  # as they were counted when quota was reserved
    without_usage: WithoutUsage = "nothing"  # what is charged if no usage is reported
    unreadable_usage: UnreadableUsage = "last"  # what is charged if what was reported can't be read
    provider: str | None = None  # whose answers `usage` is given; None: each is recognized
    overdraft_quota: int | None = None  # what usage may exceed the hold by, in quota; None: anything
    receipt: Receipt | None = None  # after the block: what became of it
    _so_far: UsageSoFar = field(default_factory=UsageSoFar)
    _counted: dict[str, int] = field(default_factory=dict)
    _log: ConsumeLog | None = None
    _answers: Answers = field(default_factory=Answers)
    _served: dict[str, Any] = field(default_factory=dict)  # facts

    def __post_init__(self) -> None:
        self._answers = Answers(self.provider)

    @property
    def request_id(self) -> str:
        """The id under which everything about this request is booked."""
        return self.reservation.request_id

    @property
    def price(self) -> Price | None:
        """The price that was fixed when the quota was reserved."""
        return self.reservation.price

    def usage(
        self,
        answer: object = None,
        /,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        quota: int | None = None,
        usage: dict[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        also: Mapping[str, Any] | None = None,
        **details: Any,
    ) -> None:
        """Hand over what was used: an upstream's answer, or tokens.

        `answer`: whatever a provider sent, as JSON or as an object of an SDK: a whole answer, its usage object, or each
        event of a stream (those without a usage change nothing); or a Usage. One that can't be read raises nothing,
        because the customer's answer must go on: `unreadable_usage` says what is charged then, and a dead letter keeps
        the object. `facts`: how it was served ({"service_tier": "priority"}; `model`, `group` if others were served
        than asked for). `also`: counts by meter that no usage object has: {"output_images": 2}. `usage` is a detail
        that is kept with the entry; its keys are merged, too.

        Raises InvalidRequest at once, inside the block, for tokens or details that can't be read or booked as they are:
        the rest counts, and of the unreadable value what was handed over before. Raises InsufficientUserQuota once the
        usage exceeds the hold by more than BILLING_OVERDRAFT_QUOTA: it is noted and will be charged; end the stream, or
        extend first.
        """
        given = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "quota": quota,
            "usage": usage,
            **details,
        }
        if facts:
            self._served.update(facts)
        if also:
            self._answers.also(also)
        if answer is not None:
            self._served.update(self._answers.take(answer))
            self._note_unread()
        before = self._so_far.copy()
        problems = self._so_far.merge(given)
        if self._so_far.known or self._answers.usage is not None:
            try:
                self._log = self._make_log(self._so_far)
            except InvalidRequest as exc:
                problems.append(exc.message)
                self._so_far = self._without_details(before)
        if problems:
            raise refuse(problems)
        self._check_overdraft()

    def _note_unread(self) -> None:
        if self._answers.unread is not None:
            log.error("The usage of request %s can't be read: %s", self.request_id, self._answers.unread["problem"])

    def _without_details(self, before: UsageSoFar) -> UsageSoFar:
        """The tokens were paid for upstream: a remark or a detail that can't be kept must not make them free."""
        tried = before.copy()
        tried.merge({name: self._so_far.values.get(name) for name in ("prompt_tokens", "completion_tokens", "quota")})
        with suppress(InvalidRequest):
            self._log = self._make_log(tried)
            return tried
        return before

    def _check_overdraft(self) -> None:
        if self._log is None or self.overdraft_quota is None:
            return
        above = self._log.quota - self.reservation.held_quota
        if above > self.overdraft_quota:
            raise InsufficientUserQuota(
                f"The usage is {above} quota above what is held, more than BILLING_OVERDRAFT_QUOTA"
                f" ({self.overdraft_quota}) allows; it is noted and will be charged. End the stream, or extend first.",
                request_id=self.request_id,
            )

    def counted(self, *, prompt_tokens: int | None = None, completion_tokens: int | None = None) -> None:
        """Note what the gateway counted itself, in tokens. It is charged only if no usage is ever reported, and
        `without_usage` is "counted". Raises InvalidRequest."""
        for name, value in (("prompt_tokens", prompt_tokens), ("completion_tokens", completion_tokens)):
            if value is not None:
                try:
                    self._counted[name] = whole_number(name, value, MAX_TOKENS)
                except ValueError as exc:
                    raise InvalidRequest(str(exc)) from None

    def log(self, exc: BaseException | None = None) -> ConsumeLog | None:
        """What is to be consumed; None: the hold is released. `exc`: what ended the block. Raises InvalidRequest."""
        if self._answers.unread is not None and (self._log is None or self.unreadable_usage == "estimate"):
            return self._estimated()
        if self._log is not None:
            return self._log
        # An upstream that failed before it answered used nothing; a reader who left, or an answer that ended without
        # a word about usage, did not get it for nothing.
        failed = isinstance(exc, Exception) and not self._counted
        if self.without_usage == "nothing" or failed or self.price is None:
            return None
        tokens = {"prompt_tokens": self.prompt_tokens}
        if self.without_usage == "counted":
            tokens.update(self._counted)
        if not any(tokens.values()):
            return None
        return self._make_log(UsageSoFar(), usage_source=self.without_usage, **tokens)

    def _estimated(self) -> ConsumeLog:
        """What was held, because nothing better is known: never free."""
        more = {name: value for name, value in self._so_far.values.items() if name not in _AMOUNTS}
        return self.reservation.log(
            channel_id=self.channel_id,
            prompt_tokens=self.prompt_tokens,
            quota=self.reservation.held_quota,
            **{**self.details, **more, "usage_source": "estimate", "unread": self._answers.unread},
        )

    def _make_log(self, so_far: UsageSoFar, **more: Any) -> ConsumeLog:
        fields = {**self.details, **so_far.values, **more}
        if so_far.decreases:
            fields["decreases"] = so_far.decreases
        if self._answers.unread is not None:
            fields["unread"] = self._answers.unread
        used = self._answers.usage
        if used is not None:
            fields = {name: value for name, value in fields.items() if name not in _TOKENS}
        try:
            return self.reservation.log(channel_id=self.channel_id, used=used, facts=self._served, **fields)
        except InvalidRequest as exc:
            if used is None and not self._served:
                raise
            return self._otherwise(exc, fields, used)

    def _otherwise(self, why: InvalidRequest, fields: dict[str, Any], used: Usage | None) -> ConsumeLog:
        """What was served has no price in the list: it is charged like what was asked for, else as estimated."""
        self._answers.cannot({"facts": self._served, "used": used and dict(used.counts)}, why.message)
        self._note_unread()
        facts = {name: fact for name, fact in self._served.items() if name not in ("model", "group")}
        fields = {**fields, "unread": self._answers.unread}
        with suppress(InvalidRequest):
            return self.reservation.log(channel_id=self.channel_id, used=used, facts=facts, **fields)
        return self._estimated()

    def total_for(self, quota: int | None, completion_tokens: int | None) -> int:
        """The quota that `extend` is to hold altogether. Raises InvalidRequest."""
        if (quota is None) == (completion_tokens is None):
            raise InvalidRequest("extend takes quota= or completion_tokens=, not both and not none.")
        if quota is not None:
            return quota
        if self.price is None:
            raise InvalidRequest("This reservation was made without a price; extend it by quota=.")
        used = self._answers.usage.get("input_tokens") if self._answers.usage else 0
        prompt_tokens = max(self.prompt_tokens, self._so_far.values.get("prompt_tokens", 0), int(used))
        if not completion_tokens:
            return self.price.quota(prompt_tokens, 0)
        return self.price.estimate(prompt_tokens, completion_tokens)


@dataclass(slots=True)
class Charge(ChargeBase):
    """A Charge of Bookkeeper. `with` settles it."""

    bookkeeper: Bookkeeper = field(kw_only=True)  # whose charge it is, and who settles it
    ttl_seconds: int | None = field(default=None, kw_only=True)  # of its hold; None: BILLING_HOLD_TTL_SECONDS

    def extend(self, *, quota: int | None = None, completion_tokens: int | None = None) -> None:
        """Set aside `quota` altogether, or what the prompt and so many completion tokens cost. One round trip.

        Raises InvalidRequest unless exactly one of the two is given, ReservationClosed if no hold is open, and what
        pre_consume_quota raises if there is not enough: the hold stays as it was, and what was used is charged all
        the same.
        """
        total = self.total_for(quota, completion_tokens)
        self.reservation = self.bookkeeper.extend(self.reservation, quota=total, ttl_seconds=self.ttl_seconds)

    def __enter__(self) -> Self:
        self.bookkeeper._keep_open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bookkeeper._settle(self, exc)


@dataclass(slots=True)
class AsyncCharge(ChargeBase):
    """A Charge of AsyncBookkeeper. `async with` settles it, shielded from cancellation."""

    bookkeeper: AsyncBookkeeper = field(kw_only=True)  # whose charge it is, and who settles it
    ttl_seconds: int | None = field(default=None, kw_only=True)  # of its hold; None: BILLING_HOLD_TTL_SECONDS
    stop_renewing: Callable[[], object] = field(default=lambda: None, kw_only=True)  # called when the block has ended

    async def extend(self, *, quota: int | None = None, completion_tokens: int | None = None) -> None:
        """See Charge.extend."""
        total = self.total_for(quota, completion_tokens)
        self.reservation = await self.bookkeeper.extend(self.reservation, quota=total, ttl_seconds=self.ttl_seconds)

    async def __aenter__(self) -> Self:
        self.bookkeeper._keep_open(self)
        return self

    def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Awaitable[None]:
        return self.bookkeeper._settle(self, exc)


def release_reason(exc: BaseException | None) -> str:
    """The reason a hold is released for, short enough for the ledger."""
    if exc is None:
        return "no usage was reported"
    return f"{type(exc).__name__}: {exc}".replace("\x00", "").encode("utf-8", "replace").decode()[:500]
