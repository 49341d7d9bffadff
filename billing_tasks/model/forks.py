"""What an object has to do in a forked child. The process keeps what it is told for ever, so it is told one thing."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

# No WeakMethod: at the end of a program its callback meets what is gone already, and Python 3.14 says so on stderr.
_methods: weakref.WeakKeyDictionary[object, Callable[[Any], Any]] = weakref.WeakKeyDictionary()


def in_child(method: Callable[[], Any]) -> None:
    """Have a bound method called in each forked child, for as long as its object lives. One per object."""
    bound: Any = method
    _methods[bound.__self__] = bound.__func__


def _call_all() -> None:
    for owner, method in list(_methods.items()):
        method(owner)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_call_all)
