"""Rings: one is enough, and a lost one is healed."""

from __future__ import annotations

from billing_tasks.flows.settlement.ring import ring_stale
from tests.conftest import Billing


def look(billing: Billing) -> list[int]:
    """What beat does every few seconds."""
    return billing.runtime.run(ring_stale(commands=billing.runtime.commands, settings=billing.settings))


def test_an_outbox_that_nobody_was_called_for_is_rung_for(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    keys = billing.runtime.commands.keys
    shard = keys.shard_of(payer[0])
    assert look(billing) == []  # the gateway rang just now
    billing.redis("DEL", keys.doorbell(shard))  # and the ring was lost
    assert look(billing) == [shard]
    assert look(billing) == []


def test_an_outbox_that_a_worker_drains_is_left_alone(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    shard = billing.runtime.commands.keys.shard_of(payer[0])
    billing.redis("DEL", billing.runtime.commands.keys.doorbell(shard))
    billing.runtime.holds.send(billing.runtime.commands.lease(shard, owner="busy", lease_ms=5000))
    assert look(billing) == []
    billing.redis("DEL", billing.runtime.commands.keys.drainer(shard))


def test_what_waits_is_noted_so_that_its_loss_would_be_counted(billing: Billing) -> None:
    payer = billing.payer()
    for _ in range(3):
        billing.use(billing.reserve(payer, 100), 40)
    look(billing)
    (cursor,) = billing.runtime.ledger.outbox_cursors()
    assert (cursor.seen, cursor.posted) == (3, 0)
    billing.redis("FLUSHDB")  # the disk of Redis is lost
    billing.use(billing.reserve(payer, 100), 40)
    billing.settle()
    (incident,) = billing.runtime.ledger.incidents()
    assert (incident.kind, incident.events_bound) == ("new_epoch", 3)
    assert incident.events_at_most == billing.settings.backlog_limit, "and nothing was held"
    assert incident.unseen_from is not None
    assert incident.unseen_to is not None
    assert incident.unseen_from <= incident.unseen_to <= incident.noticed_at
    look(billing)
    (incident,) = billing.runtime.ledger.incidents()
    assert (incident.kind, incident.from_seq, incident.to_seq, incident.events_bound) == ("rewind", 1, 3, 3)
    assert "empty" in incident.note


def test_a_restart_that_lost_nothing_says_so(billing: Billing) -> None:
    payer = billing.payer()
    for _ in range(3):
        billing.use(billing.reserve(payer, 100), 40)
    look(billing)
    _restart(billing)
    look(billing)
    (incident,) = billing.runtime.ledger.incidents()
    assert (incident.kind, incident.events_bound) == ("new_epoch", 0)
    assert billing.settle().posted == 3
    assert look(billing) == []
    assert len(billing.runtime.ledger.incidents()) == 1


def test_a_restart_with_an_older_file_says_how_many_events_it_lacks(billing: Billing) -> None:
    payer = billing.payer()
    for _ in range(3):
        billing.use(billing.reserve(payer, 100), 40)
    names = billing.redis("KEYS", "*")
    file = [(name, billing.redis("DUMP", name), max(0, billing.redis("PTTL", name))) for name in names]
    for _ in range(2):
        billing.use(billing.reserve(payer, 100), 40)
    look(billing)
    billing.redis("FLUSHDB")
    for name, content, ttl_ms in file:
        billing.redis("RESTORE", name, ttl_ms, content)
    _restart(billing)
    assert billing.settle().posted == 3  # what was left of the old epoch
    look(billing)
    (incident,) = billing.runtime.ledger.incidents()
    assert (incident.kind, incident.from_seq, incident.to_seq, incident.events_bound) == ("rewind", 4, 5, 2)


def test_looking_at_what_does_not_change_writes_nothing(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    look(billing)
    before = billing.runtime.ledger.outbox_cursors()
    look(billing)
    assert billing.runtime.ledger.outbox_cursors() == before


def _restart(billing: Billing) -> None:
    """With the data it has: the scripts see another run_id."""
    keys = billing.runtime.commands.keys
    for shard in range(billing.settings.shards):
        if billing.redis("EXISTS", keys.meta(shard)):
            billing.redis("HSET", keys.meta(shard), "run_id", "0" * 40)
    for shard in range(billing.settings.shards):
        billing.runtime.holds.send(billing.runtime.commands.lease(shard, owner="wakes the fence", lease_ms=500))
        billing.redis("DEL", keys.drainer(shard))


def test_calls_that_nobody_answers_become_rare(billing: Billing) -> None:
    """They lie in the broker until a worker comes: 12 shards rang for 338 MB a day."""
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    shard = keys.shard_of(payer[0])
    rung = 0
    for _ in range(8640):  # a day of doorbells that nobody takes
        billing.redis("DEL", keys.doorbell(shard))
        rung += billing.runtime.holds.send(billing.runtime.commands.ring(shard))
    assert rung == 8 + 10
    assert billing.runtime.holds.send(billing.runtime.commands.drainer_wanted(shard)) == (8640, 0)


def test_a_worker_that_comes_calls_for_all_that_waits(billing: Billing) -> None:
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    shard = keys.shard_of(payer[0])
    for _ in range(11):
        billing.redis("DEL", keys.doorbell(shard))
        billing.use(billing.reserve(payer, 10), 10)
    billing.redis("DEL", keys.doorbell(shard))
    assert look(billing) == []
    billing.redis("DEL", keys.doorbell(shard))
    flow = ring_stale(commands=billing.runtime.commands, settings=billing.settings, anew=True)
    assert billing.runtime.run(flow) == [shard]
    billing.settle()
    billing.redis("DEL", keys.doorbell(shard))
    billing.use(billing.reserve(payer, 10), 10)
    assert billing.runtime.holds.send(billing.runtime.commands.drainer_wanted(shard))[0] == 1, "a drainer answered"
    billing.settle()


def test_a_doorbell_without_an_end_is_a_strangers(billing: Billing) -> None:
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    shard = keys.shard_of(payer[0])
    billing.use(billing.reserve(payer, 10), 10)
    billing.redis("SET", keys.doorbell(shard), "x")
    billing.redis("SET", keys.drainer(shard), "x")
    assert look(billing) == [shard]
    assert billing.settle().posted == 1
