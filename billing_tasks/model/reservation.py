"""Reservation: quota set aside for one request, and what is handed back to the gateway for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.pricing import Price


@dataclass(frozen=True, slots=True)
class Reservation:
    """An open hold. It carries its price, so that settling never asks what things cost by then."""

    request_id: str  # a UUID of version 7; what a repeated call names
    user_id: int
    token_id: int  # the user's API key that pays
    held_quota: int  # what is set aside, in quota; the truth
    expires_at_ms: int  # milliseconds since 1970 by Redis's clock; renew() moves it
    price: Price | None = None  # what its tokens cost; None: it was made without
    client_key: str = ""  # the caller's own word for the request; no identity
    trusted: bool = False  # the reference would have skipped the reservation; nothing computes with it
    again: bool = False  # the same call was answered before

    @property
    def pre_consumed_quota(self) -> int:
        """What the reference would have reported: 0 for a trusted user. Nothing computes with it."""
        return 0 if self.trusted else self.held_quota

    def log(
        self,
        *,
        channel_id: int,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        quota: int | None = None,
        **details: Any,
    ) -> ConsumeLog:
        """The ConsumeLog of this request, priced by the reservation unless `quota` is given.

        `details` are further fields of ConsumeLog. Raises InvalidRequest for a field that can't be booked, and if
        there is neither a price nor a `quota`.
        """
        price = self.price
        if price is not None:
            names = ("model_ratio", "completion_ratio", "group_ratio")
            details = {
                "model_name": price.model,
                "group": price.group,
                **{name: ratio for name, ratio in price.to_strings().items() if name in names},
                **details,
            }
        if quota is None:
            if price is None:
                raise InvalidRequest(
                    "This reservation was made without a price; give pre_consume_quota a price=, or log() a quota=."
                )
            quota = price.quota(prompt_tokens, completion_tokens)
        return ConsumeLog(
            user_id=self.user_id,
            token_id=self.token_id,
            request_id=self.request_id,
            channel_id=channel_id,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            quota=quota,
            pre_consumed_quota=self.pre_consumed_quota,
            client_key=details.pop("client_key", self.client_key),
            **details,
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a consume, a refund_quota or a refund_charge."""

    request_id: str  # whose receipt it is
    quota: int  # in quota. consume: charged; refund_quota: released; refund_charge: asked for (0: all that is left)
    again: bool = False  # it was accepted before; nothing happened twice
    late: bool = False  # consume: no hold was open any more; charged all the same
    posted: bool = False  # booked in PostgreSQL already, not by way of the outbox
    spooled: bool = False  # both servers are away: kept in BILLING_SPOOL_FOLDER and relayed when one is back
