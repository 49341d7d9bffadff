"""Rings: one is enough, and a lost one is healed."""

from __future__ import annotations

from billing_tasks.flows.ring import ring_stale
from tests.conftest import Billing


def test_an_outbox_that_nobody_was_called_for_is_rung_for(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    keys, shard = billing.runtime.commands.keys, payer[0] % billing.settings.shards
    flow = lambda: billing.runtime.run(ring_stale(commands=billing.runtime.commands))  # noqa: E731
    assert flow() == []  # somebody rang just now
    billing.redis("DEL", keys.doorbell(shard))  # and the ring was lost
    assert flow() == [shard]
    assert flow() == []


def test_an_outbox_somebody_drains_is_left_alone(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    shard = payer[0] % billing.settings.shards
    billing.redis("DEL", billing.runtime.commands.keys.doorbell(shard))
    billing.runtime.holds.send(billing.runtime.commands.lease(shard, owner="busy", lease_ms=5000))
    assert billing.runtime.run(ring_stale(commands=billing.runtime.commands)) == []
    billing.redis("DEL", billing.runtime.commands.keys.drainer(shard))


def test_what_waits_is_noted_so_that_its_loss_would_be_counted(billing: Billing) -> None:
    payer = billing.payer()
    for _ in range(3):
        billing.use(billing.reserve(payer, 100), 40)
    billing.runtime.run(ring_stale(commands=billing.runtime.commands))
    (cursor,) = billing.runtime.ledger.outbox_cursors()
    assert (cursor.seen, cursor.posted) == (3, 0)
    billing.redis("FLUSHDB")  # the disk of Redis is lost
    billing.use(billing.reserve(payer, 100), 40)
    billing.settle()
    (incident,) = billing.runtime.ledger.incidents()
    assert (incident.kind, incident.events_bound) == ("new_epoch", 3)
