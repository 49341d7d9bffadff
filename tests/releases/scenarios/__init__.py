"""What users of a release rely on, as scenarios. `one_day` comes last: what it leaves behind is recorded, too."""

from __future__ import annotations

from collections.abc import Callable

from tests.releases.play import Play
from tests.releases.scenarios import accounts, away, blocks, day, invalid, messages, prices, refunds, requests

#: By the name of their trace.
SCENARIOS: dict[str, Callable[[Play], None]] = {
    "prices": prices.prices,
    "own_ratios": prices.own_ratios,
    "requests": requests.requests,
    "repeats": requests.repeats,
    "conflicts": requests.conflicts,
    "refusals": requests.refusals,
    "late": requests.late,
    "renewals": requests.renewals,
    "unlimited_and_trusted": requests.unlimited_and_trusted,
    "refunds_of_holds": refunds.of_holds,
    "refunds_of_charges": refunds.of_charges,
    "refunds_without_a_charge": refunds.without_a_charge,
    "accounts": accounts.accounts,
    "top_ups": accounts.top_ups,
    "edited_by_sql": accounts.edited_by_sql,
    "blocks": blocks.blocks,
    "blocks_of_asyncio": blocks.blocks_of_asyncio,
    "asyncio": blocks.all_methods,
    "consume_messages": messages.consume_messages,
    "refund_messages": messages.refund_messages,
    "retries": messages.retries,
    "dispatch_by_request": messages.dispatch_by_request,
    "invalid_requests": invalid.invalid_requests,
    "invalid_logs": invalid.invalid_logs,
    "invalid_administration": invalid.invalid_administration,
    "redis_away": away.redis_away,
    "both_away": away.both_away,
    "one_day": day.one_day,
}
