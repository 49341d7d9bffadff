"""An effect: something that a flow awaits and that the runner of the flow performs (runtime.py, async_bookkeeper.py).

`reply = await commands.reserve(...)` hands the effect to the runner and goes on with its answer. A flow is a
coroutine that awaits effects and other flows, and nothing else: no event loop is needed to drive it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeAlias, TypeVar

R = TypeVar("R")
T = TypeVar("T")


class Effect(Generic[R]):
    """Base of all effects; R is the answer."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, R]:
        reply: R = yield self
        return reply


#: A story over effects. Its runner starts it with `send(None)`.
Flow: TypeAlias = Coroutine[Any, Any, T]
