"""Reservation: quota set aside for one request, and what is handed back to the gateway for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.model import priced
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.pricing import Price, Usage, as_served

#: Facts that make it another price of the same list.
_SERVED = ("model", "group", "channel_type")


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
        used: Usage | None = None,
        facts: Mapping[str, Any] | None = None,
        **details: Any,
    ) -> ConsumeLog:
        """The ConsumeLog of this request, priced by the reservation unless `quota` is given.

        `used`: all that was used, by meter (`Usage.from_response`), in place of tokens. `facts`: how it was served, as
        {"service_tier": "priority"}; `model`, `group` and `channel_type` among them, if others were served than asked
        for, are priced by the same price list. `details` are further fields of ConsumeLog. Raises InvalidRequest for a
        field that can't be booked, for units without a price, and if there is neither a price nor a `quota`.
        """
        priced = self._priced(prompt_tokens, completion_tokens, used, dict(facts or {}), channel_id, quota)
        return ConsumeLog(
            user_id=self.user_id,
            token_id=self.token_id,
            request_id=self.request_id,
            channel_id=channel_id,
            pre_consumed_quota=self.pre_consumed_quota,
            client_key=details.pop("client_key", self.client_key),
            **{**priced, **details},
        )

    def _priced(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        used: Usage | None,
        facts: dict[str, Any],
        channel_id: int,
        quota: int | None,
    ) -> dict[str, Any]:
        tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        price = self.price
        if price is None:
            if quota is None:
                raise InvalidRequest(
                    "This reservation was made without a price; give pre_consume_quota a price=, or log() a quota=."
                )
            return {**(tokens if used is None else priced.counts_of(used)), "quota": quota}
        if quota is not None:
            counts = tokens if used is None else priced.counts_of(used)
            return {**counts, **priced.words_of(price), "quota": quota}
        served = {name: facts.pop(name) for name in _SERVED if name in facts}
        if price.channel_id not in (None, channel_id):
            served["channel_id"] = channel_id
        if facts and price.by_facts:
            served["facts"] = {**price.facts, **facts}
        if served:
            price = as_served(price, served)
        found = priced.of_text(price, prompt_tokens, completion_tokens) if used is None and not facts else None
        if found is not None:
            return found
        usage = used or Usage.of({"input_tokens": prompt_tokens, "output_tokens": completion_tokens})
        return priced.of_usage(price, usage, facts, self.request_id)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a consume, a refund_quota or a refund_charge."""

    request_id: str  # whose receipt it is
    quota: int  # in quota. consume: charged; refund_quota: released; refund_charge: asked for (0: all that is left)
    again: bool = False  # it was accepted before; nothing happened twice
    late: bool = False  # consume: no hold was open any more; charged all the same
    posted: bool = False  # booked in PostgreSQL already, not by way of the outbox
    spooled: bool = False  # both servers are away: kept in BILLING_SPOOL_FOLDER and relayed when one is back
