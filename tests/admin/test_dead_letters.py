"""Dead letters: found by every filter, also by ids inside their payloads; one never keeps others from their turn."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing_tasks.admin import Admin
from billing_tasks.admin.dead_letters import DeadLetters
from billing_tasks.admin.one_by_one import Result
from billing_tasks.admin.types import OPEN, Attempted
from billing_tasks.errors import BillingError, ChargeNotFound, InvalidRequest, Unavailable
from billing_tasks.flows.dead_letters import record
from billing_tasks.ledger import dead_letter_search
from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings
from tests.admin.conftest import DeadLetterDriver, charge, refund_of, usage
from tests.conftest import Billing


def found(admin: Admin, **wanted: Any) -> list[int]:
    return [row.id for row in admin.dead_letters.find(**wanted).rows]


def test_every_filter_finds_what_it_says(billing: Billing, dead_letters: DeadLetterDriver, admin: Admin) -> None:
    payer, other = billing.payer(), billing.payer()
    request_id = charge(billing, payer)
    first = dead_letters.keep(refund_of(payer[0], request_id, 300, "case-1"))
    second = dead_letters.keep(refund_of(other[0], new_request_id(), 10, "case-2"))
    third = dead_letters.keep(usage((999, 7), 50, client_key="order-9"), "unknown_user")
    billing.sql("update billing.dead_letters set first_seen = now() - interval '3 hours' where id = %s", second)
    ago = datetime.now(UTC) - timedelta(hours=2)

    assert found(admin) == [third, second, first]
    assert found(admin, numbers=[first, third]) == [third, first]
    assert found(admin, states=[DeadLetterState.FAILED]) == [third]
    assert found(admin, kind="refund") == [second, first]
    assert found(admin, user_id=payer[0]) == [first]
    assert found(admin, request_ids=[request_id]) == [first]
    assert found(admin, reason="unknown_user") == [third]
    assert found(admin, since=ago) == [third, first]
    assert found(admin, before=ago) == [second]
    assert found(admin, refund_ids=["case-1", "case-2"]) == [second, first]
    assert found(admin, refund_ids=["case-1", "case-2"], since=ago) == [first]
    assert found(admin, client_keys=["order-9"]) == [third]
    assert found(admin, client_keys=["order-9"], refund_ids=["case-1"]) == []
    assert found(admin, refund_ids=["case"]) == found(admin, client_keys=["case-1"]) == []


HOSTILE = ["ä", "a/b", 'say "hi"', "back\\slash", "new\nline", "日本", "😀", "%", "_", "{}", "'; drop table x --"]


@pytest.mark.parametrize("own_id", HOSTILE)
def test_ids_of_any_spelling_are_found_in_events_and_in_messages(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin, own_id: str
) -> None:
    event = dead_letters.keep(refund_of(1, new_request_id(), 5, own_id))
    message = {"user_id": 1, "refund_id": own_id, "request_id": "garbage"}
    error = InvalidRequest("no uuid")
    (sent,) = billing.runtime.run(record.keep([record.of_message("refund", message, error, task_id="t-1")]))
    dead_letters.keep(refund_of(1, new_request_id(), 5, "another"))
    assert found(admin, refund_ids=[own_id]) == [sent, event]


PAYLOADS = [
    b"",
    b'\x00\xff\xfe not utf-8 "refund_id":"case-1"',
    b'"refund_id":"case-1"',
    b'["refund_id", {"refund_id":"case-1"}]',
    b'{"usage":{"refund_id":"case-1"}}',
    b'{"refund_id":"case-1"',
    b'{"refund_id":["case-1"]}',
    b'{"content":"\\"refund_id\\":\\"case-1\\""}',
    b'{"refund_id":"case-1","deep":' + b"[" * 100_000,
    b"{'refund_id': 'case-1'}",
    b'{"refund_id":"case-1","n":' + b"9" * 5000 + b"}",
    b'{"refund_id":"case-1"}' * 1000,
]


def test_garbage_in_payloads_is_passed_by(dead_letters: DeadLetterDriver, admin: Admin) -> None:
    for number, payload in enumerate(PAYLOADS):
        dead_letters.ledger.add_dead_letter(
            kind="refund", request_id=str(number), user_id=None, payload=payload, reason="malformed", error="?"
        )
    real = dead_letters.keep(refund_of(1, new_request_id(), 5, "case-1"))
    assert found(admin, refund_ids=["case-1"]) == [real]


def test_a_search_in_payloads_is_bounded(
    dead_letters: DeadLetterDriver, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_search, "_PAGE", 2)
    numbers = [dead_letters.keep(refund_of(user_id, new_request_id(), 5, "case-1")) for user_id in (1, 2, 3, 4, 5)]
    assert found(admin, refund_ids=["case-1"]) == numbers[::-1]
    monkeypatch.setattr(dead_letter_search, "MOST_FOUND", 4)
    with pytest.raises(InvalidRequest, match="More than 4 dead letters have such a refund_id; narrow it"):
        found(admin, refund_ids=["case-1"])
    assert found(admin, refund_ids=["case-1"], user_id=3) == [numbers[2]]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"numbers": []}, "numbers must be a list of 1 to 10,000"),
        ({"numbers": ["1"]}, "must be an int"),
        ({"states": ["lost"]}, "no state lost"),
        ({"request_ids": "all"}, "request_ids must be a list"),
        ({"refund_ids": ["x"] * 101}, "refund_ids must be a list of 1 to 100"),
        ({"client_keys": []}, "client_keys must be a list"),
        ({"client_keys": [b"x"]}, "must be a str"),
        ({"request_ids": [5]}, "must be a str"),
        ({"kind": 5}, "must be a str"),
        ({"reason": 5}, "must be a str"),
        ({"since": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"refund_id": "x"}, "no filter refund_id"),
    ],
)
def test_a_filter_that_would_let_everything_through_is_refused(admin: Admin, wanted: dict[str, Any], says: str) -> None:
    doors = (admin.dead_letters.find, lambda **w: admin.dead_letters.send(actor="ann", **w))
    for door in doors:
        with pytest.raises(InvalidRequest, match=says):
            door(**wanted)


def test_choosing_takes_open_ones_oldest_first_and_counts_what_it_leaves_out(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin
) -> None:
    payer = billing.payer()
    numbers = [dead_letters.keep(refund_of(payer[0], new_request_id(), 5, f"case-{n}")) for n in range(3)]
    never = dead_letters.keep(usage((999, 7), 50), "unknown_user")
    choose = admin.dead_letters.choose
    everything = choose(states=OPEN, for_retry=True)
    assert (everything.numbers, everything.left_out) == (numbers, {"unknown_user": 1})
    assert choose(states=OPEN, for_retry=False).numbers == [*numbers, never]
    two = choose(kind="refund", limit=2, for_retry=True)
    assert (two.numbers, two.more) == (numbers[:2], True)
    assert choose(refund_ids=["case-1"], for_retry=True).numbers == [numbers[1]]
    assert choose(numbers=[7, 5, 7], for_retry=True).numbers == [7, 5]
    for refused in ({}, {"numbers": [1], "kind": "refund"}, {"states": [DeadLetterState.RESOLVED]}):
        with pytest.raises(InvalidRequest):
            choose(for_retry=True, **refused)
    assert admin.dead_letters.count_reasons([*numbers, never]) == {"no_charge": 3, "unknown_user": 1}
    assert admin.dead_letters.count_reasons([]) == {}


def test_one_is_shown_previewed_retried_discarded_and_reopened(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin
) -> None:
    payer = billing.payer()
    number = dead_letters.keep(refund_of(payer[0], charge(billing, payer), 300))
    api = admin.dead_letters
    shown = api.show(number)
    assert (shown.dead_letter.id, [str(line.what) for line in shown.history]) == (number, ["kept"])
    assert shown.retry_now == api.preview(number)
    assert "would give back 300" in api.preview(number).message
    told = json.loads(json.dumps(shown.as_dict(), default=str))
    assert (told["retry_now"]["would"], "case-17" in told["payload"]) == ("posted", True)

    assert api.discard(number, actor="ann", comment="test").outcome == "discarded"
    assert api.discard(number, actor="bob", comment="test").outcome == "already discarded"
    assert api.retry(number, actor="bob").outcome == "already discarded"
    assert api.reopen(number, actor="bob", comment="no test").outcome == "reopened"
    assert api.retry(number, actor="bob", comment="charged by now").outcome == "posted"
    assert api.retry(number, actor="bob").outcome == "already resolved"
    with pytest.raises(InvalidRequest, match="Say why"):
        api.reopen(number, actor="bob", comment=" ")
    with pytest.raises(InvalidRequest, match="Say who"):
        api.retry(number, actor=" ")
    for missing in (api.get, api.show, api.preview):
        with pytest.raises(InvalidRequest, match="no dead letter 999"):
            missing(999)
    assert [(line.actor, line.comment) for line in api.show(number).history][-1] == ("bob", "charged by now")


def test_many_without_who_or_why_are_refused_at_once_and_not_one_by_one(admin: Admin) -> None:
    api = admin.dead_letters
    with pytest.raises(InvalidRequest, match="Say who"):
        api.retry_many([1], actor="")
    for many in (api.discard_many, api.reopen_many):
        with pytest.raises(InvalidRequest, match="Say why"):
            many([1], actor="ann", comment=" ")


def outcomes(results: Any) -> list[tuple[int, str, bool]]:
    return [(result.dead_letter, result.outcome, result.open) for result in results]


def test_many_are_retried_in_turn_and_each_has_its_own_outcome(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin
) -> None:
    payer = billing.payer()
    good = dead_letters.keep(refund_of(payer[0], charge(billing, payer), 300, "case-1"))
    early = dead_letters.keep(refund_of(payer[0], new_request_id(), 10, "case-2"))
    stranger = dead_letters.keep(usage((999, 7), 50), "unknown_user")
    last = dead_letters.keep(refund_of(payer[0], charge(billing, payer), 5, "case-3"))
    admin.dead_letters.discard(last, actor="ann", comment="test")
    numbers = [early, 999, stranger, last, good]

    assert outcomes(admin.dead_letters.preview_many(numbers)) == [
        (early, "no_charge", False),
        (999, "not_found", True),
        (stranger, "unknown_user", False),
        (last, "already discarded", False),
        (good, "posted", False),
    ]
    results = list(admin.dead_letters.retry_many(numbers, actor="ann", comment="after the outage"))
    assert outcomes(results) == [
        (early, "no_charge", True),
        (999, "not_found", True),
        (stranger, "unknown_user", True),
        (last, "already discarded", True),
        (good, "posted", False),
    ]
    assert [result.refused for result in results] == [True, False, True, False, False]
    assert results[0].as_dict()["says"].startswith("Nothing is charged under this request_id yet.")
    assert billing.accounts.user(payer[0]).used_quota == 1000 - 300 + 1000


def test_many_are_discarded_and_reopened_in_turn(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin
) -> None:
    payer = billing.payer()
    booked = dead_letters.keep(refund_of(payer[0], charge(billing, payer), 300, "case-1"))
    admin.dead_letters.retry(booked, actor="ann")
    other = dead_letters.keep(usage((999, 7), 50), "unknown_user")
    api = admin.dead_letters
    discarded = outcomes(api.discard_many([booked, 999, other], actor="ann", comment="test"))
    assert discarded == [(booked, "already resolved", True), (999, "not_found", True), (other, "discarded", False)]
    reopened = outcomes(api.reopen_many([booked, other], actor="ann", comment="no test"))
    assert reopened == [(booked, "already resolved", True), (other, "reopened", False)]


def test_results_come_one_by_one_and_nothing_is_done_before_it_is_asked_for(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin
) -> None:
    payer = billing.payer()
    numbers = [dead_letters.keep(refund_of(payer[0], charge(billing, payer), 5, f"case-{n}")) for n in range(3)]
    results = admin.dead_letters.retry_many(numbers, actor="ann")
    assert dead_letters.get(numbers[0]).open
    assert next(results).outcome == "posted"
    assert [dead_letters.get(number).open for number in numbers] == [False, True, True]


class Scripted(DeadLetters):
    """Dead letters whose attempts end as the test says."""

    def __init__(self, runtime: Runtime, ends: list[BaseException | None]) -> None:
        super().__init__(runtime)
        self.ends = iter(ends)

    def retry(self, number: int, **_: Any) -> Attempted:
        end = next(self.ends)
        if end is not None:
            raise end
        return Attempted(number, "r", "posted", "booked now")


def test_three_silences_in_a_row_end_it_and_two_do_not(billing: Billing) -> None:
    away = Unavailable("PostgreSQL can't be reached")
    ends = [away, away, None, away, ChargeNotFound("no"), away, ValueError("a bug"), away, away, away, None]
    results: list[Result] = list(Scripted(billing.runtime, ends).retry_many(range(1, 20), actor="ann"))
    assert [result.outcome for result in results] == [
        *("unavailable", "unavailable", "posted", "unavailable", "not_found", "unavailable", "unexpected"),
        *("unavailable", "unavailable", "unavailable"),
    ]
    assert all(result.open for result in results if result.outcome != "posted")


def test_a_bug_is_noted_in_the_row_and_the_next_one_has_its_turn(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin
) -> None:
    payer = billing.payer()
    broken, fine = dead_letters.keep(usage(payer, 5)), dead_letters.keep(usage(payer, 7))
    billing.sql(
        "create function billing.broken() returns trigger language plpgsql as"
        " $$ begin if new.quota = 5 then raise exception 'not one of ours'; end if; return new; end $$"
    )
    billing.sql(
        "create trigger broken before insert on billing.ledger_entries for each row execute function billing.broken()"
    )
    try:
        results = outcomes(admin.dead_letters.retry_many([broken, fine], actor="ann"))
        with pytest.raises(Exception, match="not one of ours") as raised:
            admin.dead_letters.retry(broken, actor="ann", attempt=2)
    finally:
        billing.sql("drop function billing.broken cascade")
    assert not isinstance(raised.value, BillingError)
    assert results == [(broken, "unexpected", True), (fine, "posted", False)]
    assert (dead_letters.get(broken).reason, dead_letters.get(broken).attempts) == ("unexpected", 2)
    assert admin.dead_letters.retry(broken, actor="ann").outcome == "posted"


def test_postgresql_away_is_said_and_not_taken_for_not_found(dead_letters: DeadLetterDriver) -> None:
    away = Runtime(Settings(database_url="postgresql://user@/nothing?host=/nonexistent"))
    api = Admin(away).dead_letters
    try:
        assert outcomes(api.discard_many(range(1, 9), actor="ann", comment="x")) == [
            (number, "unavailable", True) for number in (1, 2, 3)
        ]
        with pytest.raises(Unavailable):
            api.find()
    finally:
        away.close()


def test_sending_needs_who_and_reaches_the_broker(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin
) -> None:
    payer = billing.payer()
    number = dead_letters.keep(refund_of(payer[0], charge(billing, payer), 5, "case-1"))
    other = dead_letters.keep(refund_of(payer[0], new_request_id(), 5, "case-2"))
    with pytest.raises(InvalidRequest, match="Say who"):
        admin.dead_letters.send(actor="")
    planned = admin.dead_letters.preview_matching(refund_ids=["case-1"])
    assert [one.dead_letter for one in planned.dead_letters] == [number]
    sent = admin.dead_letters.send(actor="ann", comment="again", refund_ids=["case-1"])
    assert (sent.numbers, sent.not_sent) == ([number], [])
    assert dead_letters.history(number) == ["kept", "attempted"]
    assert dead_letters.history(other) == ["kept"]
    dead_letters.now_due()
    assert admin.dead_letters.send_due().numbers == [number, other]
