"""The dry run: it says what a retry then does, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from billing_tasks.flows.requests.release import release_event
from billing_tasks.model.events import Event
from billing_tasks.model.ids import new_request_id
from tests.conftest import Billing, Payer
from tests.flows.dead_letters.conftest import DeadLetterDriver, charge, refund_of, usage

Case = Callable[[Billing, Payer], Event]


def booked(billing: Billing, event: Event) -> Event:
    """The event, which the ledger has already."""
    ledger = billing.runtime.ledger
    answer = ledger.post_refund(0, event) if event.kind == "refund" else ledger.post_batch(0, [event])
    assert str(answer.outcomes[0]) == "posted"
    return event


def partly_refunded(billing: Billing, payer: Payer, quota: int | None, before: int = 700) -> Event:
    request_id = charge(billing, payer)
    booked(billing, refund_of(payer[0], request_id, before, "before"))
    return refund_of(payer[0], request_id, quota)


def ended_unused(billing: Billing, payer: Payer, *, expired: bool) -> Event:
    request_id = new_request_id()
    booked(billing, release_event(request_id, *payer, 50, reason="", expired=expired))
    return refund_of(payer[0], request_id)


def refunded_before_the_late_charge(billing: Billing, payer: Payer) -> Event:
    request_id = new_request_id()
    booked(billing, release_event(request_id, *payer, 50, reason="", expired=False))
    booked(billing, usage(payer, 50, request_id))
    return refund_of(payer[0], request_id, refund_id="")


def same_id(billing: Billing, payer: Payer, quota: int) -> Event:
    return usage(payer, quota, booked(billing, usage(payer, 40)).request_id)


CASES: dict[str, tuple[Case, str, str]] = {
    "part of a refund": (lambda b, p: partly_refunded(b, p, 200), "posted", "300 of 1,000 left: would give back 200"),
    "the whole rest": (lambda b, p: partly_refunded(b, p, None), "posted", "300 of 1,000 left: would give back 300"),
    "a refund above the charge": (
        lambda b, p: partly_refunded(b, p, 301),
        "above_charge",
        "charge found, 300 of 1,000 left, 301 wanted",
    ),
    "a refund of nothing": (
        lambda b, p: partly_refunded(b, p, None, 1000),
        "above_charge",
        "everything was refunded",
    ),
    "a refund booked before": (
        lambda b, p: booked(b, refund_of(p[0], charge(b, p), 75)),
        "duplicate",
        "already booked, 75 refunded",
    ),
    "a refund_id reused": (
        lambda b, p: refund_of(p[0], booked(b, refund_of(p[0], charge(b, p), 75)).request_id, 76),
        "conflict",
        "refund_id case-17 was booked before with another body",
    ),
    "another user's charge": (
        lambda b, p: refund_of(p[0], charge(b, b.payer()), 5),
        "conflict",
        "the charge is user 2's, not user 1's",
    ),
    "a charge that has not come": (lambda b, p: refund_of(p[0], new_request_id(), 5), "no_charge", "no charge yet"),
    "a hold that expired": (lambda b, p: ended_unused(b, p, expired=True), "no_charge", "its hold expired"),
    "a released hold": (lambda b, p: ended_unused(b, p, expired=False), "no_charge", "its hold was released"),
    "the default refund, repeated": (refunded_before_the_late_charge, "duplicate", "before the charge came late"),
    "a refund of no user": (lambda b, p: refund_of(999, charge(b, p), 5), "unknown_user", "user 999 does not exist"),
    "usage": (lambda b, p: usage(p, 1375), "posted", "would charge 1,375 to user 1"),
    "usage booked before": (lambda b, p: booked(b, usage(p, 5)), "duplicate", "already booked"),
    "usage with another body": (lambda b, p: same_id(b, p, 41), "conflict", "another body, 40 quota of user 1"),
    "usage of no user": (lambda b, p: usage((999, 1), 5), "unknown_user", "user 999 does not exist"),
    "usage without its token": (lambda b, p: usage((p[0], 999), 5), "unknown_token", "token 999 does not exist"),
    "usage with another's token": (
        lambda b, p: usage((p[0], b.payer()[1]), 5),
        "unknown_token",
        "token 2 is user 2's, not user 1's",
    ),
    "usage with NUL in its detail": (lambda b, p: usage(p, 5, usage={"a": "\x00"}), "malformed", "can't store this"),
    "usage beyond every number": (lambda b, p: usage(p, 5, prompt_tokens=2**63), "malformed", "can't store this"),
    "the end of a hold": (
        lambda b, p: release_event(new_request_id(), *p, 50, reason="", expired=True),
        "posted",
        "a hold of 50 ended unused; no balance changes",
    ),
}
_TABLES = ("users", "tokens", "ledger_entries", "refunds", "channel_usage", "dead_letters", "dead_letter_history")


def everything(billing: Billing) -> list[object]:
    """Every row of every table that a retry may change, and what Redis knows."""
    rows = [billing.sql(f"select t::text from billing.{table} as t order by 1") for table in _TABLES]
    return [*rows, sorted(billing.redis("KEYS", "*"))]


@pytest.mark.parametrize("case", CASES)
def test_the_dry_run_says_what_the_retry_then_does_and_changes_nothing(
    dead_letters: DeadLetterDriver, case: str
) -> None:
    make, would, message = CASES[case]
    billing = dead_letters.billing
    number = dead_letters.keep(make(billing, billing.payer()))
    before = everything(billing)

    found = dead_letters.preview(number)

    assert everything(billing) == before
    assert (found.would, message in found.message) == (would, True), found.message
    dead_letters.attempt(number)
    dead_letter = dead_letters.get(number)
    assert (would if dead_letter.open else dead_letters.history(number)[-1]) == would
    assert dead_letter.reason == would or not dead_letter.open


def test_a_settled_dead_letter_would_not_change_and_says_who_settled_it(dead_letters: DeadLetterDriver) -> None:
    number = dead_letters.keep(usage(dead_letters.billing.payer(), 5))
    dead_letters.attempt(number)
    assert dead_letters.preview(number).as_dict()["would"] == "already resolved"
    assert dead_letters.preview(number).message == "booked before: nothing would change"


def test_a_dry_run_locks_no_user_for_longer_than_itself(dead_letters: DeadLetterDriver) -> None:
    payer = dead_letters.billing.payer()
    number = dead_letters.keep(usage(payer, 5))
    dead_letters.preview(number)
    waiting = dead_letters.billing.sql("select count(*) from pg_stat_activity where state in ('idle in transaction')")
    assert waiting == [(0,)]


def test_a_message_is_previewed_like_the_event_it_stands_for(dead_letters: DeadLetterDriver) -> None:
    from billing_tasks.errors import InvalidRequest
    from billing_tasks.flows.dead_letters import record

    payer = dead_letters.billing.payer()
    message = {
        "user_id": payer[0],
        "request_id": charge(dead_letters.billing, payer),
        "quota": 5,
        "refund_id": "case-1",
    }
    kept = record.of_message("refund", message, InvalidRequest("was refused once"), task_id="t")
    (number,) = dead_letters.billing.runtime.run(record.keep([kept]))
    assert dead_letters.preview(number).would == "posted"
    assert dead_letters.attempt(number) == "posted"
    assert msgspec.json.decode(dead_letters.get(number).payload) == message
