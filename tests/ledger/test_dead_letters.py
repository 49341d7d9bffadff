"""Dead letters: kept once, claimed by one worker at a time, settled by a retry or a person."""

from __future__ import annotations

import pytest

from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.model.ids import new_request_id

RETRYING, FAILED, RESOLVED, DISCARDED = DeadLetterState


@pytest.fixture
def kind():
    """A kind of its own for each test, because the table is shared."""
    return "consume-" + new_request_id()[-8:]


@pytest.fixture
def add(ledger, kind):
    def call(request_id="r-1", **fields):
        values = {"user_id": 7, "payload": b'{"a":1}', "reason": "unknown_user", "error": "There is no user 7."}
        values |= {"fingerprint": "f1", "next_attempt_seconds": -1.0}
        return ledger.add_dead_letter(kind=kind, request_id=request_id, **(values | fields))

    return call


def test_a_dead_letter_is_kept_as_it_came(ledger, add, kind):
    payload = bytes(range(256))

    dead_letter, new = add(payload=payload, state=FAILED, next_attempt_seconds=None)

    assert new
    assert ledger.get_dead_letter(dead_letter.id) == dead_letter
    assert (dead_letter.kind, dead_letter.payload, dead_letter.state, dead_letter.attempts) == (
        kind,
        payload,
        FAILED,
        0,
    )
    assert dead_letter.next_attempt_at is None


def test_the_same_dead_letter_again_only_moves_last_seen(add):
    first, _ = add()

    again, new = add(error="another", state=FAILED, payload=b"x")

    assert not new
    assert again.last_seen > first.last_seen
    assert (again.id, again.error, again.state, again.payload) == (first.id, first.error, RETRYING, first.payload)
    assert again.attempts == 0


def test_another_body_under_the_same_id_is_another_dead_letter(add):
    assert add()[0].id != add(fingerprint="f2")[0].id


def test_without_a_fingerprint_the_payload_decides(add):
    assert add(fingerprint="", payload=b"1")[0].id != add(fingerprint="", payload=b"2")[0].id
    assert add(fingerprint="", payload=b"1")[1] is False


@pytest.mark.parametrize("garbage", ["", "nul \x00", "surrogate \ud800", "x" * 100_000, "\U0001f600" * 5000])
def test_garbage_from_outside_is_kept_and_found(ledger, add, kind, garbage):
    dead_letter, _ = add(request_id=garbage, error=garbage, user_id=2**100)

    assert ledger.dead_letters(kind=kind, request_ids=[garbage]) == [dead_letter]
    assert dead_letter.user_id is None


def test_filters_narrow_the_list_newest_first(ledger, add, kind):
    a, b, c = add("a")[0], add("b", state=FAILED)[0], add("c", user_id=8)[0]

    assert ledger.dead_letters(kind=kind) == [c, b, a]
    assert ledger.dead_letters(kind=kind, states=[FAILED]) == [b]
    assert ledger.dead_letters(kind=kind, user_id=8) == [c]
    assert ledger.dead_letters(kind=kind, limit=1, before_id=c.id) == [b]


def test_dead_letters_are_found_by_number_reason_and_the_time_they_were_kept(ledger, add, kind):
    a, b = add("a")[0], add("b", reason="no_charge")[0]

    assert ledger.dead_letters(kind=kind, numbers=[a.id]) == [a]
    assert ledger.dead_letters(kind=kind, reason="no_charge") == [b]
    assert ledger.dead_letters(kind=kind, since=b.first_seen) == [b]
    assert ledger.dead_letters(kind=kind, before=b.first_seen) == [a]
    assert ledger.dead_letter_numbers(kind=kind) == [a.id, b.id]
    assert ledger.dead_letter_numbers(kind=kind, excluded_reasons=["no_charge"]) == [a.id]
    assert ledger.count_reasons(kind=kind) == {"no_charge": 1, "unknown_user": 1}


def test_a_list_holds_the_beginning_of_each_payload_and_a_look_at_one_holds_it_all(ledger, add, kind):
    dead_letter, _ = add(payload=b"x" * 1_000_000)

    assert len(ledger.dead_letters(kind=kind)[0].payload) == 4096
    assert len(ledger.get_dead_letter(dead_letter.id).payload) == 1_000_000


