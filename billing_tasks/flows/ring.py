"""Ring: call a drainer for every outbox that has events and nobody on the way. Heals lost rings."""

from __future__ import annotations

from contextlib import suppress

from billing_tasks.errors import Unavailable
from billing_tasks.flows.effects import Flow, InLedger, Ring, ask, ask_all
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.store import Ledger


def ring_stale(*, commands: Commands) -> Flow[list[int]]:
    """The shards that were rung for. Raises Unavailable."""
    shards = range(commands.keys.shards)
    backlogs = yield from ask_all([commands.backlog(shard) for shard in shards])
    waiting = [shard for shard, backlog in zip(shards, backlogs, strict=True) if backlog]
    unattended = yield from ask_all([commands.ring(shard) for shard in waiting])
    rung = [shard for shard, free in zip(waiting, unattended, strict=True) if free]
    for shard in rung:
        yield Ring(shard, "")
    yield from _note_seen(waiting, commands)
    return rung


def _note_seen(waiting: list[int], commands: Commands) -> Flow[None]:
    """Tell the ledger how far these outboxes have come: if Redis is lost now, the incident says how many events."""
    metas = yield from ask_all([commands.meta(shard) for shard in waiting])

    def observe(ledger: Ledger) -> None:
        for shard, (epoch, seq) in zip(waiting, metas, strict=True):
            ledger.observe_outbox(shard, epoch, seq)

    with suppress(Unavailable):  # ringing matters more, and comes first
        yield from ask(InLedger(observe))
