"""Refunds are as safe as charges: repeated, reordered, racing, too large, or under an id that came before."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from celery.exceptions import Retry

from billing_tasks import ConsumeLog, errors
from billing_tasks.flows.requests import refund
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.refund import RefundRequest
from tests.conftest import CHANNEL, Billing
from tests.flows.dead_letters.conftest import DeadLetterDriver, charge, refund_of
from tests.worker.tasks import module as tasks
from tests.worker.tasks import task_of

Refund = Callable[..., None]


def by_outbox(billing: Billing, wanted: RefundRequest) -> None:
    """As `Bookkeeper.refund_charge` files it."""
    billing.runtime.run(refund.refund_charge(wanted, commands=billing.runtime.commands))


def by_task(billing: Billing, wanted: RefundRequest) -> None:
    """As another program sends it: the task billing.refund, its patience at an end. What it can not book it keeps."""
    with suppress(errors.Refused, Retry):
        task_of("refund_one").apply(kwargs=wanted.kwargs, throw=True, retries=tasks.PATIENT_RETRIES)


BOTH_PATHS = pytest.mark.parametrize("send", [by_outbox, by_task])


@pytest.fixture(autouse=True)
def _tasks_use_the_tests_servers(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "runtime", lambda: billing.runtime)


def refunded(billing: Billing, request_id: str) -> list[int]:
    """What was refunded of a request, refund by refund."""
    return [entry.quota for entry in billing.runtime.ledger.entries_of(request_id) if entry.kind == "refund"]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Their answers, or what they raised."""
    together = threading.Barrier(len(calls))

    def one(call: Callable[[], Any]) -> Any:
        together.wait()
        try:
            return call()
        except errors.BillingError as exc:
            return exc

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def test_a_refunded_hold_is_released_whole_and_charges_nothing(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 300)
    for _ in range(3):
        by_task(billing, RefundRequest(user_id=payer[0], request_id=reservation.request_id))
    billing.settle()
    assert billing.available(payer[0]) == 1000
    assert [entry.kind for entry in billing.runtime.ledger.entries_of(reservation.request_id)] == ["release"]


@BOTH_PATHS
def test_a_charge_is_refunded_in_parts_up_to_the_charge_and_never_beyond(
    billing: Billing, dead_letters: DeadLetterDriver, send: Refund
) -> None:
    payer = billing.payer(1000)
    request_id = charge(billing, payer, 100)
    for refund_id, quota in (("a", 30), ("b", 60), ("c", 11), ("d", None), ("e", 1)):
        send(billing, RefundRequest(user_id=payer[0], request_id=request_id, quota=quota, refund_id=refund_id))
        billing.settle()
    assert refunded(billing, request_id) == [30, 60, 10]
    assert billing.accounts.user(payer[0]).quota == 1000
    assert [dead_letter.reason for dead_letter in dead_letters.ledger.dead_letters()] == ["above_charge"] * 2


@BOTH_PATHS
def test_a_refund_that_comes_many_times_is_booked_once(billing: Billing, send: Refund) -> None:
    payer = billing.payer(1000)
    request_id = charge(billing, payer, 100)
    for _ in range(3):
        send(billing, RefundRequest(user_id=payer[0], request_id=request_id, quota=30, refund_id="case-17"))
        send(billing, RefundRequest(user_id=payer[0], request_id=request_id, quota=30, refund_id="case-17"))
        billing.settle()
    assert refunded(billing, request_id) == [30]


@BOTH_PATHS
@pytest.mark.parametrize("quota", [30, None])
def test_a_refund_before_its_charge_waits_and_is_booked_once_when_the_charge_is_there(
    billing: Billing, dead_letters: DeadLetterDriver, send: Refund, quota: int | None
) -> None:
    payer, request_id = billing.payer(1000), new_request_id()
    early = RefundRequest(user_id=payer[0], request_id=request_id, quota=quota, refund_id="case-17")
    send(billing, early)
    billing.settle()
    assert (dead_letters.only().reason, dead_letters.only().state) == ("no_charge", "retrying")
    dead_letters.now_due()
    dead_letters.beat()
    assert refunded(billing, request_id) == []

    billing.bk.consume(
        ConsumeLog(user_id=payer[0], token_id=payer[1], channel_id=CHANNEL, quota=100, request_id=request_id)
    )
    billing.settle()
    send(billing, early)  # delivered again, this time behind its charge
    dead_letters.now_due()
    dead_letters.beat()
    billing.settle()
    dead_letters.now_due()
    dead_letters.beat()

    assert refunded(billing, request_id) == [quota or 100]
    assert dead_letters.only().state == "resolved"
    assert billing.available(payer[0]) == 900 + (quota or 100)


def test_a_refund_in_the_same_batch_as_its_charge_but_before_it_is_booked(
    billing: Billing, dead_letters: DeadLetterDriver
) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 100)
    by_outbox(billing, RefundRequest(user_id=payer[0], request_id=reservation.request_id, quota=30, refund_id="r"))
    billing.use(reservation, 80)
    billing.settle()
    assert refunded(billing, reservation.request_id) == [30]
    assert dead_letters.ledger.dead_letters() == []


