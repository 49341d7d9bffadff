"""What a command runs on: the runtime of this process, loaded when a command asks for it.

A command imports what it runs with inside its function, so that `--help` and `--version` load
no Celery, no SQLAlchemy and no lab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from billing_tasks.runtime import Runtime


def runtime() -> Runtime:
    """The runtime of this process, as BILLING_* says."""
    from billing_tasks.runtime import runtime as of_this_process

    return of_this_process()
