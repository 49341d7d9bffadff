"""What a command runs on: the operator's API and the runtime of this process, loaded when a command asks for them.

What a command says of itself is in `admin.types`, which is data. What it runs with comes from here, or is imported
inside its function: `--help` and `--version` load no Celery, no SQLAlchemy and no lab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from billing_tasks.admin import Admin
    from billing_tasks.runtime import Runtime


def runtime() -> Runtime:
    """The runtime of this process, as BILLING_* says."""
    from billing_tasks.runtime import runtime as of_this_process

    return of_this_process()


def admin() -> Admin:
    """The operator's API over it."""
    from billing_tasks.admin import Admin

    return Admin(runtime())
