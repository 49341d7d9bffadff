"""One request, looked for by the key that the application has for it, whatever became of it."""

from __future__ import annotations

import re

import pytest

from billing_tasks.errors import BillingError
from billing_tasks.flows.requests import intake
from tests.cli.test_cli import Run, as_json, run
from tests.conftest import Billing

__all__ = ["run"]

#: Blanks, colons, quotes, percent signs and what is no ASCII: a key is anything.
KEYS = ("order-17", "a b:c %20 'x'", "bestellung größe €", "held 1 2 3 -")


def _kinds(run: Run, key: str) -> list[str]:
    return sorted(row["kind"] for row in as_json(run("log", "--client-key", key, "--json")))


@pytest.mark.parametrize("key", KEYS)
def test_a_request_that_was_given_back_is_found_by_the_applications_key(run: Run, billing: Billing, key: str) -> None:
    payer = billing.payer()
    known = billing.reserve(payer, 100, client_key=key)
    by_id = billing.reserve(payer, 100, client_key=key)
    grown = billing.reserve(payer, 100, client_key=key)
    expired = billing.reserve(payer, 100, client_key=key, ttl_seconds=1)
    billing.reserve(payer, 100, client_key=key, request_id=expired.request_id)  # asked again: the same hold
    billing.bk.refund_quota(known)
    billing.bk.refund_quota(user_id=payer[0], request_id=by_id.request_id)
    billing.bk.renew(grown, quota=150)
    billing.bk.refund_quota(user_id=payer[0], request_id=grown.request_id)
    keys = billing.runtime.commands.keys
    billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, expired.request_id)
    assert billing.expire() == 1
    billing.settle()
    assert _kinds(run, key) == ["release"] * 4
    used = billing.reserve(payer, 100, client_key=key)
    billing.use(used, 40)
    billing.settle()
    assert _kinds(run, key) == ["consume", *["release"] * 4]


def test_what_was_refused_is_found_by_the_applications_key(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    unknown = billing.reserve(payer, 100, client_key="order-18").log(channel_id=3, quota=10).model_copy()
    wrong = unknown.model_copy(update={"token_id": payer[1] + 999})
    with pytest.raises(BillingError):
        billing.bk.consume(wrong)
    billing.settle()
    told = re.sub(r"\s+", " ", run("log", "--client-key", "order-18").output)
    assert f"Not booked: conflict of request {unknown.request_id}" in told
    command = re.search(r"dead-letters show (\d+)", told)
    assert command
    assert unknown.request_id in run("dead-letters", "show", command[1]).output
    assert "Not booked" in run("log", "--request", unknown.request_id).output


@pytest.mark.parametrize("own", ["chatcmpl-9AbC", "17", 17, "ordre n° 5", "x" * 180])
def test_a_dead_letter_is_found_by_the_id_that_the_other_program_sent(
    run: Run, billing: Billing, own: str | int
) -> None:
    payer = billing.payer()
    for request_id in (own, "another"):
        message = {"user_id": payer[0], "request_id": request_id, "refund_id": "r-1"}
        with pytest.raises(BillingError):
            billing.runtime.run(
                intake.refund_message(message, task_id=f"task of {request_id!s:.9}", commands=billing.runtime.commands)
            )
    (found,) = as_json(run("dead-letters", "list", "--request", str(own), "--json"))
    assert found["request_id"] == f"task of {own!s:.9}"
