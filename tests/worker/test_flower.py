"""Flower: what an operator sees of requests, and retries through its API. A real one, with authentication."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable

import psycopg
import pytest
from celery import Celery

from billing_tasks.model.ids import new_request_id
from tests.conftest import Billing
from tests.worker.conftest import Flower, Processes, eventually


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

    task_id = f"refund:{failing}:1.1"  # dead letter 1, attempt 1
    task = eventually(lambda: flower.tasks(search=failing).get(task_id), what="the refund has a task of its own")
    failed = eventually(lambda: flower.tasks(state="RETRY").get(task_id), what="the task is RETRY: it may still be")
    assert (task["name"], failing in failed["kwargs"]) == ("billing.refund", True)
    assert "nothing charged" in failed["exception"]
    assert "attempt 1 failed, the next in 20 s" in failed["exception"]
    assert f"'user_id': {payer[0]}, 'quota': 30, 'refund_id': 'case-17'" in failed["kwargs"]
    assert task_id in flower.tasks(search="case-17")
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 40, what="the rest of the batch is booked")

    log = {"user_id": payer[0], "token_id": payer[1], "channel_id": 3, "quota": 50, "request_id": failing}
    flower.call("/api/task/async-apply/billing.consume", {"kwargs": log})
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 90, what="the charge has come after all")
    told = ask(flower, kind="refund", limit=10, dry_run=True)
    assert "charge found, 50 of 50 left: would give back 30" in told
    assert billing.accounts.user(payer[0]).used_quota == 90  # asking changed nothing
    assert "'sent': 1" in ask(flower, kind="refund", limit=10, actor="ann", comment="the charge came")
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 60, what="the refund is booked")
    task_id = f"refund:{failing}:1.2"
    done = eventually(lambda: flower.tasks(state="SUCCESS").get(task_id), what="Flower shows the success")
    assert "booked now" in done["result"]
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    assert (dead_letter.state, dead_letter.handled_by, dead_letter.handled_comment) == (
        "resolved",
        "ann",
        "the charge came",
    )
    told_twice = ask(flower, numbers=[dead_letter.id], dry_run=True)
    assert "already resolved" in told_twice
    assert f"'not_sent': [{dead_letter.id}, 12345]" in ask(flower, numbers=[12345, dead_letter.id])


def ask(flower: Flower, **kwargs: object) -> str:
    """billing.retry_failed through Flower's API: the result, or the error, that Flower shows for it."""
    task_id = flower.call("/api/task/async-apply/billing.retry_failed", {"kwargs": kwargs})["task-id"]
    ended = ("SUCCESS", "FAILURE")
    task = eventually(
        lambda: next((t for t in flower.tasks(search=task_id).values() if t["state"] in ended), None),
        what="Flower shows how the retry went",
    )
    return str(task["result"] or task["exception"])


def test_a_retry_is_chosen_and_refused_through_flower_as_on_the_command_line(
    billing: Billing, processes: Processes, start_flower: Callable[[Billing], Flower]
) -> None:
    flower = start_flower(billing)
    processes.worker(billing)
    payer = billing.payer()
    users = [999, 999, payer[0]]
    requests = [new_request_id() for _ in users]
    for user_id, request_id in zip(users, requests, strict=True):
        billing.bk.refund_charge(user_id=user_id, request_id=request_id, refund_id=f"case {request_id}", quota=5)
    # Each was attempted once: a dead letter that a worker has in its hands is passed by.
    attempted = "select count(*) from billing.dead_letters where attempts = 1"
    eventually(lambda: billing.sql(attempted) == [(3,)], what="three refunds failed")

    everything = ask(flower)
    assert "'sent': 1" in everything
    assert "'left_out': {'unknown_user': 2}" in everything
    assert "'unknown_user': 1" in ask(flower, request_ids=[requests[0]], reason="unknown_user", dry_run=True)
    assert "'sent': 2" in ask(flower, user_id=999, reason="unknown_user")
    assert "'sent': 0" in ask(flower, before="1h")
    assert "does not know ['reasn']" in ask(flower, reasn="unknown_user")
    assert "numbers must be a list" in ask(flower, numbers=[])
    assert "'sent': 1" in sent_by_celery(billing, flower, user_id=payer[0])


