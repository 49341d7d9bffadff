"""Balance: what a user has available, from Redis, loaded first if need be."""

from __future__ import annotations

from billing_tasks.errors import Unavailable, UserQuotaUnreadable
from billing_tasks.flows.effects import InLedger
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.store import Ledger
from billing_tasks.settings import Settings


async def available_quota(user_id: int, *, commands: Commands, settings: Settings) -> int:
    """balance - held - unposted, in quota. Raises UserNotFound or UserQuotaUnreadable."""
    try:
        seen = await commands.balance(user_id=user_id)
        if seen.loaded and seen.age_ms <= settings.fresh_seconds * 1000:
            return seen.available
        row = await InLedger(Ledger.get_user, user_id)
        await commands.load_user(row, began_ms=seen.now_ms, epoch=seen.epoch)
        seen = await commands.balance(user_id=user_id)
        # Not loaded: Redis was restarted between the look and the load. The row is no older than that look.
        return seen.available if seen.loaded else row.quota - seen.held - seen.unposted
    except Unavailable as exc:
        raise UserQuotaUnreadable(exc.message) from exc
