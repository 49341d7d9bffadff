"""Each number of an outbox is accounted for once, whatever happens to Redis next; what is not is known until closed."""

from __future__ import annotations

import pytest

from billing_tasks.ledger.outboxes import OutboxLook
from billing_tasks.model.posting import OutboxPart
from tests.conftest import Billing
from tests.flows.settlement.accounting import incidents, look, lose_events, outbox, restart, use


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


def test_a_look_that_is_told_late_finds_no_gap(billing: Billing) -> None:
    ledger, epoch = billing.runtime.ledger, 1_795_738_391_437_846
    ledger.observe_outboxes([OutboxLook(0, epoch, 6, oldest=(epoch, 1))], backlog_limit=24)
    ledger.observe_outboxes([OutboxLook(0, epoch, 0, oldest=())], backlog_limit=24)
    ledger.observe_outboxes([OutboxLook(0, epoch, 3, oldest=(epoch, 1))], backlog_limit=24)
    assert incidents(billing) == []
    ledger.observe_outboxes([OutboxLook(0, epoch, 6, oldest=())], backlog_limit=24)
    assert incidents(billing) == [("gap", 6)]


def test_verify_waits_for_no_request_to_see_that_redis_came_back_older(billing: Billing) -> None:
    """The same numbers with the same run of the server are a cursor ahead of its outbox."""
    payer = billing.payer()
    use(billing, payer, 2)
    billing.settle()
    keys = billing.runtime.commands.keys
    billing.redis("HSET", keys.meta(keys.shard_of(payer[0])), "seq", 1)
    assert [(one.what, one.expected, one.actual) for one in billing.verify().findings] == [("cursor of outbox", 1, 2)]
    restart(billing, payer)
    assert billing.verify().findings == []
    look(billing)
    assert incidents(billing) == [("rewind", 0)]


def test_a_late_look_of_an_epoch_in_between_ends_no_epoch_that_goes_on(billing: Billing) -> None:
    """Redis came back older twice; nothing had been posted of the life in between, and a watcher tells of it last."""
    ledger = billing.runtime.ledger
    first, between, today = (1_795_738_391_000_000 + number for number in range(3))
    of_today = OutboxLook(0, today, 1, before_epoch=first, before_seq=3, oldest=())
    ledger.post_outboxes([], [OutboxPart(0, first, ((1, 3),))])
    ledger.post_outboxes([], [OutboxPart(0, today, ((1, 1),))])
    ledger.observe_outboxes([of_today], backlog_limit=24)
    ledger.observe_outboxes([OutboxLook(0, between, 10, before_epoch=first, before_seq=3, oldest=())], backlog_limit=24)
    assert incidents(billing) == [("new_epoch", 0)]
    ledger.observe_outboxes([of_today], backlog_limit=24)
    assert incidents(billing) == [("new_epoch", 0), ("gap", 10)]


def test_an_epoch_that_is_lower_begins_once_the_higher_one_is_told_no_more(billing: Billing) -> None:
    """A clock had run ahead by some minutes, and Redis was emptied since."""
    ledger, ahead = billing.runtime.ledger, 1_795_738_391_000_000
    ledger.observe_outboxes([OutboxLook(0, ahead, 3, oldest=(ahead, 1))], backlog_limit=24)
    now = OutboxLook(0, ahead - 100, 1, oldest=(ahead - 100, 1))
    ledger.observe_outboxes([now], backlog_limit=24)
    assert incidents(billing) == []
    billing.sql("update billing.outbox_cursors set looked_at = looked_at - interval '2 minutes',"
                " first_seen = first_seen - interval '100 seconds'")  # fmt: skip
    ledger.observe_outboxes([now], backlog_limit=24)
    assert incidents(billing) == [("rewind", 3)]
    ledger.post_outboxes([], [OutboxPart(0, ahead - 100, ((1, 1),))])
