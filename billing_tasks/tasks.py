"""The Celery tasks. Each adapts a message to a flow and reports what Flower shows.

`**_` in every signature: a message from a newer producer must not crash an older worker.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Task

from billing_tasks import messages
from billing_tasks.celery import app
from billing_tasks.checks import check_int, check_text
from billing_tasks.errors import BillingError, InvalidRequest, Refused, Unavailable
from billing_tasks.flows import consume, expire, letters, refund, retry, ring, settle, verify
from billing_tasks.intake import consume_log_from, give_back_from
from billing_tasks.runtime import runtime

log = logging.getLogger(__name__)


class BillingTask(Task):  # type: ignore[type-arg]
    """Retries what repeating can heal; everything else is FAILURE in Flower and a row for a person.

    consume and refund are retried for as long as the servers are away: their message is all there is.
    """

    abstract = True
    autoretry_for = (Unavailable,)
    max_retries = 8
    retry_backoff = 2
    retry_backoff_max = 60
    retry_jitter = True
    default_retry_delay = 5
    throws = (BillingError,)  # expected: one line in the log, no traceback


@app.task(base=BillingTask, bind=True, name=messages.SETTLE, max_retries=None, retry_backoff_max=30)
def settle_shard(self: Any, /, shard: int, **_: Any) -> dict[str, object]:
    """Book one shard's outbox. Sent by the doorbell with the request_id that rang. Safe to run twice."""
    r = runtime()
    check_int("shard", shard, 0, r.settings.shards - 1)
    owner = f"{self.request.hostname}:{self.request.id}"
    flow = settle.drain(shard, owner=owner, commands=r.commands, settings=r.settings, now=time.monotonic)
    return r.run(flow).as_dict()


def _attempt(number: object, count: object) -> dict[str, object]:
    r = runtime()
    number = check_int("dead_letter", number, 1)
    count = None if count is None else check_int("attempt", count, 1, 1_000_000)
    flow = retry.attempt(number, who="worker", commands=r.commands, settings=r.settings, count=count)
    return r.run(flow).as_dict()


@app.task(base=BillingTask, bind=True, name=messages.CONSUME, max_retries=None)
def consume_one(
    self: Any, /, dead_letter: int | None = None, attempt: int | None = None, **payload: Any
) -> dict[str, object]:
    """File one ConsumeLog, as a producer sent it, or book a dead letter once more. Safe to run twice."""
    r = runtime()
    if dead_letter is not None:
        return _attempt(dead_letter, attempt)
    try:
        consume_log = consume_log_from(payload)
        receipt = r.run(consume.consume(consume_log, commands=r.commands))
    except InvalidRequest as exc:
        r.run(letters.keep([letters.of_message("consume", payload, exc, task_id=self.request.id)]))
        raise
    return {
        "request_id": receipt.request_id,
        "quota": receipt.quota,
        "again": receipt.again,
        "late": receipt.late,
    }


@app.task(base=BillingTask, bind=True, name=messages.REFUND, max_retries=None)
def refund_one(
    self: Any, /, dead_letter: int | None = None, attempt: int | None = None, **payload: Any
) -> dict[str, object]:
    """Release a hold or reverse a charge, or book a dead letter once more. Safe to run twice."""
    r = runtime()
    if dead_letter is not None:
        return _attempt(dead_letter, attempt)
    try:
        receipt = r.run(refund.give_back(give_back_from(payload), commands=r.commands))
    except Refused as exc:
        r.run(letters.keep([letters.of_message("refund", payload, exc, task_id=self.request.id)]))
        raise
    return {"request_id": receipt.request_id, "quota": receipt.quota, "again": receipt.again}


@app.task(base=BillingTask, name=messages.RETRY_FAILED)
def retry_failed(kind: str | None = None, limit: int = 100, due_only: bool = False, **_: Any) -> dict[str, object]:
    """Send dead letters once more, each as a task of its own. For operators (Flower, command line) and beat."""
    r = runtime()
    kind = None if kind is None else check_text("kind", kind, 20)
    check_int("limit", limit, 1, 10_000)
    sent = r.run(retry.send_again(kind=kind, limit=limit, due_only=due_only))
    return {"sent": len(sent), "request_ids": sent[:20]}


@app.task(base=BillingTask, name=messages.EXPIRE_HOLDS, max_retries=0)
def expire_holds(**_: Any) -> dict[str, object]:
    """Release holds that nobody came back for. From beat; the next run is the retry."""
    r = runtime()
    expired = sum(r.run(expire.expire_shard(shard, commands=r.commands)) for shard in range(r.settings.shards))
    return {"expired": expired}


@app.task(base=BillingTask, name=messages.RING_STALE, max_retries=0)
def ring_stale(**_: Any) -> dict[str, object]:
    """Call drainers for outboxes that nobody drains. From beat; the next run is the retry."""
    r = runtime()
    return {"shards": r.run(ring.ring_stale(commands=r.commands))}


@app.task(base=BillingTask, name=messages.RECONCILE, max_retries=0)
def reconcile_all(**_: Any) -> dict[str, object]:
    """Check the guarantees. Whatever is off is in the result and in the log; nothing is changed."""
    r = runtime()
    report = verify.check(holds=r.holds, ledger=r.ledger)
    for finding in report.findings:
        log.error("%s", finding)
    return report.as_dict()


@app.task(base=BillingTask, name=messages.MAINTAIN_PARTITIONS)
def maintain_partitions(**_: Any) -> dict[str, object]:
    """Make the months ahead. From beat and from `migrate`."""
    return {"created": runtime().ledger.maintain_partitions()}
