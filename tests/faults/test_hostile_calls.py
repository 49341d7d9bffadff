"""Anything as an argument of the gateway's methods: a clear refusal, and nothing was touched."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress
from typing import Any

import pytest

from billing_tasks import AsyncBookkeeper, ConsumeLog, errors
from billing_tasks.model.ids import new_request_id
from tests.conftest import CHANNEL, Billing

DEEP: Any = []
for _ in range(10_000):
    DEEP = [DEEP]

NO_AMOUNT = [-1, 2**53 + 1, 10**400, 1.0, 0.5, float("nan"), float("inf"), True, "5", b"5", None, [], {}, DEEP]
NO_ID = [0, *NO_AMOUNT]
NO_REQUEST_ID = [
    "",
    "None",
    "x" * 1_000_000,
    "\x00",
    "\ud800",
    b"x",
    5,
    True,
    [],
    DEEP,
    new_request_id().replace("-7", "-4"),
]
NO_TEXT = ["\x00", "\ud800", "x" * 1_000_000, 5, True, b"\xff", [1], DEEP]


def calls(billing: Billing) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, the one argument that is wrong, all arguments."""
    user_id, token_id = billing.payer()
    held = billing.reserve((user_id, token_id), 10)
    reserve = {"quota": 10, "user_id": user_id, "token_id": token_id}
    refund = {"user_id": user_id, "request_id": held.request_id}
    charge = {**refund, "refund_id": "case-1"}
    wrong: list[tuple[str, str, dict[str, Any]]] = []

    def each(method: str, good: dict[str, Any], name: str, values: list[Any], *, none_is_good: bool = False) -> None:
        wrong.extend((method, name, {**good, name: v}) for v in values if not (none_is_good and v is None))

    each("pre_consume_quota", reserve, "quota", NO_AMOUNT)
    each("pre_consume_quota", reserve, "user_id", NO_ID)
    each("pre_consume_quota", reserve, "token_id", NO_ID)
    each("pre_consume_quota", reserve, "request_id", NO_REQUEST_ID)
    each("pre_consume_quota", reserve, "ttl_seconds", [86_401, *NO_ID], none_is_good=True)
    each("pre_consume_quota", reserve, "client_key", NO_TEXT)
    each("refund_quota", refund, "user_id", NO_ID)
    each("refund_quota", refund, "request_id", NO_REQUEST_ID)
    each("refund_quota", refund, "reason", NO_TEXT)
    each("refund_charge", charge, "user_id", NO_ID)
    each("refund_charge", charge, "request_id", NO_REQUEST_ID)
    each("refund_charge", charge, "refund_id", ["", *NO_TEXT])
    each("refund_charge", charge, "quota", NO_ID, none_is_good=True)
    each("refund_charge", charge, "reason", NO_TEXT)
    each("user_has_enough_quota", {"user_id": user_id, "quota": 1}, "user_id", NO_ID)
    return wrong


def state(billing: Billing) -> Any:
    names = sorted(name for name in billing.redis("KEYS", "*") if b"layout" not in name)
    return [(name, billing.redis("DUMP", name)) for name in names]


@pytest.mark.parametrize("dispatch", ["batch", "request"])
def test_arguments_of_no_use_are_refused_before_anything_is_touched(make_billing: Any, dispatch: str) -> None:
    billing = make_billing(dispatch=dispatch)
    wrong = calls(billing)
    before = state(billing)
    for method, name, arguments in wrong:
        with pytest.raises(errors.InvalidRequest) as refused:
            getattr(billing.bk, method)(**arguments)
        assert len(str(refused.value)) < 1000, (method, name)
    assert state(billing) == before


def test_asyncio_refuses_the_same(billing: Billing) -> None:
    wrong = calls(billing)
    before = state(billing)

    async def run() -> None:
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            for method, _, arguments in wrong:
                with pytest.raises(errors.InvalidRequest):
                    await getattr(bk, method)(**arguments)

    asyncio.run(run())
    assert state(billing) == before


LOG = {"user_id": 1, "token_id": 1, "channel_id": CHANNEL, "quota": 1, "request_id": new_request_id()}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, NO_ID) for name in ("user_id", "token_id")),
        *((name, NO_AMOUNT) for name in ("quota", "channel_id", "prompt_tokens", "completion_tokens", "elapsed_ms")),
        *((name, NO_TEXT) for name in ("content", "model_name", "token_name", "client_key", "group", "model_ratio")),
        ("request_id", NO_REQUEST_ID),
        ("is_stream", [1, "true", None, []]),
        (
            "usage",
            [DEEP, {"a": DEEP}, {"a": "x" * 5000}, {"a": "\x00"}, {"a": "\ud800"}, "x", {1: object()}],
        ),
        ("surprise", [1]),
    ],
)
def test_usage_of_no_use_can_not_be_put_into_a_log(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(errors.InvalidRequest) as refused:
            ConsumeLog(**{**LOG, name: value})
        assert len(str(refused.value)) < 1000


def test_a_reservation_made_up_by_a_caller_changes_no_balance(billing: Billing) -> None:
    payer, victim = billing.payer(1000), billing.payer(1000)
    real = billing.reserve(victim, 300)
    for forged in (
        dataclasses.replace(real, user_id=payer[0], token_id=payer[1]),
        dataclasses.replace(real, user_id=payer[0]),
        dataclasses.replace(real, held_quota=10**9, user_id=payer[0], token_id=payer[1]),
    ):
        with suppress(errors.Refused):
            billing.bk.refund_quota(forged)
    assert (billing.available(payer[0]), billing.available(victim[0])) == (1000, 700)
    other_token = billing.accounts.create_token(victim[0], quota=5, name="another").id
    with pytest.raises(errors.IdempotencyConflict):
        billing.bk.refund_quota(dataclasses.replace(real, token_id=other_token))
    with pytest.raises(errors.IdempotencyConflict):
        billing.use(dataclasses.replace(real, token_id=other_token), 10)
    assert billing.available(victim[0]) == 700
    billing.bk.refund_quota(real)
    billing.settle()