def test_a_dead_letter_that_comes_again_was_kept_once(ledger, add):
    dead_letter, _ = add()
    add()

    [line] = ledger.dead_letter_history(dead_letter.id)
    assert (line.what, line.reason, line.error, line.actor) == ("kept", "unknown_user", "There is no user 7.", "")


def test_a_claim_notes_who_asked_and_why(ledger, add, kind):
    dead_letter, _ = add()
    ledger.claim_dead_letters(limit=5, lease_seconds=60, kind=kind, actor="ann", comment="the outage is over")

    line = ledger.dead_letter_history(dead_letter.id)[-1]
    assert (line.what, line.actor, line.comment, line.attempt) == ("attempted", "ann", "the outage is over", 1)


def test_a_claim_leaves_out_reasons_it_is_told_to_and_needs_not_wait(ledger, add, kind):
    later = add("later", next_attempt_seconds=600)[0]
    add("hopeless", reason="conflict")

    claimed = ledger.claim_dead_letters(
        limit=5, lease_seconds=60, kind=kind, due_only=False, excluded_reasons=["conflict"]
    )

    assert [dead_letter.id for dead_letter in claimed] == [later.id]


def test_a_mark_leaves_a_dead_letter_alone_that_is_in_another_state(ledger, add):
    dead_letter, _ = add()
    ledger.mark_dead_letter(dead_letter.id, DISCARDED, actor="ann", comment="test")

    assert ledger.mark_dead_letter(dead_letter.id, FAILED, error="late", only_from=[RETRYING, FAILED]) is None
    assert ledger.get_dead_letter(dead_letter.id).state is DISCARDED
    assert [line.what for line in ledger.dead_letter_history(dead_letter.id)] == ["kept", "discarded"]


def test_a_claimed_dead_letter_is_not_claimed_again_until_the_lease_ends(ledger, add, kind):
    add()

    [claimed] = ledger.claim_dead_letters(limit=5, lease_seconds=60, kind=kind)

    assert (claimed.attempts, claimed.state) == (1, RETRYING)
    assert ledger.claim_dead_letters(limit=5, lease_seconds=60, kind=kind) == []


def test_a_lease_that_ended_makes_the_dead_letter_due_again(ledger, add, kind):
    add()
    ledger.claim_dead_letters(limit=5, lease_seconds=-1, kind=kind)

    assert [
        dead_letter.attempts for dead_letter in ledger.claim_dead_letters(limit=5, lease_seconds=60, kind=kind)
    ] == [2]


def test_only_what_is_due_is_claimed_and_at_most_the_limit(ledger, add, kind):
    add("later", next_attempt_seconds=60)
    add("failed", state=FAILED, next_attempt_seconds=None)
    due = [add(str(n))[0].id for n in range(4)]

    assert [dead_letter.id for dead_letter in ledger.claim_dead_letters(limit=3, lease_seconds=60, kind=kind)] == due[
        :3
    ]
    assert [dead_letter.id for dead_letter in ledger.claim_dead_letters(limit=3, lease_seconds=60, kind=kind)] == due[
        3:
    ]


def test_failed_dead_letters_are_claimed_when_asked_for_and_retry_again(ledger, add, kind):
    failed, _ = add(state=FAILED, next_attempt_seconds=None)

    [claimed] = ledger.claim_dead_letters(limit=5, lease_seconds=60, kind=kind, states=[FAILED])

    assert (claimed.id, claimed.state, claimed.attempts) == (failed.id, RETRYING, 1)


def test_a_mark_says_who_and_why_and_ends_the_retries(ledger, add, kind):
    dead_letter, _ = add()

    marked = ledger.mark_dead_letter(dead_letter.id, DISCARDED, actor="ann", comment="test traffic")

    assert (marked.state, marked.handled_by, marked.handled_comment) == (DISCARDED, "ann", "test traffic")
    assert marked.next_attempt_at is None
    assert marked.error == dead_letter.error
    assert ledger.claim_dead_letters(limit=5, lease_seconds=60, kind=kind) == []
    assert ledger.mark_dead_letter(10**15, RESOLVED) is None


def test_dead_letters_are_counted_by_state(ledger, add):
    before = ledger.count_dead_letters()
    add("a")
    add("b", state=FAILED)

    after = ledger.count_dead_letters()

    assert set(after) == set(DeadLetterState)
    assert {state: after[state] - before[state] for state in DeadLetterState} == {
        RETRYING: 1,
        FAILED: 1,
        RESOLVED: 0,
        DISCARDED: 0,
    }
