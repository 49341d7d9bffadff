"""Each number of an outbox is accounted for once, whatever happens to Redis next; what is not is known until closed."""

from __future__ import annotations

import pytest

from billing_tasks.flows.settlement import ring
from billing_tasks.ledger.outboxes import OutboxLook
from billing_tasks.model.posting import OutboxPart
from tests.conftest import Billing, Payer


def look(billing: Billing) -> None:
    billing.runtime.run(ring.ring_stale(commands=billing.runtime.commands, settings=billing.settings))


def outbox(billing: Billing, payer: Payer) -> str:
    keys = billing.runtime.commands.keys
    return keys.outbox(keys.shard_of(payer[0]))


def use(billing: Billing, payer: Payer, times: int) -> None:
    for _ in range(times):
        billing.use(billing.reserve(payer, 10), 10)


def lose_events(billing: Billing, payer: Payer, first: int, last: int) -> None:
    """Events by their place in the outbox, with their weight: what a bug or a stranger may do."""
    entries = billing.redis("XRANGE", outbox(billing, payer), "-", "+")[first - 1 : last]
    for entry_id, _ in entries:
        billing.redis("XDEL", outbox(billing, payer), entry_id)
    keys = billing.runtime.commands.keys
    for account in (billing.user_key(payer[0]), keys.token(keys.shard_of(payer[0]), payer[1])):
        billing.redis("HINCRBY", account, "unposted", -10 * len(entries))


def restart(billing: Billing, payer: Payer) -> None:
    """With all it knows; to the scripts it is another run."""
    keys = billing.runtime.commands.keys
    billing.redis("HSET", keys.meta(keys.shard_of(payer[0])), "run_id", "0" * 40)


def incidents(billing: Billing) -> list[tuple[str, int | None]]:
    found = billing.runtime.ledger.incidents()
    return [(incident.kind, incident.events_bound) for incident in reversed(found)]


def test_an_outbox_that_is_deleted_before_a_restart_is_missed(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    look(billing)
    lose_events(billing, payer, 1, 3)
    billing.redis("DEL", outbox(billing, payer))
    restart(billing, payer)
    use(billing, payer, 1)
    billing.settle()
    look(billing)
    assert incidents(billing) == [("new_epoch", 0), ("gap", 3)]
    assert billing.verify().events_missing == 3


def test_an_outbox_that_is_deleted_under_way_is_missed_by_the_next_look(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    lose_events(billing, payer, 1, 3)
    look(billing)
    assert incidents(billing) == [("gap", 3)]
    use(billing, payer, 2)
    billing.settle()
    look(billing)
    assert incidents(billing) == [("gap", 3)]


@pytest.mark.parametrize(("first", "last"), [(1, 2), (3, 5), (6, 6)])
def test_a_hole_inside_a_batch_is_missed(billing: Billing, first: int, last: int) -> None:
    payer = billing.payer()
    use(billing, payer, 6)
    lose_events(billing, payer, first, last)
    billing.settle()
    look(billing)
    assert incidents(billing) == [("gap", last - first + 1)]
    (incident,) = billing.runtime.ledger.incidents()
    assert incident.lost == ((first, last),)


def test_a_hole_below_a_restart_is_missed(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 6)
    look(billing)
    lose_events(billing, payer, 3, 4)
    restart(billing, payer)
    use(billing, payer, 2)
    look(billing)
    billing.settle()
    look(billing)
    assert incidents(billing) == [("new_epoch", 0), ("gap", 2)]


def test_a_clock_that_ran_ahead_hides_no_later_loss(billing: Billing) -> None:
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    meta = keys.meta(keys.shard_of(payer[0]))
    ahead = 4_000_000_000_000_000  # the year 2096
    billing.redis("HSET", meta, "epoch", ahead, "run_id", "0" * 40)
    use(billing, payer, 3)
    look(billing)
    billing.redis("FLUSHDB")
    use(billing, payer, 1)  # of an epoch with a lower number
    billing.settle()
    look(billing)
    assert incidents(billing) == [("rewind", 3)]
    look(billing)
    use(billing, payer, 2)
    look(billing)
    billing.redis("FLUSHDB")
    use(billing, payer, 1)
    look(billing)
    billing.settle()
    assert incidents(billing) == [("rewind", 3), ("rewind", 2)]


def test_a_meta_that_is_lost_stops_no_shard(billing: Billing) -> None:
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    use(billing, payer, 2)
    ((first, fields), *_) = billing.redis("XRANGE", outbox(billing, payer), "-", "+")
    billing.redis("XADD", outbox(billing, payer), "4000000000000000-1", *fields)  # ids of a stream only grow
    billing.redis("XDEL", outbox(billing, payer), "4000000000000000-1")
    billing.redis("XADD", outbox(billing, payer), "4000000000000001-1", "not", "ours")
    billing.redis("DEL", keys.meta(keys.shard_of(payer[0])))
    use(billing, payer, 2)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 40
    assert first


def test_a_look_that_comes_late_changes_nothing(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 2)
    look(billing)
    shard = billing.runtime.commands.keys.shard_of(payer[0])
    (old,) = billing.runtime.ledger.outbox_cursors()
    restart(billing, payer)
    use(billing, payer, 1)
    look(billing)
    before = incidents(billing)
    late = OutboxLook(shard, old.epoch, 2, oldest=())
    billing.runtime.ledger.observe_outboxes([late], backlog_limit=10)
    assert incidents(billing) == before == [("new_epoch", 0)]
    billing.settle()
    look(billing)
    assert incidents(billing) == before


def test_what_was_read_before_it_was_lost_and_is_booked_after_all_is_not_missing(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    keys = billing.runtime.commands.keys
    shard = keys.shard_of(payer[0])
    read = billing.runtime.holds.send(billing.runtime.commands.read_outbox(shard, count=10))
    lose_events(billing, payer, 1, 3)
    look(billing)
    assert incidents(billing) == [("gap", 3)]
    part = OutboxPart(shard, read[0].epoch, ((1, 2),))
    billing.runtime.ledger.post_outboxes([entry.read() for entry in read[:2]], [part])
    look(billing)
    assert incidents(billing) == [("gap", 1)]


def test_what_is_missing_is_known_until_a_person_closes_the_incident(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    lose_events(billing, payer, 2, 2)
    billing.settle()
    look(billing)
    report = billing.verify()
    assert (report.ok, report.incidents, report.events_missing) == (True, 1, 1)
    (incident,) = billing.runtime.ledger.incidents()
    ledger = billing.runtime.ledger
    assert ledger.close_incidents([incident.id], closed_by="ann", comment="booked by hand") == [incident.id]
    assert ledger.close_incidents([incident.id], closed_by="bob", comment="me too") == []
    report = billing.verify()
    assert (report.ok, report.incidents, report.events_missing) == (True, 0, 0)
    (closed,) = ledger.incidents()
    assert (closed.closed_by, closed.comment) == ("ann", "booked by hand")
    look(billing)
    assert len(ledger.incidents()) == 1


def test_verify_names_what_no_incident_knows_yet(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    lose_events(billing, payer, 2, 3)
    (finding,) = billing.verify().findings
    assert (finding.guarantee, finding.what, finding.expected, finding.actual) == (2, "events of outbox", 3, 1)
    look(billing)
    billing.settle()
    look(billing)
