"""Ring: call a drainer for every outbox that has events and nobody on the way. Heals lost rings."""

from __future__ import annotations

from billing_tasks.flows.effects import Flow, Ring, ask_all
from billing_tasks.holds.commands import Commands


def ring_stale(*, commands: Commands) -> Flow[list[int]]:
    """The shards that were rung for. Raises Unavailable."""
    shards = range(commands.keys.shards)
    backlogs = yield from ask_all([commands.backlog(shard) for shard in shards])
    waiting = [shard for shard, backlog in zip(shards, backlogs, strict=True) if backlog]
    unattended = yield from ask_all([commands.ring(shard) for shard in waiting])
    rung = [shard for shard, free in zip(waiting, unattended, strict=True) if free]
    for shard in rung:
        yield Ring(shard, "")
    return rung
