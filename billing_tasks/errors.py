"""Every error the package raises on purpose.

    BillingError
    ├── Refused                       tell the caller; repeating changes nothing
    │   ├── InvalidRequest            400  amount, id or payload malformed
    │   │   └── UnknownModel          400  no price list has the model
    │   ├── UserNotFound              404
    │   ├── UserDisabled              403
    │   ├── InsufficientUserQuota     403
    │   ├── TokenRefused              403  `reason` says which rule
    │   ├── IdempotencyConflict       409  the same id came before with another body
    │   ├── ReservationClosed         409  consumed, released or expired already
    │   ├── ChargeNotFound            404  nothing was charged under this id
    │   ├── RefundAboveCharge         409  refunds would exceed the charge
    │   ├── BadRatios                 500  a ratio table can't be used (operator's mistake)
    │   └── BadSettings               500  the configuration can't be used (operator's mistake)
    ├── OutboxStuck                   500  a bug, or a stranger writing to Redis
    └── Unavailable                   perhaps applied; repeating with the same id is safe
        ├── UserQuotaUnreadable       503  no balance could be read
        ├── HoldNotWritten            503  Redis did not answer in time
        ├── NotBooked                 503  neither Redis nor PostgreSQL took the usage
        └── BacklogFull               503  the outbox is at its limit

`code` is the reference gateway's, and so is `http_status`, but that a server which is away is 503 there is 500.
`what_to_do` is a sentence for the person who reads the log. `as_openai()` is the body an OpenAI-compatible gateway
answers its customer with: it says nothing of servers, addresses and settings, which are the operator's.
"""

from __future__ import annotations

from typing import Any, ClassVar


class BillingError(Exception):
    """Root of the tree: anything billing_tasks raises on purpose."""

    code: ClassVar[str] = "billing_error"
    http_status: ClassVar[int] = 500
    what_to_do: ClassVar[str] = "Look at the message; it says what went wrong."
    #: What a customer is told instead of the message; None: the message is for customers, too.
    #: In so many seconds the same is tried again by itself; None: it is not.
    again_in_seconds: float | None = None
    for_customers: ClassVar[str | None] = "The gateway can't bill this request. That is no fault of the request."

    def __init__(self, message: str, *, reason: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:
        # Celery pickles errors between its processes; keyword arguments need help to survive that.
        return _rebuild, (type(self), self.message, self.reason, self.request_id)

    def as_openai(self) -> dict[str, dict[str, str | None]]:
        """The body of an OpenAI-style error response, for a customer: no address, no setting, no server's words."""
        return {
            "error": {
                "message": self.for_customers or self.message,
                "type": "one_api_error",
                "param": self.reason,
                "code": self.code,
            }
        }


def _rebuild(cls: type[BillingError], message: str, reason: str | None, request_id: str | None) -> BillingError:
    return cls(message, reason=reason, request_id=request_id)


class Refused(BillingError):
    """The answer is no, and repeating the call will not change it. Nothing was written."""

    code = "refused"
    http_status = 400
    for_customers: ClassVar[str | None] = None


class InvalidRequest(Refused):
    """An amount, an id or a payload is malformed. Nothing was touched; fix the caller."""

    code = "invalid_request"
    http_status = 400
    what_to_do = "Fix the caller: the message names the field and the rule it breaks."


class UnknownModel(InvalidRequest):
    """No price list has a model of this name. Nothing was touched; the message names the nearest names."""

    code = "unknown_model"
    what_to_do = (
        "Correct the name, or set a price: `billing-tasks prices set`, [prices] or [alias] of the ratios file, or"
        " BILLING_UNKNOWN_MODEL, a ratio for all models without a price."
    )


class UserNotFound(Refused):
    """No such user in PostgreSQL."""

    code = "user_not_found"
    http_status = 404
    what_to_do = "Create the user with Accounts.create_user, or correct the id."


class UserDisabled(Refused):
    """The user exists and is disabled."""

    code = "user_disabled"
    http_status = 403
    what_to_do = "Enable the user with Accounts.set_user if that is wanted."


class InsufficientUserQuota(Refused):
    """The user has less available quota than the request would hold."""

    code = "insufficient_user_quota"
    http_status = 403
    what_to_do = "Top the user up, or ask for less."


class TokenRefused(Refused):
    """The token may not pay for this request; `reason` is one of quota, unknown, disabled, expired, other_user."""

    code = "pre_consume_token_quota_failed"
    http_status = 403
    what_to_do = "See `reason`: raise the token's quota, enable it, or use another token."


class IdempotencyConflict(Refused):
    """The same id came before with another body. The first body stands; the second is kept as a dead letter."""

    code = "idempotency_conflict"
    http_status = 409
    what_to_do = "Use a new id for something new; repeat something under its id with its exact body."


class ReservationClosed(Refused):
    """The reservation was consumed, released or expired before; `reason` says which."""

    code = "reservation_closed"
    http_status = 409
    what_to_do = "Reserve again under a new request_id; give a charge back with refund_charge."


class ChargeNotFound(Refused):
    """Nothing was charged under this request_id, so there is nothing to refund."""

    code = "charge_not_found"
    http_status = 404
    what_to_do = "Check the request_id. A charge that is still on its way is found by the retry."


class RefundAboveCharge(Refused):
    """The refunds of this charge would exceed the charge."""

    code = "refund_above_charge"
    http_status = 409
    what_to_do = "Refund at most what is left of the charge; quota=None refunds exactly that."


class BadRatios(Refused):
    """A ratio table can't be used; the message has file, line and reason."""

    code = "bad_ratios"
    http_status = 500
    for_customers = BillingError.for_customers
    what_to_do = "Correct the line that the message names."


class BadSettings(Refused):
    """The configuration can't be used; the message says which setting and why."""

    code = "bad_settings"
    http_status = 500
    for_customers = BillingError.for_customers
    what_to_do = "Correct the BILLING_* variable that the message names."


class OutboxStuck(BillingError):
    """The ledger has the events and Redis does not let go of them. A bug, or a stranger writing to the outbox."""

    code = "outbox_stuck"
    http_status = 500
    what_to_do = "Compare the entry with the ledger; remove it by hand with XDEL once its request is booked."


class Unavailable(BillingError):
    """A server did not answer. The call was perhaps applied; repeating it with the same id is safe."""

    code = "unavailable"
    http_status = 503
    for_customers = "The gateway can't bill requests at this moment. Repeat the request in a while."
    what_to_do = "Try again: with the same id that is safe, whether or not the first try was applied."


class UserQuotaUnreadable(Unavailable):
    """The account is not in Redis and could not be read from PostgreSQL either."""

    code = "get_user_quota_failed"
    http_status = 503


class HoldNotWritten(Unavailable):
    """Redis did not confirm the hold. Repeat with the same request_id, or let it expire."""

    code = "decrease_user_quota_failed"
    http_status = 503


class NotBooked(Unavailable):
    """Neither Redis nor PostgreSQL confirmed the usage or the refund. Repeat with the same request_id."""

    code = "billing_not_booked"
    http_status = 503


class BacklogFull(Unavailable):
    """The shard's outbox is at its limit: settlements don't keep up, so nothing new is accepted."""

    code = "billing_backlog_full"
    http_status = 503
    what_to_do = "Start workers or bring PostgreSQL back; `billing-tasks status` shows the backlog."
