"""Cursors of the outboxes: loss is noticed, written down, and never changes what is booked."""

from __future__ import annotations

import pytest

from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.outboxes import OutboxLook
from billing_tasks.model.posting import OutboxPart, PostOutcome


@pytest.fixture
def post(ledger, payer, shard):
    """Post `count` new events as the stretch of the outbox that begins at first_seq."""

    def call(first_seq, count=1, *, epoch=1):
        batch = [payer.consume(1) for _ in range(count)]
        answer = ledger.post_outboxes(batch, [OutboxPart(shard, epoch, ((first_seq, first_seq + count - 1),))])
        assert set(answer.outcomes) == {PostOutcome.POSTED}
        return batch

    return call


@pytest.fixture
def noticed(ledger, shard):
    """The incidents of this test, oldest first: kind, from, to, bound."""
    return lambda: [(i.kind, i.from_seq, i.to_seq, i.events_bound) for i in reversed(ledger.incidents(shard=shard))]


@pytest.fixture
def look(ledger, shard):
    """What a watcher sees of the outbox."""

    def call(epoch, seq, before_epoch=0, before_seq=0, open_holds=0):
        seen = OutboxLook(shard, epoch, seq, before_epoch, before_seq, open_holds)
        ledger.observe_outboxes([seen], backlog_limit=1000)

    return call


def cursor(ledger, shard):
    return [(c.epoch, c.seen, c.posted) for c in ledger.outbox_cursors(shard)]


def test_posting_in_order_moves_the_cursor_and_is_no_incident(ledger, shard, post, noticed):
    post(1, 5)
    post(6, 2)

    assert cursor(ledger, shard) == [(1, 7, 7)]
    assert noticed() == []


def test_events_that_come_from_no_outbox_move_no_cursor(ledger, payer, shard):
    ledger.post_batch(shard, [payer.consume(1)])

    assert cursor(ledger, shard) == []


def test_a_gap_is_recorded_with_its_bounds_and_the_events_after_it_post(ledger, shard, post, noticed):
    post(1, 5)
    post(9, 2)

    assert noticed() == [("gap", 6, 8, 3)]
    assert cursor(ledger, shard) == [(1, 10, 10)]


def test_a_stretch_posted_again_is_neither_gap_nor_rewind(ledger, shard, post, noticed):
    batch = post(1, 3)
    post(4, 1)

    ledger.post_outboxes(batch, [OutboxPart(shard, 1, ((1, 3),))])
    ledger.post_outboxes([*batch], [OutboxPart(shard, 1, ((2, 4),))])

    assert noticed() == []
    assert cursor(ledger, shard) == [(1, 4, 4)]


def test_new_events_at_old_numbers_are_booked_and_recorded_as_a_rewind(ledger, shard, post, noticed):
    post(1, 10)
    post(4, 2)

    assert noticed() == [("rewind", 4, 5, 2)]
    assert cursor(ledger, shard) == [(1, 10, 10)]


def test_an_event_set_aside_is_covered_by_an_empty_batch(ledger, shard, post, noticed):
    post(1, 5)
    ledger.post_outboxes([], [OutboxPart(shard, 1, ((6, 6),))])
    post(7, 1)

    assert noticed() == []
    assert cursor(ledger, shard) == [(1, 7, 7)]


def test_a_new_epoch_says_how_many_events_of_the_last_one_may_be_lost(ledger, shard, post, look, noticed):
    post(1, 5)
    look(1, 12)
    post(1, 2, epoch=100)

    assert noticed() == [("new_epoch", 6, 12, 7)]
    assert cursor(ledger, shard) == [(1, 12, 5), (100, 2, 2)]


def test_a_new_epoch_is_noticed_once_and_by_looking_alone(ledger, shard, post, look, noticed):
    post(1, 5)
    look(100, 0, before_epoch=1, before_seq=5)
    look(100, 0, before_epoch=1, before_seq=5)
    post(1, 2, epoch=100)

    assert noticed() == [("new_epoch", 6, 5, 0)]


def test_leftovers_of_an_older_epoch_are_posted_without_a_new_epoch_incident(ledger, shard, post, noticed):
    post(1, 1, epoch=100)
    post(1, 1, epoch=50)

    assert noticed() == []


def test_looking_never_moves_a_cursor_back(ledger, shard, post, look):
    post(1, 5)
    look(1, 2)

    assert cursor(ledger, shard) == [(1, 5, 5)]


def test_a_batch_that_fails_leaves_the_cursor_where_it_was(ledger, payer, shard, post):
    post(1, 5)
    bad = payer.consume(1, model_name="\x00")

    with pytest.raises(LedgerRefusedData):
        ledger.post_outboxes([bad], [OutboxPart(shard, 1, ((6, 6),))])

    assert cursor(ledger, shard) == [(1, 5, 5)]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param((1, 12), ("new_epoch", 13, 12, 0), id="all of it"),
        pytest.param((1, 20), ("new_epoch", 21, 12, 0), id="more than was ever seen"),
        pytest.param((1, 9), ("rewind", 10, 12, 3), id="an older file"),
        pytest.param((1, 3), ("rewind", 4, 12, 7), id="older than what was posted"),
        pytest.param((0, 0), ("rewind", 1, 12, 7), id="nothing"),
        pytest.param((50, 4), ("new_epoch", 13, 12, 0), id="an epoch in between that no look saw"),
    ],
)
def test_an_incident_says_how_much_of_the_old_outbox_came_back(look, post, noticed, ledger, shard, before, expected):
    post(1, 5)
    look(1, 12, open_holds=7)
    post(1, 2, epoch=100)  # booked before the first look: all that was seen counts as missing
    assert noticed() == [("new_epoch", 6, 12, 7)]
    look(100, 2, *before)
    look(100, 2, *before)
    assert noticed() == [expected]
    (incident,) = ledger.incidents(shard=shard)
    assert incident.events_at_most == 1007, "the limit of the backlog and the holds that were open"
