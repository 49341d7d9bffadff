"""Acceptance: real worker processes, the public interface, real messages."""

from __future__ import annotations

import base64
import json
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from billing_tasks.broker import names
from billing_tasks.lab.servers import embedded_servers
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.model.ids import new_request_id
from tests.conftest import CHANNEL, Billing, MakeBilling
from tests.worker.conftest import Processes, eventually

BOTH_MODES = pytest.mark.parametrize("dispatch", ["batch", "request"])


def booked(billing: Billing) -> int:
    """Entries of requests in the ledger."""
    return int(billing.sql("select count(*) from billing.ledger_entries where request_id is not null")[0][0])


def drained(billing: Billing) -> bool:
    report = billing.verify()
    return report.backlog == 0 and report.open_holds == 0


@BOTH_MODES
def test_workers_book_what_gateways_used(make_billing: MakeBilling, processes: Processes, dispatch: str) -> None:
    billing = make_billing(dispatch=dispatch, ring_every_seconds=1)
    processes.worker(billing)
    payers = [billing.payer() for _ in range(4)]
    for number in range(40):
        reservation = billing.reserve(payers[number % 4], 100)
        if number % 10:
            billing.use(reservation, 40)
        else:
            billing.bk.refund_quota(reservation, reason="upstream 502")
    eventually(lambda: booked(billing) == 40, what="all 40 requests are booked")
    eventually(lambda: drained(billing))
    assert sum(billing.accounts.user(user_id).used_quota for user_id, _ in payers) == 36 * 40


@BOTH_MODES
def test_every_message_delivered_twice_to_two_workers_changes_no_balance(
    make_billing: MakeBilling, processes: Processes, dispatch: str
) -> None:
    billing = make_billing(dispatch=dispatch)
    payers = [billing.payer() for _ in range(4)]
    charges = []
    for number in range(60):
        reservation = billing.reserve(payers[number % 4], 100)
        if number % 6:
            billing.use(reservation, 40)
            charges.append(reservation)
        else:
            billing.bk.refund_quota(reservation)
    for reservation in charges[:10]:
        refund = {"user_id": reservation.user_id, "request_id": reservation.request_id}
        billing.bk.refund_charge(**refund, refund_id=f"r-{reservation.request_id}", quota=7)
    billing.runtime.doorbell.close()  # every ring is at the broker
    messages_before = deliver_twice(billing)
    assert messages_before >= (70 if dispatch == "request" else 1)

    processes.worker(billing, "w1")
    processes.worker(billing, "w2")

    expected = {user_id: 0 for user_id, _ in payers}
    for reservation in charges:
        expected[reservation.user_id] += 40
    for reservation in charges[:10]:
        expected[reservation.user_id] -= 7

    def used() -> dict[int, int]:
        return {user_id: billing.accounts.user(user_id).used_quota for user_id, _ in payers}

    def settled() -> bool:
        # A refund that overtook its charge waits as a dead letter; booking it is the retry's work.
        for dead_letter in billing.runtime.ledger.dead_letters():
            if dead_letter.state == "retrying":
                task = {"kind": "refund", "limit": 100}
                billing.runtime.doorbell.enqueue(names.RETRY_FAILED, str(uuid.uuid4()), task)
        return drained(billing) and used() == expected

    eventually(settled, seconds=60, what=f"used quota is {expected}")
    assert queue_length(billing) == 0
    assert booked(billing) == 60 + 10


def broker(billing: Billing) -> redis.Redis:
    url = billing.settings.redis_url
    return redis.Redis.from_url(f"{url}?db=0")


def queue_length(billing: Billing) -> int:
    with broker(billing) as client:
        return int(client.llen("billing"))  # type: ignore[arg-type]


def deliver_twice(billing: Billing) -> int:
    """Put every waiting message a second time beside it, as a redelivery would; returns how many there were."""
    with broker(billing) as client:
        waiting: Any = client.lrange("billing", 0, -1)
        for raw in waiting:
            message = json.loads(raw)
            message["properties"]["delivery_tag"] = str(uuid.uuid4())
            client.lpush("billing", json.dumps(message))
        return len(waiting)


def test_a_bare_producer_needs_none_of_our_code(billing: Billing, processes: Processes) -> None:
    payer = billing.payer()
    processes.worker(billing)
    producer = Celery(broker=billing.settings.celery_broker_url, set_as_current=False)
    request_id = new_request_id()
    log = {
        "request_id": request_id,
        "user_id": payer[0],
        "token_id": payer[1],
        "channel_id": CHANNEL,
        "prompt_tokens": 374,
        "completion_tokens": 44,
        "model_name": "gpt-4o",
        "quota": 1375,
    }
    producer.send_task("billing.consume", kwargs=log)
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 1375, what="the usage is booked")
    refund = {"user_id": payer[0], "request_id": request_id, "quota": 75, "refund_id": "case-17", "reason": "slow"}
    producer.send_task("billing.refund", kwargs=refund)
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 1300, what="the refund is booked")
    producer.close()


