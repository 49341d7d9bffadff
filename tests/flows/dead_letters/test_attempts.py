"""Attempts: when a dead letter is tried again, how often, and that whoever comes second changes nothing."""

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
from billing_tasks.worker import tasks
from tests.conftest import Billing, MakeBilling
from tests.flows.dead_letters.conftest import Letters, charge, refund_of, usage

RETRYING, FAILED, RESOLVED, DISCARDED = DeadLetterState


def test_automatic_retries_wait_twice_as_long_each_time_and_then_for_a_person(make_billing: MakeBilling) -> None:
    billing = make_billing(max_attempts=4)
    mail, payer = Letters(billing), billing.payer()
    number = mail.keep(refund_of(payer[0], new_request_id()))
    waits = []
    for _ in range(3):
        mail.now_due()
        assert mail.beat() == [number]
        dead_letter = mail.get(number)
        assert dead_letter.state is RETRYING
        assert dead_letter.next_attempt_at is not None
        waits.append(round((dead_letter.next_attempt_at - datetime.now(UTC)).total_seconds(), -1))
        assert mail.beat() == []  # not before its time
    assert waits == [20, 40, 80]
    mail.now_due()
    mail.beat()
    assert (mail.get(number).state, mail.get(number).attempts, mail.get(number).next_attempt_at) == (FAILED, 4, None)
    mail.now_due()
    assert mail.beat() == []
    assert mail.history(number) == ["kept", *["attempted", "refused"] * 4]


@pytest.mark.parametrize("how", ["released", "expired"])
def test_a_default_refund_whose_hold_ended_unused_leaves_nobody_to_look_at_it(
    make_billing: MakeBilling, how: str
) -> None:
    """It came as a message while Redis was away, so whether it was for a hold or a charge nobody could know."""
    billing = make_billing(max_attempts=3)
    mail, payer = Letters(billing), billing.payer()
    reservation = billing.reserve(payer, 100)
    wanted = RefundRequest(user_id=payer[0], request_id=reservation.request_id)
    number, of_its_own = mail.keep(wanted.event), mail.keep(refund_of(payer[0], reservation.request_id))
    if how == "released":
        billing.bk.refund_quota(reservation)
    else:
        keys = billing.runtime.commands.keys
        billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, reservation.request_id)
        assert billing.expire() == 1
    billing.settle()
    assert mail.attempt(number) == "ChargeNotFound", "its usage may still be on its way"
    assert mail.attempt(number) == "ChargeNotFound"
    assert mail.attempt(number) == "duplicate"
    assert (mail.get(number).state, mail.get(number).handled_comment) == (
        RESOLVED,
        "its hold was given back, and nothing was charged",
    )
    for _ in range(3):
        assert mail.attempt(of_its_own) == "ChargeNotFound"
    assert mail.get(of_its_own).state is FAILED, "a refund_id of its own was meant for a charge"


@pytest.mark.parametrize("reason", sorted(record.FOR_EVER))
def test_what_is_refused_for_ever_waits_for_a_person_at_once(mail: Letters, reason: str) -> None:
    number = mail.keep(usage(mail.billing.payer(), 5), reason)
    assert (mail.get(number).state, mail.get(number).next_attempt_at) == (FAILED, None)
    mail.now_due()
    assert mail.beat() == []


@pytest.mark.parametrize("reason", ["no_charge", "unavailable", "billing_not_booked", "no_partition", "never heard of"])
def test_what_is_not_proven_to_be_for_ever_is_tried_again(mail: Letters, reason: str) -> None:
    number = mail.keep(usage(mail.billing.payer(), 5), reason)
    assert mail.get(number).state is RETRYING
    mail.now_due()
    assert mail.beat() == [number]
    assert mail.get(number).state is RESOLVED


def test_a_reason_that_changes_is_told_and_ends_the_retries(mail: Letters) -> None:
    payer = mail.billing.payer()
    event = usage(payer, 30)
    number = mail.keep(refund_of(payer[0], event.request_id, 40))
    assert mail.attempt(number) == "ChargeNotFound"
    assert (mail.get(number).reason, mail.get(number).state) == ("no_charge", RETRYING)
    mail.billing.runtime.ledger.post_batch(0, [event])
    assert mail.attempt(number) == "RefundAboveCharge"
    dead_letter = mail.get(number)
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


