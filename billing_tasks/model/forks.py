"""What an object has to do in a forked child. The process keeps what it is told for ever, so it is told one thing."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_methods: set[weakref.WeakMethod[Callable[[], Any]]] = set()


def in_child(method: Callable[[], Any]) -> None:
    """Have a bound method called in each forked child, for as long as its object lives."""
    _methods.add(weakref.WeakMethod(method, _methods.discard))


def _call_all() -> None:
    for reference in list(_methods):
        method = reference()
        if method is not None:
            method()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_call_all)
