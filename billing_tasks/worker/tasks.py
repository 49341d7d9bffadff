"""The Celery tasks. Each adapts a message to a flow and reports what Flower shows. An app gets them by `add_tasks`.

`**_` in every signature: a message from a newer producer must not crash an older worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from celery import Celery, Task
from celery.exceptions import Retry

from billing_tasks.admin import Admin
from billing_tasks.admin.reading import filter_from
from billing_tasks.broker import names
from billing_tasks.broker.publisher import SENT_AT_MS
from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.flows.requests import expire, intake
from billing_tasks.flows.settlement import ring, settle
from billing_tasks.model.consume_log import MAX_MOMENT_MS
from billing_tasks.model.ids import now_ms
from billing_tasks.model.validation import check_int, check_text
from billing_tasks.runtime import runtime
from billing_tasks.settings import Settings

R = TypeVar("R")

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

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:  # noqa: ARG002 - Celery's
        """Note when a drainer comes back: `billing-tasks status` says it to whoever waits."""
        when = getattr(getattr(einfo, "exception", None), "when", None)
        if self.name == names.SETTLE and isinstance(when, int | float):
            r = runtime()
            r.run(settle.comes_back(kwargs["shard"], at_ms=now_ms() + int(when * 1000), commands=r.commands))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """As Celery's own, whose `self` a message with a field of that name collides with; here it is kept and told.

        What is tried again by itself, as a dead letter whose turn comes, is RETRY and no FAILURE.
        """
        try:
            return self.run(*args, **kwargs)
        except BillingError as exc:
            if exc.again_in_seconds is None:
                raise
            raise Retry(str(exc), exc=exc, when=round(exc.again_in_seconds)) from exc  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Declared:
    """A task as it is written here, before an app has it."""

    name: str
    run: Callable[..., Any]
    options: dict[str, Any]


DECLARED: list[Declared] = []


def task(name: str, **options: Any) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Declare a task."""

    def declare(run: Callable[..., R]) -> Callable[..., R]:
        DECLARED.append(Declared(name, run, options))
        return run

    return declare


def add_tasks(app: Celery, settings: Settings) -> None:
    """Give an app all of them, delivered as they have to be whatever the app's own defaults are."""
    for declared in DECLARED:
        app.task(base=BillingTask, name=declared.name, **{**delivery(settings), **declared.options})(  # type: ignore[no-untyped-call]
            declared.run
        )


def delivery(settings: Settings) -> dict[str, Any]:
    """At least once: acknowledged when done, delivered again when a worker is lost.

    There are no soft time limits (an exception inside COMMIT would leave its outcome unknown). The hard one must
    outlast a drainer's budget and one statement on top of it.
    """
    time_limit = int(settings.settle_budget_seconds + 2 * settings.statement_timeout_seconds + 30)
    return {
        "acks_late": True,
        "reject_on_worker_lost": True,
        "retry_on_worker_lost": True,
        "acks_on_failure": True,
        "acks_on_timeout": True,
        "acks_on_failure_or_timeout": True,
        "serializer": "json",
        "compression": None,
        "ignore_result": True,
        "track_started": False,
        "rate_limit": 0,
        "time_limit": time_limit,
        "send_events": True,
    }


#: The longest that a drainer waits once PostgreSQL is back. One that finds it away at once costs a few milliseconds.
DRAINER_BACK_SECONDS = 8


@task(names.SETTLE, bind=True, max_retries=None, retry_backoff_max=DRAINER_BACK_SECONDS)
def settle_shard(self: Any, /, shard: int, **_: Any) -> dict[str, object]:
    """Book one shard's outbox. Sent by the doorbell with the request_id that rang. Safe to run twice."""
    r = runtime()
    check_int("shard", shard, 0, r.settings.shards - 1)
    owner = f"{self.request.hostname}:{self.request.id}"
    flow = settle.drain(shard, owner=owner, commands=r.commands, settings=r.settings, now=time.monotonic)
    return r.run(flow).as_dict()


def _attempt(number: object, count: object, asked: dict[str, Any]) -> dict[str, object]:
    """One attempt of a dead letter. Messages of the release before name actor and comment `who` and `why`."""
    actor = check_text("actor", asked.get("actor") or asked.get("who") or "worker", 200)
    comment = check_text("comment", asked.get("comment") or asked.get("why") or "", 2000)
    number = check_int("dead_letter", number, 1)
    count = None if count is None else check_int("attempt", count, 1, 1_000_000)
    return Admin(runtime()).dead_letters.retry(number, actor=actor, comment=comment, attempt=count).as_dict()


@task(names.CONSUME, bind=True, max_retries=None)
def consume_one(
    self: Any, /, *args: Any, dead_letter: int | None = None, attempt: int | None = None, **payload: Any
) -> dict[str, object]:
    """File one ConsumeLog, as a producer sent it, or book a dead letter once more. Safe to run twice."""
    if args:
        payload["args"] = args  # not how it is sent: refused below as an unknown field, and kept
    if dead_letter is not None:
        return _attempt(dead_letter, attempt, payload)
    r = runtime()
    receipt = r.run(intake.consume_message(payload, task_id=self.request.id, commands=r.commands))
    return {
        "request_id": receipt.request_id,
        "quota": receipt.quota,
        "again": receipt.again,
        "late": receipt.late,
    }


