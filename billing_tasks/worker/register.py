"""Billing's tasks inside a web app's own Celery app, so that one fleet, one beat and one Flower serve both.

    app = Celery("shop", broker="redis://...")
    billing_tasks.register(app)

The tasks bring their delivery settings with them, whatever the app's are for its own tasks. What would lose or double
money all the same is refused when the app is registered, and not met in production.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from kombu import Queue

from billing_tasks.broker import guards
from billing_tasks.broker.publisher import FREE_MEMORY
from billing_tasks.errors import BadSettings
from billing_tasks.settings import Settings, load_settings, redact
from billing_tasks.worker.schedule import beat_schedule
from billing_tasks.worker.tasks import DECLARED, add_tasks, delivery

log = logging.getLogger(__name__)

#: What a task must be delivered with; an annotation of the app may not say otherwise.
_MUST = ("acks_late", "reject_on_worker_lost", "serializer", "rate_limit")


def register(app: Celery, settings: Settings | None = None, *, beat: bool = True) -> None:
    """Give `app` billing's tasks, their queue, their routes and, unless `beat=False`, their schedule.

    The app's workers then consume the queue BILLING_QUEUE as well; one that is started with `-Q` has to name it. Call
    it once, where the app is made. Raises BadSettings for settings of the app that would lose or double money.
    """
    settings = settings or load_settings()
    _check(app, settings)
    guards.install(allowed_when_full=FREE_MEMORY)
    _join_queue(app, settings)
    add_tasks(app, settings)
    app.conf.task_routes = [{"billing.*": {"queue": settings.queue}}, *_as_list(app.conf.task_routes)]
    if beat:
        app.conf.beat_schedule = {**(app.conf.beat_schedule or {}), **_schedule(settings)}
    app.on_after_finalize.connect(lambda sender, **_: _check_tasks(sender, settings), weak=False)


def _check(app: Celery, settings: Settings) -> None:
    broker = app.conf.broker_write_url or app.conf.broker_url or ""
    if _same(broker) != _same(settings.celery_broker_url):
        raise BadSettings(
            f"The app's broker is {redact(str(broker)) or 'not set'}, and gateways ring at"
            f" {redact(settings.celery_broker_url)}. Set BILLING_BROKER_URL to the app's broker, everywhere."
        )
    if "json" not in app.conf.accept_content and "application/json" not in app.conf.accept_content:
        raise BadSettings(
            f"The app accepts {', '.join(app.conf.accept_content)}, and billing's tasks are JSON: its workers would"
            " discard them. Add 'json' to accept_content."
        )
    options = app.conf.broker_transport_options or {}
    longest = int(delivery(settings)["time_limit"])
    visible = options.get("visibility_timeout")
    if visible is not None and visible <= longest:
        raise BadSettings(
            f"broker_transport_options' visibility_timeout is {visible} s, and a task of billing may run for"
            f" {longest} s: each long one would be delivered again while it runs. Set it above that."
        )
    if app.conf.task_soft_time_limit:
        raise BadSettings(
            "task_soft_time_limit interrupts every task, also inside COMMIT, where nobody could say what was booked."
            " Set soft_time_limit on your own tasks instead."
        )
    for pattern, annotation in _annotations(app):
        wrong = sorted(set(annotation) & {*_MUST, "soft_time_limit", "time_limit"})
        if wrong and (pattern == "*" or pattern.startswith("billing.")):
            raise BadSettings(
                f"task_annotations[{pattern!r}] changes {', '.join(wrong)} of billing's tasks. Annotate your own tasks"
                " by name."
            )


def _annotations(app: Celery) -> list[tuple[str, dict[str, Any]]]:
    given = app.conf.task_annotations or ()
    tables = given if isinstance(given, list | tuple) else (given,)
    return [item for table in tables if isinstance(table, dict) for item in table.items()]


def _same(url: object) -> str:
    """A broker's address in one spelling, as far as two may differ that mean the same."""
    text = str(url).strip().rstrip("/")
    scheme, _, rest = text.partition("://")
    if scheme.startswith("redis") and not rest.partition("/")[2] and "+socket" not in scheme:
        rest = f"{rest}/0"
    return f"{scheme}://{rest}".replace("127.0.0.1", "localhost")


def _join_queue(app: Celery, settings: Settings) -> None:
    """Its workers consume the queue beside those they consume already."""
    queue = Queue(settings.queue, routing_key=settings.queue)
    declared = list(app.conf.task_queues or ())
    if not declared:
        default = app.conf.task_default_queue
        declared = [Queue(default, routing_key=app.conf.task_default_routing_key or default)]
    if settings.queue not in [one.name for one in declared]:
        app.conf.task_queues = [*declared, queue]
        if "amqp" in vars(app):
            app.amqp.queues.add(queue)


def _as_list(routes: Any) -> list[Any]:
    if not routes:
        return []
    return list(routes) if isinstance(routes, list | tuple) else [routes]


def _schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        f"billing-{name}": {**entry, "options": {"queue": settings.queue}}
        for name, entry in beat_schedule(settings).items()
    }


def _check_tasks(app: Celery, settings: Settings) -> None:
    """What the app made of them: a base class or a signal of its own may have changed more than its settings say."""
    wanted = delivery(settings)
    for declared in DECLARED:
        task = app.tasks[declared.name]
        changed = [name for name in _MUST if getattr(task, name) != wanted[name]]
        if changed:
            log.error(
                "task %s of billing is delivered with another %s than it has to be", task.name, ", ".join(changed)
            )
