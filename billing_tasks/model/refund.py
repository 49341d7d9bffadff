"""RefundRequest: a refund as it was asked for, by a caller or in a message."""

from __future__ import annotations

from dataclasses import dataclass

from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.fingerprint import fingerprint


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """A refund as it was asked for, checked."""

    user_id: int
    request_id: str
    reason: str = ""
    quota: int | None = None  # of a charge; None: all that is left of it
    refund_id: str = ""  # of a charge; "": the request's one default refund
    asked_at_ms: int | None = None  # since 1970; None: now

    @property
    def event(self) -> Event:
        """The event that reverses the charge."""
        refund_id = self.refund_id or f"refund:{self.request_id}"
        amount = "whole" if self.quota is None else self.quota
        return events.make(
            kind=Kind.REFUND,
            request_id=self.request_id,
            user_id=self.user_id,
            token_id=0,  # the ledger takes the token from the charge
            fingerprint=fingerprint("refund", self.user_id, self.request_id, refund_id, amount),
            quota=self.quota or 0,
            whole=self.quota is None,
            refund_id=refund_id,
            content=self.reason,
            used_at_ms=self.asked_at_ms,
        )

    @property
    def kwargs(self) -> dict[str, object]:
        """The same as arguments of the task billing.refund."""
        return {
            "user_id": self.user_id,
            "request_id": self.request_id,
            "quota": self.quota,
            "refund_id": self.refund_id or None,
            "reason": self.reason,
        }