def test_the_refund_of_a_hold_racing_with_its_expiry_and_its_usage_ends_it_once(billing: Billing) -> None:
    payer = billing.payer(100_000)
    used = 0
    for _ in range(25):
        reservation = billing.reserve(payer, 100)
        billing.redis(
            "ZADD", billing.runtime.commands.keys.due(billing.runtime.commands.keys.shard_of(payer[0])), 1,
            reservation.request_id,
        )  # fmt: skip
        back, _, charged = at_once(
            lambda: billing.bk.refund_quota(reservation),  # noqa: B023
            billing.expire,
            lambda: billing.use(reservation, 80),  # noqa: B023
        )
        assert isinstance(back, errors.ReservationClosed) or back.quota in (0, 100)
        assert charged.quota == 80  # usage happened, refund first or not
        used += 80
    billing.settle()
    user = billing.accounts.user(payer[0])
    assert (user.used_quota, user.quota) == (used, 100_000 - used)
    assert billing.available(payer[0]) == 100_000 - used
    kinds = Counter(
        kind for (kind,) in billing.sql("select kind from billing.ledger_entries where request_id is not null")
    )
    assert kinds["consume"] == 25
    assert kinds["release"] <= 25


def test_the_refund_of_a_charge_racing_with_that_charge_is_booked_once_sooner_or_later(
    billing: Billing, dead_letters: DeadLetterDriver
) -> None:
    payer = billing.payer(100_000)
    requests = [billing.reserve(payer, 100) for _ in range(20)]
    for reservation in requests:
        wanted = RefundRequest(
            user_id=payer[0], request_id=reservation.request_id, quota=30, refund_id=reservation.request_id
        )
        at_once(
            lambda: by_outbox(billing, wanted),  # noqa: B023
            lambda: by_outbox(billing, wanted),  # noqa: B023
            lambda: billing.use(reservation, 80),  # noqa: B023
            billing.settle,
        )
    billing.settle()
    dead_letters.now_due()
    dead_letters.beat()
    assert [refunded(billing, reservation.request_id) for reservation in requests] == [[30]] * 20
    assert billing.accounts.user(payer[0]).used_quota == 20 * 50


def test_partial_refunds_racing_for_the_last_units_never_exceed_the_charge(
    billing: Billing, dead_letters: DeadLetterDriver
) -> None:
    payer = billing.payer(1000)
    request_id = charge(billing, payer, 100)
    numbers = [dead_letters.keep(refund_of(payer[0], request_id, 30, f"r{n}")) for n in range(8)]
    outcomes = Counter(at_once(*[lambda number=number: dead_letters.attempt(number) for number in numbers]))
    assert outcomes == {"posted": 3, "RefundAboveCharge": 5}
    assert refunded(billing, request_id) == [30, 30, 30]
    assert billing.accounts.user(payer[0]).quota == 990


def test_two_refunds_of_the_whole_racing_refund_it_once(billing: Billing, dead_letters: DeadLetterDriver) -> None:
    payer = billing.payer(1000)
    request_id = charge(billing, payer, 100)
    numbers = [dead_letters.keep(refund_of(payer[0], request_id, None, f"r{n}")) for n in range(4)]
    at_once(*[lambda number=number: dead_letters.attempt(number) for number in numbers])
    assert refunded(billing, request_id) == [100]


@BOTH_PATHS
def test_a_refund_id_with_another_amount_is_kept_and_never_applied(
    billing: Billing, dead_letters: DeadLetterDriver, send: Refund
) -> None:
    payer = billing.payer(1000)
    request_id = charge(billing, payer, 100)
    for quota in (30, 31, None):
        send(billing, RefundRequest(user_id=payer[0], request_id=request_id, quota=quota, refund_id="case-17"))
        billing.settle()
    assert refunded(billing, request_id) == [30]
    assert [(dead_letter.reason, dead_letter.state) for dead_letter in dead_letters.ledger.dead_letters()] == [
        ("conflict", "failed")
    ] * 2


def test_a_refund_id_of_another_request_is_a_conflict(billing: Billing, dead_letters: DeadLetterDriver) -> None:
    payer = billing.payer(1000)
    first, second = charge(billing, payer, 100), charge(billing, payer, 100)
    assert dead_letters.attempt(dead_letters.keep(refund_of(payer[0], first, 30))) == "posted"
    assert dead_letters.attempt(dead_letters.keep(refund_of(payer[0], second, 30))) == "IdempotencyConflict"
    assert refunded(billing, second) == []


def test_a_retry_by_a_person_racing_with_beat_and_the_outbox_refunds_once(
    billing: Billing, dead_letters: DeadLetterDriver
) -> None:
    payer = billing.payer(10_000)
    for _ in range(10):
        request_id = charge(billing, payer, 100)
        wanted = RefundRequest(user_id=payer[0], request_id=request_id, quota=30, refund_id=f"case {request_id}")
        number = dead_letters.keep(wanted.event)
        dead_letters.now_due()
        by_outbox(billing, wanted)
        at_once(
            lambda: dead_letters.attempt(number, actor="ann"),  # noqa: B023
            lambda: dead_letters.attempt(number, actor="worker"),  # noqa: B023
            dead_letters.beat,
            billing.settle,
        )
        assert refunded(billing, request_id) == [30]
        assert dead_letters.get(number).state == "resolved"
        assert [what for what in dead_letters.history(number) if what in ("posted", "duplicate")][1:] == []