def test_a_month_without_partition_is_tried_again_after_it_was_made(mail: Letters) -> None:
    billing, payer = mail.billing, mail.billing.payer()
    with without_partition(billing):
        reservation = billing.reserve(payer, 100)
        billing.use(reservation, 40)
        billing.settle()
        dead_letter = mail.only()
        assert (dead_letter.reason, dead_letter.state) == ("no_partition", RETRYING)
        assert "migrate" in dead_letter.error
        assert mail.attempt(dead_letter.id) == "LedgerRefusedData"
        assert mail.get(dead_letter.id).reason == "no_partition"
    assert mail.attempt(dead_letter.id) == "posted"
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_a_charge_that_was_a_dead_letter_explains_a_balance_below_zero(mail: Letters) -> None:
    """Its quota was not set aside meanwhile and is used again: late usage, and no broken guarantee."""
    billing, payer = mail.billing, mail.billing.payer(100)
    with without_partition(billing):
        billing.use(billing.reserve(payer, 100), 100)
        billing.settle()
    billing.use(billing.reserve(payer, 100), 100)
    billing.settle()
    assert mail.attempt(mail.only().id) == "posted"
    assert billing.accounts.user(payer[0]).quota == -100
    assert billing.verify().findings == []


def test_an_attempt_that_never_comes_back_is_not_made_for_ever(make_billing: MakeBilling) -> None:
    billing = make_billing(max_attempts=2)
    mail = Letters(billing)
    number = mail.keep(usage(billing.payer(), 5))
    for _ in range(2):  # claimed, and whoever claimed it died
        mail.now_due()
        assert len(billing.runtime.ledger.claim_dead_letters(limit=5, lease_seconds=300)) == 1
    mail.now_due()
    assert mail.beat() == []
    assert mail.get(number).state is FAILED
    (*_, last) = billing.runtime.ledger.dead_letter_history(number)
    assert (last.what, last.reason) == ("refused", "lost")
    assert mail.attempt(number) == "posted"  # a person may


