"""ConsumeLog is the only list of fields: events, payloads and the view follow from it. No server."""

from __future__ import annotations

import json

import pytest

from billing_tasks.errors import InvalidRequest
from billing_tasks.ledger.migrations.consume_log_view import columns, definition
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog, Stored, column_fields, json_fields
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.ids import new_request_id

FIELDS = {"user_id": 1, "token_id": 2, "channel_id": 3, "quota": 40}


def log(**more: object) -> ConsumeLog:
    return ConsumeLog(**{**FIELDS, "request_id": new_request_id(), **more})


def complete(event: Event, kind: str = "consume", **header: object) -> Event:
    fields = {"request_id": "r", "user_id": 1, "token_id": 2, "weight": 40, "held": 50, "filed_ms": 9}
    events.complete(event, kind=kind, **{**fields, **header})  # type: ignore[arg-type]
    return event


def test_every_field_is_in_the_event_and_in_the_view() -> None:
    made = events.of_log(log(usage={"cached": 1}, elapsed_ms=5, content="é", used_at_ms=77))
    for name in column_fields():
        assert hasattr(made, name), name
    assert made.details == {"usage": {"cached": 1}}
    assert set(json_fields()) <= set(Stored)
    renamed = {"elapsed_ms": "elapsed_time", "used_at_ms": "used_at", "group": '"group"'}
    assert {renamed.get(name, name) for name in ConsumeLog.model_fields} <= set(columns())
    assert "create or replace view" in definition()


def test_no_fact_of_the_header_is_in_the_payload() -> None:
    consume = log(prompt_tokens=5, model_name="m")
    said = json.loads(events.payload(events.of_log(consume)))
    assert said == {
        "fingerprint": consume.fingerprint,
        "channel_id": 3,
        "prompt_tokens": 5,
        "model_name": "m",
        "group": "default",
    }


def test_header_and_payload_are_the_event_again() -> None:
    made = events.of_log(log(prompt_tokens=5, usage={"a": [1]}, used_at_ms=12))
    again = complete(events.decode(events.payload(made)), request_id=made.request_id)
    assert (again.quota, again.held_quota, again.used_at_ms) == (40, 50, 12)
    made.held_quota = 50
    assert again == made


def test_without_a_time_of_use_it_is_the_time_of_filing() -> None:
    assert complete(events.decode(events.payload(events.of_log(log())))).used_at_ms == 9


def test_a_payload_of_0_1_0_which_repeats_the_header_is_the_same_event() -> None:
    made = events.of_log(log())
    old = {**json.loads(events.encode(made)), "fingerprint": "ab" * 16, "usage": {"x": 1}}
    event = complete(events.decode(json.dumps(old).encode()), request_id=made.request_id)
    assert (event.usage, event.details, event.quota) == (None, {"usage": {"x": 1}}, 40)


@pytest.mark.parametrize(
    "said", [{"user_id": 9}, {"token_id": 9}, {"request_id": "other"}, {"kind": "release"}, {"quota": 41}]
)
def test_a_payload_that_contradicts_its_header_is_refused(said: dict[str, object]) -> None:
    text = json.dumps({"fingerprint": "ab" * 16, **said}).encode()
    with pytest.raises(InvalidRequest, match="the payload names another"):
        complete(events.decode(text))


@pytest.mark.parametrize(
    ("kind", "weight", "held", "quota"),
    [("refund", 40, 0, 40), ("conflict", 40, 0, 40), ("release", 40, 50, 0), ("settle", 0, 0, 0), ("", 0, 0, 0)],
)
def test_a_weight_that_no_event_of_the_kind_has_is_refused(kind: str, weight: int, held: int, quota: int) -> None:
    event = events.decode(json.dumps({"fingerprint": "ab" * 16, "quota": quota}).encode())
    with pytest.raises(InvalidRequest):
        complete(event, kind, weight=weight, held=held)


def test_refunds_and_conflicts_keep_their_quota_in_the_payload() -> None:
    for kind, token in ((Kind.REFUND, 0), (Kind.CONFLICT, 2)):
        made = events.make(kind=kind, request_id="r", user_id=1, token_id=token, fingerprint="ab" * 16, quota=7)
        assert complete(events.decode(events.payload(made)), str(kind), token_id=token, weight=0, held=0).quota == 7


def test_a_field_beside_those_that_are_known_is_about_money_and_refused() -> None:
    with pytest.raises(Exception, match="surcharge"):
        events.decode(b'{"fingerprint":"' + b"ab" * 16 + b'","surcharge":5}')
    kept = events.decode(b'{"fingerprint":"02' + b"ab" * 16 + b'","details":{"region":"eu"},"usage":{"pages":3}}')
    assert (kept.details, kept.usage) == ({"region": "eu"}, {"pages": 3})


@pytest.mark.parametrize("wrong", [{"quota": -1}, {"quota": True}, {"quota": 2**53 + 1}, {"used_at_ms": -1}, {"x": 1}])
def test_a_log_that_can_not_be_booked_names_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        log(**wrong)
