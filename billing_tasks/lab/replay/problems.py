"""What can go wrong with a replay, and what to do about it.

BillingError
├── Refused
│   ├── BadTrace           the trace can't be read; the message has file, line and reason
│   └── BadMix             the mix of models can't be read
└── ReplayError            the traffic ran, or began to
    ├── ProcessDied        one of the gateway processes ended early
    └── NotSettled         not everything was booked within the time allowed
"""

from __future__ import annotations

from billing_tasks.errors import BillingError, Refused


class BadTrace(Refused):
    """A trace can't be read. Nothing was sent."""

    code = "bad_trace"
    what_to_do = "A trace is text with lines of TIMESTAMP,ContextTokens,GeneratedTokens below a header that says so."


class BadMix(Refused):
    """The mix of models, or a rate, makes no sense. Nothing was sent."""

    code = "bad_mix"
    what_to_do = "Write models and weights like: gpt-4o=5,gpt-4o-mini=3"


class ReplayError(BillingError):
    """The replay did not come to its end."""

    code = "replay_failed"
    what_to_do = "Holds that are still open expire by themselves; `billing-tasks status` shows what is left."


class ProcessDied(ReplayError):
    """A gateway process ended before its traffic did."""

    code = "replay_process_died"


class NotSettled(ReplayError):
    """The traffic is through, but not all of it is booked within the time allowed."""

    code = "replay_not_settled"
    what_to_do = (
        "Check that a worker and beat run (`celery -A billing_tasks worker -B`) and reach PostgreSQL; "
        "what is in the outboxes is booked when they do."
    )
