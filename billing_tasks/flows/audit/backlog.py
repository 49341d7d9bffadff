"""Watch: how much waits, and for how long. For `billing-tasks status` and metrics."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from billing_tasks.flows.audit.answers import Behind, Watched
from billing_tasks.holds.commands import Commands, together
from billing_tasks.holds.replies import OutboxEntry

#: So many of the oldest events of each shard say whose a backlog is: enough to see who fills it, a few MB at most.
OLDEST: Final = 1_000


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


async def behind(*, commands: Commands, most: int) -> list[Behind]:
    """Users with most events among the OLDEST of each shard, at most so many. Two round trips. Raises Unavailable."""
    now_ms = await commands.server_time()
    reads = [commands.read_outbox(shard, count=OLDEST) for shard in range(commands.keys.shards)]
    of_user: defaultdict[int, list[OutboxEntry]] = defaultdict(list)
    for entries in await together(reads):
        for entry in entries:
            if entry.user_id:  # what is no event of ours has no user
                of_user[entry.user_id].append(entry)
    found = [
        Behind(user_id, len(own), sum(entry.weight for entry in own), max(0, now_ms - min(e.filed_ms for e in own)))
        for user_id, own in of_user.items()
    ]
    return sorted(found, key=lambda one: (-one.events, one.user_id))[:most]
