"""Charge: one request from reservation to settlement, as a `with` block. What both kinds of Bookkeeper share."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.reservation import Receipt, Reservation
from billing_tasks.pricing import Price


@dataclass(slots=True)
class Charge:
    """What runs inside `with bk.charge(...)`.

    Usage that was handed over is consumed however the block ends; if none was,
    the hold is released. Hand usage over as soon as it is known, again and again
    if it grows: the last word counts.
    """

    reservation: Reservation
    channel_id: int
    details: dict[str, Any]
    receipt: Receipt | None = None  # after the block: what became of it
    _usage: ConsumeLog | None = field(default=None)

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
        *,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        quota: int | None = None,
        usage: dict[str, Any] | None = None,
        **details: Any,
    ) -> None:
        """Hand over what was used, in tokens. `usage` is the upstream's own detail.

        Raises InvalidRequest at once, inside the block, if it can't be booked as it is: then the tokens alone
        are, if they can, else what was handed over before stands.
        """
        given: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "quota": quota,
            "usage": usage,
            **details,
        }
        try:
            self._usage = self._log(given)
        except InvalidRequest:
            # The tokens were paid for upstream: a remark or a detail that can't be kept must not make them free.
            with suppress(InvalidRequest):
                self._usage = self._log({name: given[name] for name in ("prompt_tokens", "completion_tokens", "quota")})
            raise

    def log(self) -> ConsumeLog | None:
        """What is to be consumed; None if nothing was handed over."""
        return self._usage

    def _log(self, usage: dict[str, Any]) -> ConsumeLog:
        return self.reservation.log(channel_id=self.channel_id, **{**self.details, **usage})


def release_reason(exc: BaseException | None) -> str:
    """The reason a hold is released for, short enough for the ledger."""
    if exc is None:
        return "no usage was reported"
    return f"{type(exc).__name__}: {exc}".replace("\x00", "").encode("utf-8", "replace").decode()[:500]
