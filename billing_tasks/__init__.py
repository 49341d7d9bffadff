"""billing_tasks: quota reserved inline in Redis, settled by Celery into PostgreSQL.

from billing_tasks import Bookkeeper, AsyncBookkeeper, Accounts, ConsumeLog
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from billing_tasks.admin.accounts import Accounts
    from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
    from billing_tasks.client.bookkeeper import Bookkeeper
    from billing_tasks.client.charge import AsyncCharge, Charge
    from billing_tasks.model.consume_log import ConsumeLog
    from billing_tasks.model.reservation import Receipt, Reservation
    from billing_tasks.pricing import Price
    from billing_tasks.settings import Settings
    from billing_tasks.worker.register import register

__version__ = "0.3.0"

_HOMES = {
    "Accounts": "admin.accounts",
    "AsyncBookkeeper": "client.async_bookkeeper",
    "AsyncCharge": "client.charge",
    "Bookkeeper": "client.bookkeeper",
    "Charge": "client.charge",
    "ConsumeLog": "model.consume_log",
    "Price": "pricing",
    "Receipt": "model.reservation",
    "Reservation": "model.reservation",
    "Settings": "settings",
    "register": "worker.register",
}

__all__ = [
    "Accounts",
    "AsyncBookkeeper",
    "AsyncCharge",
    "Bookkeeper",
    "Charge",
    "ConsumeLog",
    "Price",
    "Receipt",
    "Reservation",
    "Settings",
    "register",
]


def __getattr__(name: str) -> Any:
    # Lazily: `import billing_tasks.pricing` must not pull in Celery, SQLAlchemy and Redis.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
