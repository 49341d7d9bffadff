"""Watch: how much waits, and for how long. For `billing-tasks status` and metrics."""

from __future__ import annotations

from billing_tasks.flows.audit.answers import Watched
from billing_tasks.holds.commands import Commands, together


async def watch(*, commands: Commands) -> Watched:
    """Five round trips. Raises Unavailable."""
    shards = range(commands.keys.shards)
    now_ms = await commands.server_time()
    backlogs = await together([commands.backlog(shard) for shard in shards])
    holds = await together([commands.open_holds(shard) for shard in shards])
    oldest = await together([commands.oldest(shard) for shard in shards])
    waits = [now_ms - entry.filed_ms for entry in oldest if entry is not None]
    wanted = await together([commands.drainer_wanted(shard) for shard in shards])
    tries = [at_ms - now_ms for (_, at_ms), backlog in zip(wanted, backlogs, strict=True) if at_ms > now_ms and backlog]
    return Watched(
        sum(backlogs),
        sum(holds),
        max(0, *waits, 0),
        backlogs.index(max(backlogs)),
        unanswered_rings=max(rings for rings, _ in wanted),
        next_try_ms=min(tries, default=None),
    )
