"""Flower: what an operator sees of requests, and retries through its API. A real one, with authentication."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable

import pytest

from billing_tasks.ids import new_request_id
from tests.conftest import Billing
from tests.tasks.conftest import Flower, Processes, eventually


def test_flower_shows_settlements_and_finds_a_request(
    billing: Billing, processes: Processes, start_flower: Callable[[Billing], Flower]
) -> None:
    flower = start_flower(billing)
    processes.worker(billing)
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    billing.use(reservation, 40)
    found = eventually(lambda: flower.tasks(search=reservation.request_id), what="Flower finds the request")
    eventually(lambda: any(task["state"] == "SUCCESS" for task in flower.tasks(search=reservation.request_id).values()))
    assert {task["name"] for task in found.values()} == {"billing.settle"}


def test_flower_asks_for_a_password(billing: Billing, start_flower: Callable[[Billing], Flower]) -> None:
    flower = start_flower(billing)
    for password in (None, "billing:wrong"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            flower.call("/api/workers", password=password)
        refused.value.close()
        assert refused.value.code == 401


def test_a_failed_refund_is_found_in_flower_and_retried_there(
    billing: Billing, processes: Processes, start_flower: Callable[[Billing], Flower]
) -> None:
    flower = start_flower(billing)
    processes.worker(billing)
    payer = billing.payer()
    good, failing = billing.reserve(payer, 100), new_request_id()
    billing.use(good, 40)
    # A refund for more than nothing: its charge has not come yet, and may never come.
    billing.bk.refund_charge(user_id=payer[0], request_id=failing, refund_id="case-17", quota=30)

    task_id = f"refund:{failing}:1"
    task = eventually(lambda: flower.tasks(search=failing).get(task_id), what="the refund has a task of its own")
    failed = eventually(lambda: flower.tasks(state="FAILURE").get(task_id), what="the task is a FAILURE")
    assert (task["name"], failing in failed["kwargs"]) == ("billing.refund", True)
    assert "ChargeNotFound" in failed["exception"]
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 40, what="the rest of the batch is booked")

    log = {"user_id": payer[0], "token_id": payer[1], "channel_id": 3, "quota": 50, "request_id": failing}
    flower.call("/api/task/async-apply/billing.consume", {"kwargs": log})
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 90, what="the charge has come after all")
    billing.sql("update billing.dead_letters set next_attempt_at = now()")  # instead of waiting ten seconds
    flower.call("/api/task/async-apply/billing.retry_failed", {"kwargs": {"kind": "refund", "limit": 10}})
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 60, what="the refund is booked")
    eventually(lambda: flower.tasks(state="SUCCESS").get(f"refund:{failing}:2"), what="Flower shows the success")
    (letter,) = billing.runtime.ledger.dead_letters()
    assert (letter.state, letter.handled_why) == ("resolved", "booked by this attempt")


def test_an_event_that_can_never_be_booked_is_a_failure_under_its_own_request(
    billing: Billing, processes: Processes, start_flower: Callable[[Billing], Flower]
) -> None:
    flower = start_flower(billing)
    processes.worker(billing)
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    billing.use(reservation, 40)
    from billing_tasks import ConsumeLog

    lost = new_request_id()
    unknown_user = payer[0] + 16  # the same shard, so the same batch
    billing.bk.consume(ConsumeLog(user_id=unknown_user, token_id=1, channel_id=3, quota=5, request_id=lost))
    task = eventually(lambda: flower.tasks(state="FAILURE").get(f"consume:{lost}:1"), what="a FAILURE in Flower")
    assert "UserNotFound" in task["exception"]
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 40, what="the rest of the batch is booked")
    assert billing.runtime.ledger.dead_letters()[0].state == "failed"
