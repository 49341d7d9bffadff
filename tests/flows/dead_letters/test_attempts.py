"""Attempts: when a dead letter is tried again, how often, and that the second of two changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest

from billing_tasks import errors
from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.dead_letters import record, resolve, retry
from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.refund import RefundRequest
from tests.conftest import Billing, MakeBilling
from tests.flows.dead_letters.conftest import DeadLetterDriver, charge, refund_of, usage
from tests.worker.tasks import module as tasks
from tests.worker.tasks import task_of

RETRYING, FAILED, RESOLVED, DISCARDED = DeadLetterState


def test_automatic_retries_wait_twice_as_long_each_time_and_then_for_a_person(make_billing: MakeBilling) -> None:
    billing = make_billing(max_attempts=4)
    dead_letters, payer = DeadLetterDriver(billing), billing.payer()
    number = dead_letters.keep(refund_of(payer[0], new_request_id()))
    waits = []
    for _ in range(3):
        dead_letters.now_due()
        assert dead_letters.beat() == [number]
        dead_letter = dead_letters.get(number)
        assert dead_letter.state is RETRYING
        assert dead_letter.next_attempt_at is not None
        waits.append(round((dead_letter.next_attempt_at - datetime.now(UTC)).total_seconds(), -1))
        assert dead_letters.beat() == []  # not before its time
    assert waits == [20, 40, 80]
    dead_letters.now_due()
    dead_letters.beat()
    assert (
        dead_letters.get(number).state,
        dead_letters.get(number).attempts,
        dead_letters.get(number).next_attempt_at,
    ) == (FAILED, 4, None)
    dead_letters.now_due()
    assert dead_letters.beat() == []
    assert dead_letters.history(number) == ["kept", *["attempted", "refused"] * 4]


@pytest.mark.parametrize("how", ["released", "expired"])
def test_a_default_refund_whose_hold_ended_unused_leaves_nothing_to_look_at(
    make_billing: MakeBilling, how: str
) -> None:
    """It came as a message while Redis was away, so whether it was for a hold or a charge could not be known."""
    billing = make_billing(max_attempts=3)
    dead_letters, payer = DeadLetterDriver(billing), billing.payer()
    reservation = billing.reserve(payer, 100)
    wanted = RefundRequest(user_id=payer[0], request_id=reservation.request_id)
    number, of_its_own = dead_letters.keep(wanted.event), dead_letters.keep(refund_of(payer[0], reservation.request_id))
    if how == "released":
        billing.bk.refund_quota(reservation)
    else:
        keys = billing.runtime.commands.keys
        billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, reservation.request_id)
        assert billing.expire() == 1
    billing.settle()
    assert dead_letters.attempt(number) == "ChargeNotFound", "its usage may still be on its way"
    assert dead_letters.attempt(number) == "ChargeNotFound"
    assert dead_letters.attempt(number) == "duplicate"
    assert (dead_letters.get(number).state, dead_letters.get(number).handled_comment) == (
        RESOLVED,
        "its hold was released, and nothing was charged",
    )
    for _ in range(3):
        assert dead_letters.attempt(of_its_own) == "ChargeNotFound"
    assert dead_letters.get(of_its_own).state is FAILED, "a refund_id of its own was meant for a charge"


@pytest.mark.parametrize("reason", sorted(record.FOR_EVER))
def test_what_is_refused_for_ever_waits_for_a_person_at_once(dead_letters: DeadLetterDriver, reason: str) -> None:
    number = dead_letters.keep(usage(dead_letters.billing.payer(), 5), reason)
    assert (dead_letters.get(number).state, dead_letters.get(number).next_attempt_at) == (FAILED, None)
    dead_letters.now_due()
    assert dead_letters.beat() == []


@pytest.mark.parametrize("reason", ["no_charge", "unavailable", "billing_not_booked", "no_partition", "never heard of"])
def test_what_is_not_proven_to_be_for_ever_is_tried_again(dead_letters: DeadLetterDriver, reason: str) -> None:
    number = dead_letters.keep(usage(dead_letters.billing.payer(), 5), reason)
    assert dead_letters.get(number).state is RETRYING
    dead_letters.now_due()
    assert dead_letters.beat() == [number]
    assert dead_letters.get(number).state is RESOLVED


def test_a_reason_that_changes_is_told_and_ends_the_retries(dead_letters: DeadLetterDriver) -> None:
    payer = dead_letters.billing.payer()
    event = usage(payer, 30)
    number = dead_letters.keep(refund_of(payer[0], event.request_id, 40))
    assert dead_letters.attempt(number) == "ChargeNotFound"
    assert (dead_letters.get(number).reason, dead_letters.get(number).state) == ("no_charge", RETRYING)
    dead_letters.billing.runtime.ledger.post_batch(0, [event])
    assert dead_letters.attempt(number) == "RefundAboveCharge"
    dead_letter = dead_letters.get(number)
    assert (dead_letter.reason, dead_letter.state, dead_letter.error) == (
        "above_charge",
        FAILED,
        "The refunds would exceed the charge.",
    )


@contextmanager
def without_partition(billing: Billing) -> Iterator[None]:
    """Nothing of this month can be booked while the block lasts."""
    (name,) = billing.sql("select 'billing.ledger_entries_' || to_char(now() at time zone 'UTC', 'YYYY_MM')")[0]
    billing.sql(f"alter table billing.ledger_entries detach partition {name}")
    try:
        yield
    finally:
        month = "date_trunc('month', now() at time zone 'UTC')"
        ends = [f"({month}) at time zone 'UTC'", f"({month} + interval '1 month') at time zone 'UTC'"]
        low, high = (billing.sql(f"select billing.first_entry_id({end})")[0][0] for end in ends)
        billing.sql(
            f"alter table billing.ledger_entries attach partition {name} for values from ('{low}') to ('{high}')"
        )


def test_a_month_without_partition_is_tried_again_after_it_was_made(dead_letters: DeadLetterDriver) -> None:
    billing, payer = dead_letters.billing, dead_letters.billing.payer()
    with without_partition(billing):
        reservation = billing.reserve(payer, 100)
        billing.use(reservation, 40)
        billing.settle()
        dead_letter = dead_letters.only()
        assert (dead_letter.reason, dead_letter.state) == ("no_partition", RETRYING)
        assert "migrate" in dead_letter.error
        assert dead_letters.attempt(dead_letter.id) == "LedgerRefusedData"
        assert dead_letters.get(dead_letter.id).reason == "no_partition"
    assert dead_letters.attempt(dead_letter.id) == "posted"
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_a_charge_that_was_a_dead_letter_explains_a_balance_below_zero(dead_letters: DeadLetterDriver) -> None:
    """Its quota was not set aside meanwhile and is used again: late usage, and no broken guarantee."""
    billing, payer = dead_letters.billing, dead_letters.billing.payer(100)
    with without_partition(billing):
        billing.use(billing.reserve(payer, 100), 100)
        billing.settle()
    billing.use(billing.reserve(payer, 100), 100)
    billing.settle()
    assert dead_letters.attempt(dead_letters.only().id) == "posted"
    assert billing.accounts.user(payer[0]).quota == -100
    assert billing.verify().findings == []


def test_an_attempt_that_never_comes_back_is_not_made_for_ever(make_billing: MakeBilling) -> None:
    billing = make_billing(max_attempts=2)
    dead_letters = DeadLetterDriver(billing)
    number = dead_letters.keep(usage(billing.payer(), 5))
    for _ in range(2):  # claimed, and the worker that claimed it died
        dead_letters.now_due()
        assert len(billing.runtime.ledger.claim_dead_letters(limit=5, lease_seconds=300)) == 1
    dead_letters.now_due()
    assert dead_letters.beat() == []
    assert dead_letters.get(number).state is FAILED
    (*_, last) = billing.runtime.ledger.dead_letter_history(number)
    assert (last.what, last.reason) == ("refused", "lost")
    assert dead_letters.attempt(number) == "posted"  # a person may


def test_a_bug_that_an_attempt_meets_is_noted_and_does_not_repeat_for_ever(
    make_billing: MakeBilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    billing = make_billing(max_attempts=2)
    dead_letters, payer = DeadLetterDriver(billing), billing.payer()
    monkeypatch.setattr(tasks, "runtime", lambda: billing.runtime)
    number, other = dead_letters.keep(usage(payer, 5)), dead_letters.keep(usage(payer, 7))
    billing.sql(
        "create function billing.broken() returns trigger language plpgsql as"
        " $$ begin if new.quota = 5 then raise exception 'not one of ours'; end if; return new; end $$"
    )
    billing.sql(
        "create trigger broken before insert on billing.ledger_entries for each row execute function billing.broken()"
    )
    try:
        for count in (1, 2):
            with pytest.raises(Exception, match="not one of ours"):
                task_of("consume_one").apply(kwargs={"dead_letter": number, "attempt": count}, throw=True)
        task_of("consume_one").apply(kwargs={"dead_letter": other, "attempt": 1}, throw=True)
    finally:
        billing.sql("drop function billing.broken cascade")
    assert (dead_letters.get(number).state, dead_letters.get(number).reason, dead_letters.get(number).attempts) == (
        FAILED,
        "unexpected",
        2,
    )
    assert dead_letters.get(other).state is RESOLVED
    assert dead_letters.attempt(number) == "posted"


def test_who_and_why_are_kept_with_every_attempt_and_decision(dead_letters: DeadLetterDriver) -> None:
    billing, payer = dead_letters.billing, dead_letters.billing.payer()
    event = usage(payer, 30)
    number = dead_letters.keep(refund_of(payer[0], event.request_id, 10))
    dead_letters.attempt(number, actor="ann", comment="the user called")
    billing.runtime.run(resolve.discard(number, actor="bob", comment="never charged"))
    billing.runtime.run(resolve.reopen(number, actor="ann", comment="it was, see the log"))
    billing.runtime.ledger.post_batch(0, [event])
    dead_letters.attempt(number, actor="ann", comment="charged now")
    told = [(str(e.what), e.actor, e.comment, e.reason) for e in billing.runtime.ledger.dead_letter_history(number)]
    assert told == [
        ("kept", "", "", "no_charge"),
        ("refused", "ann", "the user called", "no_charge"),
        ("discarded", "bob", "never charged", ""),
        ("reopened", "ann", "it was, see the log", ""),
        ("posted", "ann", "charged now", ""),
    ]
    assert (dead_letters.get(number).handled_by, dead_letters.get(number).handled_comment) == ("ann", "charged now")


def test_a_decision_needs_a_comment_and_a_dead_letter_that_it_fits(dead_letters: DeadLetterDriver) -> None:
    run = dead_letters.billing.runtime.run
    number = dead_letters.keep(usage(dead_letters.billing.payer(), 5))
    with pytest.raises(InvalidRequest, match="Say why"):
        run(resolve.discard(number, actor="ann", comment=" "))
    with pytest.raises(InvalidRequest, match="only what was discarded"):
        run(resolve.reopen(number, actor="ann", comment="oops"))
    assert run(resolve.discard(number, actor="ann", comment="test")) is True
    assert run(resolve.discard(number, actor="bob", comment="again")) is False
    assert dead_letters.get(number).handled_by == "ann"
    run(resolve.reopen(number, actor="ann", comment="no test"))
    assert dead_letters.attempt(number) == "posted"
    with pytest.raises(InvalidRequest, match="was booked by test"):
        run(resolve.discard(number, actor="ann", comment="too late"))
    with pytest.raises(InvalidRequest, match="no dead letter 999"):
        run(resolve.reopen(999, actor="ann", comment="?"))


def test_a_discarded_dead_letter_is_not_booked_by_an_attempt_that_was_under_way(dead_letters: DeadLetterDriver) -> None:
    billing, payer = dead_letters.billing, dead_letters.billing.payer()
    number = dead_letters.keep(usage(payer, 30))
    flow = retry.attempt(number, actor="worker", commands=billing.runtime.commands, settings=billing.settings)
    effect = flow.send(billing.runtime.perform(flow.send(None)))  # it has read the dead letter; next it books
    billing.runtime.run(resolve.discard(number, actor="ann", comment="corrected by hand"))
    with pytest.raises(StopIteration) as end:
        while True:
            effect = flow.send(billing.runtime.perform(effect))
    assert end.value.value.outcome == "already discarded"
    assert billing.accounts.user(payer[0]).used_quota == 0
    assert dead_letters.get(number).state is DISCARDED


def test_racing_retries_book_a_dead_letter_once_and_tell_which_of_them_did(dead_letters: DeadLetterDriver) -> None:
    payer = dead_letters.billing.payer()
    for _ in range(10):
        number = dead_letters.keep(usage(payer, 10))
        together = threading.Barrier(6)

        def one(actor: str) -> str:
            together.wait()  # noqa: B023
            return dead_letters.attempt(number, actor=actor)  # noqa: B023

        with ThreadPoolExecutor(6) as pool:
            outcomes = sorted(pool.map(one, ["ann", "bob", "worker", "worker", "beat", "carl"]))
        assert outcomes == ["already resolved"] * 5 + ["posted"]
        assert dead_letters.history(number) == ["kept", "posted"]
    assert dead_letters.billing.accounts.user(payer[0]).used_quota == 100


def test_a_dead_letter_whose_event_was_booked_otherwise_had_been_booked_before(dead_letters: DeadLetterDriver) -> None:
    payer = dead_letters.billing.payer()
    event = usage(payer, 30)
    number = dead_letters.keep(event)
    dead_letters.billing.runtime.ledger.post_batch(0, [event])
    assert dead_letters.attempt(number) == "duplicate"
    dead_letter = dead_letters.get(number)
    assert (dead_letter.state, dead_letter.handled_comment) == (
        RESOLVED,
        "had been booked before, nothing charged again",
    )
    assert dead_letters.history(number) == ["kept", "duplicate"]
    assert dead_letters.attempt(number) == "already resolved"
    assert dead_letters.billing.accounts.user(payer[0]).used_quota == 30


def test_dead_letters_that_fail_again_and_again_leave_each_its_turn(dead_letters: DeadLetterDriver) -> None:
    payer = dead_letters.billing.payer()
    hopeless = [dead_letters.keep(refund_of(payer[0], new_request_id(), refund_id=f"r{n}")) for n in range(20)]
    good = [dead_letters.keep(usage(payer, 5)) for _ in range(10)]
    for _ in range(6):
        dead_letters.now_due()
        assert len(dead_letters.beat(limit=5)) == 5
    assert {dead_letters.get(number).state for number in good} == {RESOLVED}
    assert {dead_letters.get(number).attempts for number in hopeless} == {1}


def test_a_person_does_not_wait_for_a_dead_letters_time_and_conflicts_are_left_out_by_name(
    dead_letters: DeadLetterDriver,
) -> None:
    payer = dead_letters.billing.payer()
    request_id = charge(dead_letters.billing, payer)
    waiting = dead_letters.keep(refund_of(payer[0], request_id, 10))
    conflict = dead_letters.keep(usage(payer, 7, request_id), "conflict")
    flow = retry.send_again(limit=9, due_only=False, settings=dead_letters.billing.settings, actor="ann")
    sent = dead_letters.billing.runtime.run(flow)
    assert (sent.numbers, sent.left_out) == ([waiting], {"conflict": 1})
    assert dead_letters.beat(numbers=[conflict]) == [conflict]
    assert dead_letters.beat(reason="conflict") == [conflict]
    assert dead_letters.get(conflict).state is FAILED


def test_a_dead_letter_under_way_is_passed_by_and_a_person_is_told(dead_letters: DeadLetterDriver) -> None:
    payer = dead_letters.billing.payer()
    busy, free, beyond = (dead_letters.keep(usage(payer, quota)) for quota in (1, 2, 3))
    with psycopg.connect(dead_letters.billing.settings.database_url) as other:
        other.execute("select from billing.dead_letters where id = %s for update", [busy])
        flow = retry.send_again(limit=1, due_only=False, settings=dead_letters.billing.settings, actor="ann")
        sent = dead_letters.billing.runtime.run(flow)
    assert (sent.numbers, sent.not_sent) == ([free], [busy, beyond])


def test_a_refund_that_one_request_has_twice_is_two_tasks(dead_letters: DeadLetterDriver) -> None:
    payer, request_id = dead_letters.billing.payer(), new_request_id()
    numbers = [dead_letters.keep(refund_of(payer[0], request_id, 5, refund_id=f"case-{n}")) for n in (1, 2)]
    ids = {record.slow_lane(kind="refund", request_id=request_id, number=n, attempt=1).task_id for n in numbers}
    assert ids == {f"refund:{request_id}:{n}.1" for n in numbers}


def test_an_attempt_while_postgresql_holds_the_dead_letter_waits_and_is_safe_to_repeat(
    make_billing: MakeBilling,
) -> None:
    billing = make_billing(lock_timeout_seconds=0.2)
    dead_letters, payer = DeadLetterDriver(billing), billing.payer()
    number = dead_letters.keep(usage(payer, 30))
    with psycopg.connect(billing.settings.database_url) as other:
        other.execute("select from billing.dead_letters where id = %s for update", [number])
        assert dead_letters.attempt(number) == errors.Unavailable.__name__
    assert dead_letters.attempt(number) == "posted"
    assert billing.accounts.user(payer[0]).used_quota == 30
