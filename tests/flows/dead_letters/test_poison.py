"""Poison: whatever a dead letter holds, retrying or looking at it never crashes, blocks the others or moves quota."""

from __future__ import annotations

import json

import pytest

from billing_tasks import errors
from billing_tasks.flows.dead_letters import record
from billing_tasks.flows.requests.release import release_event
from billing_tasks.model.events import encode
from billing_tasks.model.ids import new_request_id
from tests.conftest import Billing, MakeBilling, Payer
from tests.flows.dead_letters.conftest import DeadLetterDriver, Run, refund_of, usage
from tests.worker.tasks import module as tasks
from tests.worker.tasks import task_of

#: What a valid message of billing.consume for this payer would be: no poison, but no event of an outbox either.
MESSAGE = b'{"request_id":"ID","user_id":1,"token_id":1,"channel_id":3,"quota":50}'
EVENT = b'{"kind":"consume","request_id":"ID","user_id":1,"token_id":1,"fingerprint":"00","quota":50,"usage":%s}'
NESTED = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

PAYLOADS = {
    "nothing": b"",
    "no JSON": b"\x00\x01\x02",
    "no object": b"[1,2,3]",
    "invalid UTF-8": b'{"kind":"consume","request_id":"\xff\xfe"}',
    "invalid UTF-8 in a message": MESSAGE.replace(b"ID", b"\xff"),
    "a nesting bomb": b"[" * 200_000,
    "a nesting bomb in an event": EVENT % NESTED,
    "one megabyte": EVENT % (b'{"a":"' + b"x" * 1_000_000 + b'\\u0000"}'),
    "NUL": EVENT % b'{"a":"\\u0000"}',
    "a lone surrogate": EVENT % b'{"a":"\\ud800"}',
    "a number beyond every number": EVENT.replace(b'"quota":50', b'"quota":' + b"9" * 400) % b"1",
    "a message where an event should be": MESSAGE,
    "an event of another kind": EVENT.replace(b"consume", b"refund") % b"null",
}
KINDS = ["consume", "refund", "release", "conflict", "adjust", "", "\x1b[2J"]


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_dead_letter_of_any_kind_with_any_payload_is_refused_and_waits_for_a_person(
    dead_letters: DeadLetterDriver, run: Run, name: str
) -> None:
    billing, payer = dead_letters.billing, dead_letters.billing.payer()
    poisoned = []
    for kind in KINDS:
        request_id = new_request_id()
        payload = PAYLOADS[name].replace(b"ID", request_id.encode())
        dead_letter, _ = billing.runtime.ledger.add_dead_letter(
            kind=kind,
            request_id=request_id,
            user_id=payer[0],
            payload=payload,
            reason="odd",
            error="e",
            fingerprint="00",
        )
        poisoned.append(dead_letter.id)
    good = dead_letters.keep(usage(payer, 7))
    assert not any(dead_letters.preview(number).books for number in poisoned)
    dead_letters.now_due()
    assert dead_letters.beat() == [*poisoned, good]
    assert {dead_letters.get(number).state for number in poisoned} == {"failed"}
    assert (dead_letters.get(good).state, billing.accounts.user(payer[0]).used_quota) == ("resolved", 7)
    shows = [("show", number) for number in poisoned]
    for words in (*shows, ("list",), ("list", "--json"), ("retry", *poisoned, "--dry-run")):
        assert "\x1b" not in run(*words).output
    run("retry", *poisoned, status=1)
    assert billing.accounts.user(payer[0]).used_quota == 7


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("kind", ["consume", "refund", "release", "adjust"])
def test_an_entry_of_an_outbox_with_any_payload_leaves_it_and_is_never_booked(
    make_billing: MakeBilling, kind: str, name: str
) -> None:
    billing = make_billing(shards=1)
    dead_letters, payer, request_id = DeadLetterDriver(billing), billing.payer(), new_request_id()
    billing.use(billing.reserve(payer, 100), 40)
    event = f"{kind} {request_id} {payer[0]} {payer[1]} 0 0 0"
    payload = PAYLOADS[name].replace(b"ID", request_id.encode())
    billing.redis("XADD", billing.runtime.commands.keys.outbox(0), "*", "event", event, "payload", payload)
    for _ in range(2):
        billing.settle()
    assert billing.verify().backlog == 0
    dead_letter = dead_letters.only()
    assert dead_letters.preview(dead_letter.id).would in record.FOR_EVER
    assert dead_letters.attempt(dead_letter.id) in ("InvalidRequest", "LedgerRefusedData", "IdempotencyConflict")
    assert billing.accounts.user(payer[0]).used_quota == 40


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("task", ["consume_one", "refund_one"])
def test_a_message_with_anything_in_it_is_kept_and_retried_without_harm(
    dead_letters: DeadLetterDriver, monkeypatch: pytest.MonkeyPatch, task: str, name: str
) -> None:
    billing, payer = dead_letters.billing, dead_letters.billing.payer()
    monkeypatch.setattr(tasks, "runtime", lambda: billing.runtime)
    nested: list[object] = []
    for _ in range(300):
        nested = [nested]
    message = {
        "user_id": payer[0],
        "request_id": new_request_id(),
        "odd": PAYLOADS[name].decode("latin-1"),
        "n": nested,
    }
    with pytest.raises(errors.Refused):
        task_of(task).apply(kwargs=json.loads(json.dumps(message)), throw=True)
    dead_letter = dead_letters.only()
    assert dead_letter.reason == "invalid_request"
    assert dead_letters.attempt(dead_letter.id) == "InvalidRequest"
    assert billing.accounts.user(payer[0]).quota == 1_000_000


def test_a_hundred_poisoned_letters_keep_no_good_one_waiting(billing: Billing, dead_letters: DeadLetterDriver) -> None:
    payer = billing.payer()
    for number in range(100):
        billing.runtime.ledger.add_dead_letter(
            kind="consume", request_id=str(number), user_id=1, payload=b"\xff", reason="odd", error="e"
        )
    good = [dead_letters.keep(usage(payer, 5)) for _ in range(3)]
    for _ in range(2):
        dead_letters.now_due()
        dead_letters.beat(limit=60)
    assert {dead_letters.get(number).state for number in good} == {"resolved"}
    assert billing.runtime.ledger.count_dead_letters()["failed"] == 100  # type: ignore[index]


def test_what_was_filed_as_one_kind_is_not_booked_as_another(dead_letters: DeadLetterDriver) -> None:
    payer: Payer = dead_letters.billing.payer()
    ledger = dead_letters.billing.runtime.ledger
    for event in (
        usage(payer, 5),
        refund_of(payer[0], new_request_id()),
        release_event(new_request_id(), *payer, 5, reason="", expired=False),
    ):
        for kind in {"consume", "refund", "release"} - {str(event.kind)}:
            dead_letter, _ = ledger.add_dead_letter(
                kind=kind, request_id=event.request_id, user_id=payer[0], payload=encode(event),
                reason="odd", error="e", fingerprint=event.fingerprint,
            )  # fmt: skip
            assert dead_letters.attempt(dead_letter.id) == "InvalidRequest"
    assert dead_letters.billing.sql("select count(*) from billing.ledger_entries where request_id is not null") == [
        (0,)
    ]
