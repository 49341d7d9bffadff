"""The operator's API: accounts, entries, dead letters, status, incidents, audit. Doors present it.

from billing_tasks.admin import Admin, AsyncAdmin
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from billing_tasks.admin.accounts import Accounts
    from billing_tasks.admin.admin import Admin
    from billing_tasks.admin.async_admin import AsyncAdmin
    from billing_tasks.admin.paging import Page

_HOMES = {"Accounts": "accounts", "Admin": "admin", "AsyncAdmin": "async_admin", "Page": "paging"}

__all__ = ["Accounts", "Admin", "AsyncAdmin", "Page"]


def __getattr__(name: str) -> Any:
    # Lazily: a gateway that needs only Accounts must not wait for the rest.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