def test_a_message_in_plain_json_from_another_language_is_booked(billing: Billing, processes: Processes) -> None:
    """The message format of Celery's protocol 2, written out, as a gateway in Go or TypeScript would push it."""
    payer = billing.payer()
    processes.worker(billing)
    request_id = new_request_id()
    log = {"request_id": request_id, "user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "quota": 5}
    body = base64.b64encode(json.dumps([[], log, {}]).encode()).decode()
    message = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "go", "task": "billing.consume", "id": request_id, "root_id": request_id},
        "properties": {
            "correlation_id": request_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "billing"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    with broker(billing) as client:
        client.lpush("billing", json.dumps(message))
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 5, what="the usage is booked")


def test_a_message_that_can_not_be_used_is_kept_and_the_rest_is_booked(billing: Billing, processes: Processes) -> None:
    payer = billing.payer()
    processes.worker(billing)
    producer = Celery(broker=billing.settings.celery_broker_url, set_as_current=False)
    good = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "quota": 5}
    bad = [
        {**good, "request_id": new_request_id(), "quota": -5},
        {**good, "request_id": "None"},
        {**good, "request_id": new_request_id(), "surprise": 1},
        {"nothing": "useful"},
    ]
    for log in [*bad, {**good, "request_id": new_request_id()}]:
        producer.send_task("billing.consume", kwargs=log)
    producer.send_task("billing.refund", kwargs={"user_id": "x", "request_id": 5})
    producer.close()
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 5, what="the good one is booked")
    eventually(lambda: len(billing.runtime.ledger.dead_letters()) == 5, what="the bad ones are kept")
    assert {dead_letter.reason for dead_letter in billing.runtime.ledger.dead_letters()} == {"invalid_request"}


def test_expiry_runs_as_a_task(billing: Billing, processes: Processes) -> None:
    payer = billing.payer()
    processes.worker(billing)
    billing.reserve(payer, 100, ttl_seconds=1)
    beat_would_send = {"seconds": 20, "what": "the hold expired and is booked"}

    def expired() -> bool:
        billing.runtime.doorbell.enqueue(names.EXPIRE_HOLDS, str(uuid.uuid4()), {})
        return booked(billing) == 1

    eventually(expired, **beat_would_send)  # type: ignore[arg-type]
    assert billing.available(payer[0]) == 1_000_000


def test_a_killed_worker_loses_nothing_and_charges_nothing_twice(
    make_billing: MakeBilling, processes: Processes
) -> None:
    billing = make_billing(batch_size=5, lease_ms=500, doorbell_ms=500, ring_every_seconds=0.5)
    payers = [billing.payer() for _ in range(4)]
    worker = processes.worker(billing, "doomed")
    for number in range(300):
        billing.use(billing.reserve(payers[number % 4], 100), 40)
        if number == 150:
            worker.send_signal(signal.SIGKILL)
    worker.wait()
    processes.worker(billing, "heir", "--beat", "--schedule", str(processes.folder / "beat"))
    eventually(lambda: drained(billing), what="the heir drained everything")
    assert [billing.accounts.user(user_id).used_quota for user_id, _ in payers] == [75 * 40] * 4


@pytest.mark.slow
def test_a_worker_survives_restarts_of_redis_and_postgresql(tmp_path: Path, processes: Processes) -> None:
    from billing_tasks import Accounts, Bookkeeper, Settings
    from billing_tasks.runtime import Runtime

    with embedded_servers(tmp_path / "own", fast=True) as servers:
        upgrade(servers.database_url)
        urls = {"redis_url": servers.redis_url, "database_url": servers.database_url}
        settings = Settings(**urls)
        runtime = Runtime(settings)
        environment = {f"BILLING_{name.upper()}": value for name, value in urls.items()}
        environment |= {"BILLING_RING_EVERY_SECONDS": "1"}
        billing = Billing(settings, runtime, Bookkeeper(runtime), Accounts(runtime), servers, environment)
        processes.worker(billing, "survivor", "--beat", "--schedule", str(tmp_path / "beat"))
        payer = billing.payer()
        used = 0
        for restart in (servers.postgres.restart, servers.valkey.restart, servers.postgres.restart):
            for _ in range(5):
                billing.use(billing.reserve(payer, 100), 40)
                used += 40
            restart()
            billing.use(billing.reserve(payer, 100), 40)
            used += 40
            eventually(
                lambda: drained(billing) and billing.accounts.user(payer[0]).used_quota == used,  # noqa: B023
                seconds=60,
                what="everything is booked after the restart",
            )
        assert billing.verify().findings == []
        processes.stop()
        runtime.close()
