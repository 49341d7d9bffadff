"""The Celery app of workers, beat and Flower.

At least once everywhere: acknowledged late, delivered again when a worker is
lost (tasks.delivery). That is safe because every write has its own unique key. The
database's own time-outs and a hard limit bound a task. Messages never
expire and carry no long countdowns; what must wait longer is a row.
"""

from __future__ import annotations

import gc
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from billing_tasks.broker import guards, names
from billing_tasks.broker.publisher import FREE_MEMORY
from billing_tasks.settings import Settings, load_settings
from billing_tasks.worker.schedule import beat_schedule
from billing_tasks.worker.tasks import add_tasks


def worker_config(settings: Settings) -> dict[str, Any]:
    """What a worker needs on top of what a producer needs."""
    return {
        **names.broker_config(settings),
        "worker_consumer": "billing_tasks.worker.consumer:Consumer",
        "billing_old_queue": settings.old_queue,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_prefetch_multiplier": 4,
        "worker_eta_task_limit": 1000,
        "worker_soft_shutdown_timeout": 20.0,
        "worker_enable_soft_shutdown_on_idle": True,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "task_track_started": False,
        "beat_schedule": beat_schedule(settings),
        "beat_scheduler": "billing_tasks.worker.beat:Scheduler",
    }


def make_app(settings: Settings) -> Celery:
    """The app as these settings say."""
    made = Celery("billing_tasks")
    made.conf.update(worker_config(settings))
    add_tasks(made, settings)
    return made


guards.install(allowed_when_full=FREE_MEMORY)
app = make_app(load_settings())


@worker_process_init.connect
def _forget_parents_connections(**_: Any) -> None:
    """A forked worker must not speak over its parent's sockets."""
    from billing_tasks.runtime import runtime  # noqa: PLC0415 - not before a worker needs servers

    if runtime.cache_info().currsize:
        runtime().forget_parents_connections()


@worker_process_init.connect
def _spare_what_stays(**_: Any) -> None:
    """All that is loaded by now stays until the process ends: the collector need not look through it again and
    again while a long outbox is drained, and pages shared with the parent stay shared."""
    gc.freeze()


@worker_process_shutdown.connect
def _give_connections_back(**_: Any) -> None:
    from billing_tasks.runtime import runtime  # noqa: PLC0415

    if runtime.cache_info().currsize:
        runtime().close()
