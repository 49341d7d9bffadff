"""Balance: what a user has available, from Redis, loaded first if need be."""

from __future__ import annotations

from billing_tasks.errors import Unavailable, UserQuotaUnreadable
from billing_tasks.flows.account_cache import load_user
from billing_tasks.holds.commands import Commands
from billing_tasks.settings import Settings


async def available_quota(user_id: int, *, commands: Commands, settings: Settings) -> int:
    """balance - held - unposted, in quota. Raises UserNotFound or UserQuotaUnreadable."""
    try:
        seen = await commands.balance(user_id=user_id)
        if seen.loaded and 0 <= seen.age_ms <= settings.fresh_seconds * 1000:
            return seen.available
        row = await load_user(user_id, seen, commands)
        seen = await commands.balance(user_id=user_id)
        # Not loaded: Redis was restarted between the look and the load. The row is no older than that look.
        return seen.available if seen.loaded else row.quota - seen.held - seen.unposted
    except Unavailable as exc:
        raise UserQuotaUnreadable(exc.message) from exc
