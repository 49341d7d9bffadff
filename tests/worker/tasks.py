"""The tasks as the app has them, under the names of their functions; `module` is where their `runtime` is looked up."""

from billing_tasks.celery import app
from billing_tasks.worker import tasks as module
from billing_tasks.worker.tasks import DECLARED

__all__ = ["module", "task_of"]


def task_of(function: str):  # type: ignore[no-untyped-def]
    """The Celery task that was declared by this function."""
    (name,) = [declared.name for declared in DECLARED if declared.run.__name__ == function]
    return app.tasks[name]
