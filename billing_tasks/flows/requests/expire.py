"""Expire: release holds that the gateway neither consumed nor released.

Listing and closing are two steps; expire.lua looks again, by Redis's clock, and
closes only what is still due. A crash between them leaves the rest for the next run.
"""

from __future__ import annotations

from collections import Counter

from billing_tasks.flows.effects import Ring
from billing_tasks.flows.requests.release import release_event
from billing_tasks.holds.commands import Commands, together
from billing_tasks.holds.outcomes import Expire
from billing_tasks.model import events

#: Holds per round trip; keeps each script burst short for the gateways that share the server.
AT_ONCE = 100


async def expire_shard(shard: int, *, commands: Commands, limit: int = 10_000) -> int:
    """Release up to `limit` holds that are due; returns how many expired. Raises Unavailable."""
    expired = 0
    await _reschedule(shard, commands)
    while expired < limit:
        now_ms = await commands.server_time()
        due = await commands.due(shard, now_ms=now_ms, limit=AT_ONCE)
        if due.strange:
            await commands.not_due(shard, due.strange)
        if not due.request_ids:
            break
        done = await _expire(shard, due.request_ids, commands)
        expired += done[Expire.EXPIRED]
        if not done[Expire.EXPIRED] and not done[Expire.CLOSED]:
            break  # all renewed meanwhile
    return expired


async def _reschedule(shard: int, commands: Commands) -> None:
    """Holds that were made while Redis's clock had run ahead, perhaps by years, are due after a ttl from now."""
    now_ms = await commands.server_time()
    late = await commands.due_too_late(shard, now_ms=now_ms, limit=AT_ONCE)
    await together([commands.reschedule(shard, request_id) for request_id in late.request_ids])
    if late.strange:
        await commands.not_due(shard, late.strange)


async def _expire(shard: int, request_ids: list[str], commands: Commands) -> Counter[Expire]:
    holds = await commands.holds(shard, request_ids)
    calls = []
    for request_id, hold in zip(request_ids, holds, strict=True):
        # Without a hold there is no owner: any will do to have the stale entry of `due` removed.
        user_id, token_id, quota = (hold.user_id, hold.token_id, hold.quota) if hold else (shard, 0, 0)
        key = hold.client_key if hold else ""
        event = release_event(request_id, user_id, token_id, quota, reason="expired", expired=True, client_key=key)
        payload = events.payload(event, for_0_1_0=commands.keys.shared_with_0_1_0)
        calls.append(commands.expire(request_id=request_id, user_id=user_id, token_id=token_id, payload=payload))
    replies = await together(calls)
    for request_id, reply in zip(request_ids, replies, strict=True):
        if reply.ring:
            await Ring(shard, request_id)
    return Counter(reply.outcome for reply in replies)