def _sent_at_ms(request: Any) -> int | None:
    """When one of our gateways sent the message; None: another program did, or an older release."""
    sent = (request.get("headers") or {}).get(SENT_AT_MS, request.get(SENT_AT_MS))
    return sent if type(sent) is int and 0 <= sent <= MAX_MOMENT_MS else None


#: So often a refund is tried again within a minute, because its charge may be on its way; then it is a dead letter.
PATIENT_RETRIES = 5


@task(names.REFUND, bind=True, max_retries=None)
def refund_one(
    self: Any, /, *args: Any, dead_letter: int | None = None, attempt: int | None = None, **payload: Any
) -> dict[str, object]:
    """Release a hold or reverse a charge, or book a dead letter once more. Safe to run twice."""
    if args:
        payload["args"] = args  # not how it is sent: refused below as an unknown field, and kept
    if dead_letter is not None:
        return _attempt(dead_letter, attempt, payload)
    r = runtime()
    sent_at_ms = _sent_at_ms(self.request)
    patient = self.request.retries < PATIENT_RETRIES
    flow = intake.refund_message(
        payload, task_id=self.request.id, commands=r.commands, sent_at_ms=sent_at_ms, patient=patient
    )
    receipt = r.run(flow)
    return {"request_id": receipt.request_id, "quota": receipt.quota, "again": receipt.again}


@task(names.RETRY_FAILED, max_retries=0, resultrepr_maxsize=16_384)
def retry_failed(
    limit: int = 100,
    due_only: bool = False,
    dry_run: bool = False,
    actor: str = "",
    comment: str = "",
    who: str = "",
    why: str = "",
    **asked: Any,
) -> dict[str, object]:
    """Send dead letters once more, each as a task of its own, or say what that would do. For operators and beat.

    An argument that is not known is refused and not ignored: as a filter it would have kept dead letters out.
    Never retried: beat's next run is the retry, and a person sees the FAILURE.
    `who` and `why`: actor and comment as the release before named them.
    """
    dead_letters = Admin(runtime()).dead_letters
    limit = check_int("limit", limit, 1, 10_000)
    if due_only:
        return dead_letters.send_due(limit=limit).as_dict()
    wanted = filter_from(asked)
    if dry_run:
        return dead_letters.preview_matching(limit=limit, **wanted).as_dict()
    actor = check_text("actor", actor or who, 200) or names.RETRY_FAILED
    comment = check_text("comment", comment or why, 2000)
    return dead_letters.send(actor=actor, comment=comment, limit=limit, **wanted).as_dict()


@task(names.EXPIRE_HOLDS, max_retries=0)
def expire_holds(**_: Any) -> dict[str, object]:
    """Release holds that are due. From beat; the next run is the retry."""
    r = runtime()
    expired = sum(r.run(expire.expire_shard(shard, commands=r.commands)) for shard in range(r.settings.shards))
    return {"expired": expired}


@task(names.RING_STALE, max_retries=0)
def ring_stale(anew: bool = False, **_: Any) -> dict[str, object]:
    """Call drainers for outboxes that no worker drains. From beat; the next run is the retry.

    `anew` comes from a worker that has just started, or found its broker again: calls that were lost are repeated.
    The backlog is part of the result, because Flower sees tasks only, and the events that wait for one are in Redis.
    """
    r = runtime()
    rung = r.run(ring.ring_stale(commands=r.commands, settings=r.settings, anew=anew))
    seen = Admin(r).backlog()
    return {
        "events_waiting": seen.backlog,
        "oldest_seconds": round(seen.oldest_ms / 1000),
        "open_holds": seen.open_holds,
        "shards": rung,
    }


@task(names.RECONCILE, max_retries=0)
def reconcile_all(repair: bool = True, sums: bool = True, **_: Any) -> dict[str, object]:
    """Check the guarantees and set right what is off in Redis; never the ledger. The next run is the retry.

    `sums=False` leaves out the sums over the whole ledger. What a person must see is in the result and in the log.
    """
    done = Admin(runtime()).audit.reconcile(repair=repair, sums=sums)
    for finding in done.before.findings:
        log.error("%s%s", finding, "; repaired" if finding.repair in done.repaired else "")
    return {**done.before.as_dict(), "repaired": [str(one) for one in done.repaired]}


@task(names.MAINTAIN_PARTITIONS)
def maintain_partitions(**_: Any) -> dict[str, object]:
    """Make the months ahead. From beat; `migrate` does the same without a task."""
    return {"created": Admin(runtime()).maintain_partitions()}


@task(names.LEARN_ESTIMATES, max_retries=0)
def learn_estimates(**_: Any) -> dict[str, object]:
    """Learn the length of answers from the ledger. From beat, if it is switched on; the next run is the retry."""
    return {"models": Admin(runtime()).prices.learn_estimates()}