def sent_by_celery(billing: Billing, flower: Flower, **kwargs: object) -> str:
    """billing.retry_failed from a program of its own; the result that Flower shows."""
    with Celery(broker=billing.settings.celery_broker_url, set_as_current=False) as program:
        task_id = program.send_task("billing.retry_failed", kwargs=kwargs).id
    found = eventually(lambda: flower.tasks(state="SUCCESS").get(task_id), what="Flower shows the program's retry")
    return str(found["result"])


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
    unknown_user = payer[0] + 12  # the same shard, so the same batch
    billing.bk.consume(ConsumeLog(user_id=unknown_user, token_id=1, channel_id=3, quota=5, request_id=lost))
    task = eventually(lambda: flower.tasks(state="FAILURE").get(f"consume:{lost}:1.1"), what="a FAILURE in Flower")
    assert "UserNotFound" in task["exception"]
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 40, what="the rest of the batch is booked")
    assert billing.runtime.ledger.dead_letters()[0].state == "failed"


def test_a_refund_that_is_sent_as_a_task_says_in_flower_what_became_of_it(
    billing: Billing, processes: Processes, start_flower: Callable[[Billing], Flower]
) -> None:
    flower = start_flower(billing)
    processes.worker(billing)
    payer = billing.payer()
    charged, not_yet, of_gateway = billing.reserve(payer, 100), new_request_id(), billing.reserve(payer, 100)
    for reservation in (charged, of_gateway):
        billing.use(reservation, 40)
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 80, what="the charges are booked")

    def ended(state: str, request_id: str, refund_id: str, quota: int) -> str:
        kwargs = {"user_id": payer[0], "request_id": request_id, "refund_id": refund_id, "quota": quota}
        task_id = flower.call("/api/task/async-apply/billing.refund", {"kwargs": kwargs})["task-id"]
        task = eventually(lambda: flower.tasks(state=state).get(task_id), what=f"{refund_id} is {state}")
        assert all(task_id in flower.tasks(search=word) for word in (request_id, refund_id))
        return str(task["result"] or task["exception"])

    assert "'again': False" in ended("SUCCESS", charged.request_id, "case-1", 10)
    assert billing.accounts.user(payer[0]).used_quota == 70, "SUCCESS is said of what is booked"
    assert "'again': True" in ended("SUCCESS", charged.request_id, "case-1", 10)
    failed = ended("FAILURE", charged.request_id, "case-2", 31)
    for word in ("31 asked for", "30 left of a charge of 40", "case-2", f"user {payer[0]}", "dead-letters show"):
        assert word in failed
    assert "nothing charged" in ended("RETRY", not_yet, "case-3", 5)

    billing.bk.refund_charge(user_id=payer[0], request_id=of_gateway.request_id, refund_id="case-4", quota=40)
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 30, what="the gateway's refund is booked")
    found = eventually(lambda: flower.tasks(search="case-4"), what="the settlement that booked it is found by its id")
    assert {task["name"] for task in found.values()} == {"billing.settle"}


def test_flower_has_the_backlog_and_a_filter_leaves_beats_tasks_out(
    billing: Billing, processes: Processes, start_flower: Callable[[Billing], Flower]
) -> None:
    flower = start_flower(billing)
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    billing.reserve(payer, 30)
    with psycopg.connect(billing.settings.database_url) as another:
        another.execute("lock table billing.users in exclusive mode")  # so that nothing is booked meanwhile
        processes.worker(billing)
        flower.call("/api/task/async-apply/billing.ring_stale", {"kwargs": {}})
        seen = eventually(lambda: flower.tasks(search="events_waiting"), what="the backlog is a result")
        results = [str(task["result"]) for task in seen.values()]
        assert any("'events_waiting': 1," in result for result in results), results
        assert any("'open_holds': 1," in result for result in results), results
    wanted = "name:billing.settle OR name:billing.refund OR name:billing.consume"
    found = eventually(lambda: flower.tasks(search=wanted), what="Flower has the settlement")
    assert {task["name"] for task in found.values()} == {"billing.settle"}
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 40, what="it is booked")
