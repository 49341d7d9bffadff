"""Cursors of the outboxes: loss is noticed, written down, and never changes what is booked."""

from __future__ import annotations

import json

import psycopg
import pytest

from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.outboxes import OutboxLook
from billing_tasks.model import events
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


def test_what_lies_between_two_ranges_of_a_batch_is_a_gap(ledger, payer, shard, post, noticed):
    post(1, 2)
    ledger.post_outboxes([payer.consume(1) for _ in range(3)], [OutboxPart(shard, 1, ((3, 3), (6, 7)))])

    assert noticed() == [("gap", 4, 5, 2)]
    assert cursor(ledger, shard) == [(1, 7, 7)]


def test_a_batch_that_was_booked_and_half_removed_is_no_rewind(ledger, payer, shard, post, noticed):
    batch = post(1, 4)
    fresh = [payer.consume(1), payer.consume(1)]
    ledger.post_outboxes([*batch[:2], *fresh], [OutboxPart(shard, 1, ((1, 2), (5, 6)))])

    assert noticed() == []
    assert cursor(ledger, shard) == [(1, 6, 6)]


def test_new_events_in_the_first_of_two_ranges_are_a_rewind(ledger, payer, shard, post, noticed):
    post(1, 4)
    ledger.post_outboxes([payer.consume(1) for _ in range(4)], [OutboxPart(shard, 1, ((1, 2), (5, 6)))])

    assert noticed() == [("rewind", 1, 2, 2)]


def test_several_outboxes_in_one_call_each_get_their_cursor_and_their_usage(ledger, payer, ledger_url, shard):
    other = shard + 10_000
    parts = [{"shard": shard, "epoch": 7, "seqs": [[1, 2]]}, {"shard": other, "epoch": 9, "seqs": [[1, 1], [3, 3]]}]
    batch = [payer.consume(10), payer.consume(20), payer.consume(30)]
    sent = [
        {**json.loads(events.encode(event)), "outbox": outbox, "channel_id": 77}
        for event, outbox in zip([*batch, batch[0]], (0, 0, 1, 1), strict=True)
    ]
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        for outcomes in (["posted", "posted", "posted", "duplicate"], ["duplicate"] * 4):
            row = connection.execute(
                "select outcomes from billing.post_batch_v2(%s, %s)", (json.dumps(parts), json.dumps(sent))
            ).fetchone()
            assert json.loads(row[0]) == outcomes
        used = connection.execute(
            "select shard, used_quota from billing.channel_usage where channel_id = 77 order by shard"
        ).fetchall()
    assert used == [(shard, 30), (other, 30)]
    assert cursor(ledger, shard) == [(7, 2, 2)]
    assert cursor(ledger, other) == [(9, 3, 3)]
    found = [(i.shard, i.kind, i.from_seq, i.to_seq) for i in ledger.incidents() if i.shard in (shard, other)]
    assert found == [(other, "gap", 2, 2)]


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


def test_what_was_posted_goes_never_back(ledger, shard, post):
    """A drainer that was frozen posts the numbers of a batch that another one had left behind."""
    post(1, 2)
    post(5, 2)
    post(3, 2)

    assert cursor(ledger, shard) == [(1, 6, 6)]