def test_a_bug_that_an_attempt_meets_is_noted_and_does_not_repeat_for_ever(
    make_billing: MakeBilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    billing = make_billing(max_attempts=2)
    mail, payer = Letters(billing), billing.payer()
    monkeypatch.setattr(tasks, "runtime", lambda: billing.runtime)
    number, other = mail.keep(usage(payer, 5)), mail.keep(usage(payer, 7))
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
                tasks.consume_one.apply(kwargs={"dead_letter": number, "attempt": count}, throw=True)
        tasks.consume_one.apply(kwargs={"dead_letter": other, "attempt": 1}, throw=True)
    finally:
        billing.sql("drop function billing.broken cascade")
    assert (mail.get(number).state, mail.get(number).reason, mail.get(number).attempts) == (FAILED, "unexpected", 2)
    assert mail.get(other).state is RESOLVED
    assert mail.attempt(number) == "posted"


def test_who_and_why_are_kept_with_every_attempt_and_decision(mail: Letters) -> None:
    billing, payer = mail.billing, mail.billing.payer()
    event = usage(payer, 30)
    number = mail.keep(refund_of(payer[0], event.request_id, 10))
    mail.attempt(number, actor="ann", comment="the user called")
    billing.runtime.run(resolve.discard(number, actor="bob", comment="never charged"))
    billing.runtime.run(resolve.reopen(number, actor="ann", comment="it was, see the log"))
    billing.runtime.ledger.post_batch(0, [event])
    mail.attempt(number, actor="ann", comment="charged now")
    told = [(str(e.what), e.actor, e.comment, e.reason) for e in billing.runtime.ledger.dead_letter_history(number)]
    assert told == [
        ("kept", "", "", "no_charge"),
        ("refused", "ann", "the user called", "no_charge"),
        ("discarded", "bob", "never charged", ""),
        ("reopened", "ann", "it was, see the log", ""),
        ("posted", "ann", "charged now", ""),
    ]
    assert (mail.get(number).handled_by, mail.get(number).handled_comment) == ("ann", "charged now")


def test_a_decision_needs_a_why_and_a_letter_that_it_fits(mail: Letters) -> None:
    run = mail.billing.runtime.run
    number = mail.keep(usage(mail.billing.payer(), 5))
    with pytest.raises(InvalidRequest, match="Say why"):
        run(resolve.discard(number, actor="ann", comment=" "))
    with pytest.raises(InvalidRequest, match="only what was discarded"):
        run(resolve.reopen(number, actor="ann", comment="oops"))
    assert run(resolve.discard(number, actor="ann", comment="test")) is True
    assert run(resolve.discard(number, actor="bob", comment="again")) is False
    assert mail.get(number).handled_by == "ann"
    run(resolve.reopen(number, actor="ann", comment="no test"))
    assert mail.attempt(number) == "posted"
    with pytest.raises(InvalidRequest, match="was booked by test"):
        run(resolve.discard(number, actor="ann", comment="too late"))
    with pytest.raises(InvalidRequest, match="no dead letter 999"):
        run(resolve.reopen(999, actor="ann", comment="?"))


def test_a_discarded_letter_is_not_booked_by_an_attempt_that_was_under_way(mail: Letters) -> None:
    billing, payer = mail.billing, mail.billing.payer()
    number = mail.keep(usage(payer, 30))
    flow = retry.attempt(number, actor="worker", commands=billing.runtime.commands, settings=billing.settings)
    effect = flow.send(billing.runtime.perform(flow.send(None)))  # it has read the dead letter; next it books
    billing.runtime.run(resolve.discard(number, actor="ann", comment="corrected by hand"))
    with pytest.raises(StopIteration) as end:
        while True:
            effect = flow.send(billing.runtime.perform(effect))
    assert end.value.value.outcome == "already discarded"
    assert billing.accounts.user(payer[0]).used_quota == 0
    assert mail.get(number).state is DISCARDED


def test_racing_retries_book_a_letter_once_and_tell_which_of_them_did(mail: Letters) -> None:
    payer = mail.billing.payer()
    for _ in range(10):
        number = mail.keep(usage(payer, 10))
        together = threading.Barrier(6)

        def one(actor: str) -> str:
            together.wait()  # noqa: B023
            return mail.attempt(number, actor=actor)  # noqa: B023

        with ThreadPoolExecutor(6) as pool:
            outcomes = sorted(pool.map(one, ["ann", "bob", "worker", "worker", "beat", "carl"]))
        assert outcomes == ["already resolved"] * 5 + ["posted"]
        assert mail.history(number) == ["kept", "posted"]
    assert mail.billing.accounts.user(payer[0]).used_quota == 100


def test_a_letter_whose_event_was_booked_otherwise_had_been_booked_before(mail: Letters) -> None:
    payer = mail.billing.payer()
    event = usage(payer, 30)
    number = mail.keep(event)
    mail.billing.runtime.ledger.post_batch(0, [event])
    assert mail.attempt(number) == "duplicate"
    dead_letter = mail.get(number)
    assert (dead_letter.state, dead_letter.handled_comment) == (
        RESOLVED,
        "had been booked before, nothing charged again",
    )
    assert mail.history(number) == ["kept", "duplicate"]
    assert mail.attempt(number) == "already resolved"
    assert mail.billing.accounts.user(payer[0]).used_quota == 30


def test_letters_that_fail_again_and_again_leave_every_letter_its_turn(mail: Letters) -> None:
    payer = mail.billing.payer()
    hopeless = [mail.keep(refund_of(payer[0], new_request_id(), refund_id=f"r{n}")) for n in range(20)]
    good = [mail.keep(usage(payer, 5)) for _ in range(10)]
    for _ in range(6):
        mail.now_due()
        assert len(mail.beat(limit=5)) == 5
    assert {mail.get(number).state for number in good} == {RESOLVED}
    assert {mail.get(number).attempts for number in hopeless} == {1}


def test_a_person_does_not_wait_for_a_letters_time_and_conflicts_are_left_out_by_name(mail: Letters) -> None:
    payer = mail.billing.payer()
    request_id = charge(mail.billing, payer)
    waiting = mail.keep(refund_of(payer[0], request_id, 10))
    conflict = mail.keep(usage(payer, 7, request_id), "conflict")
    flow = retry.send_again(limit=9, due_only=False, settings=mail.billing.settings, actor="ann")
    sent = mail.billing.runtime.run(flow)
    assert (sent.numbers, sent.left_out) == ([waiting], {"conflict": 1})
    assert mail.beat(numbers=[conflict]) == [conflict]
    assert mail.beat(reason="conflict") == [conflict]
    assert mail.get(conflict).state is FAILED


def test_a_letter_that_somebody_attempts_right_now_is_passed_by_and_a_person_is_told(mail: Letters) -> None:
    payer = mail.billing.payer()
    busy, free, beyond = (mail.keep(usage(payer, quota)) for quota in (1, 2, 3))
    with psycopg.connect(mail.billing.settings.database_url) as other:
        other.execute("select from billing.dead_letters where id = %s for update", [busy])
        flow = retry.send_again(limit=1, due_only=False, settings=mail.billing.settings, actor="ann")
        sent = mail.billing.runtime.run(flow)
    assert (sent.numbers, sent.not_sent) == ([free], [busy, beyond])


def test_a_refund_that_one_request_has_twice_is_two_tasks(mail: Letters) -> None:
    payer, request_id = mail.billing.payer(), new_request_id()
    numbers = [mail.keep(refund_of(payer[0], request_id, 5, refund_id=f"case-{n}")) for n in (1, 2)]
    ids = {record.slow_lane(kind="refund", request_id=request_id, number=n, attempt=1).task_id for n in numbers}
    assert ids == {f"refund:{request_id}:{n}.1" for n in numbers}


def test_an_attempt_while_postgresql_holds_the_letter_waits_and_is_safe_to_repeat(make_billing: MakeBilling) -> None:
    billing = make_billing(lock_timeout_seconds=0.2)
    mail, payer = Letters(billing), billing.payer()
    number = mail.keep(usage(payer, 30))
    with psycopg.connect(billing.settings.database_url) as other:
        other.execute("select from billing.dead_letters where id = %s for update", [number])
        assert mail.attempt(number) == errors.Unavailable.__name__
    assert mail.attempt(number) == "posted"
    assert billing.accounts.user(payer[0]).used_quota == 30
