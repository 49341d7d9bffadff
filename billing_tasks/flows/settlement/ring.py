"""Ring: call a drainer for every outbox that has events and no drainer on its way. Heals lost rings."""

from __future__ import annotations

from contextlib import suppress

from billing_tasks.errors import Unavailable
from billing_tasks.flows.effects import InLedger, Ring
from billing_tasks.holds.commands import Commands, together
from billing_tasks.holds.replies import EpochState, OutboxEntry
from billing_tasks.ledger.outboxes import OutboxLook
from billing_tasks.ledger.store import Ledger
from billing_tasks.settings import Settings


async def ring_stale(*, commands: Commands, settings: Settings, anew: bool = False) -> list[int]:
    """The shards that were rung for. Raises Unavailable.

    `anew`: a worker has just come, and the calls of before are perhaps lost with a broker.
    """
    shards = range(commands.keys.shards)
    backlogs = await together([commands.backlog(shard) for shard in shards])
    waiting = [shard for shard, backlog in zip(shards, backlogs, strict=True) if backlog]
    unattended = await together([commands.ring(shard, anew=anew) for shard in waiting])
    rung = [shard for shard, free in zip(waiting, unattended, strict=True) if free]
    for shard in rung:
        await Ring(shard, "")
    with suppress(Unavailable):  # ringing matters more, and comes first
        await _note_seen(commands, settings)
    return rung


async def _note_seen(commands: Commands, settings: Settings) -> None:
    """Tell the ledger how far the outboxes have come: if Redis is lost now, the incident says how many events."""
    shards = range(commands.keys.shards)
    epochs = await together([commands.epoch(shard) for shard in shards])
    holds = await together([commands.open_holds(shard) for shard in shards])
    # After the numbers: an event that is numbered by now and not in the outbox was booked, or is gone.
    oldest = await together([commands.oldest(shard) for shard in shards])
    looks = [
        OutboxLook(
            *(shard, state.epoch, state.seq, state.before_epoch, state.before_seq, open_holds),
            oldest=_place(entry, state),
        )
        for shard, state, open_holds, entry in zip(shards, epochs, holds, oldest, strict=True)
        if state.epoch
    ]
    if looks:
        limit = settings.backlog_limit
        await InLedger(Ledger.observe_outboxes, looks, backlog_limit=limit)


def _place(oldest: OutboxEntry | None, state: EpochState) -> tuple[int, int] | tuple[()] | None:
    """Where the outbox begins; None if that can't be told, because another program numbered its first entry, or it was
    filed after the other look."""
    if oldest is None:
        return ()
    place = oldest.epoch, oldest.seq
    return place if oldest.numbered and place <= (state.epoch, state.seq) else None
