"""Twins for asyncio: each method of a class awaited, while it runs in a thread. What it does is written once.

A caller that is cancelled stops waiting; the call in its thread runs to its end. That harms nothing: what
changes something is safe to repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


class Twin(Generic[S]):
    """Base of the twins; S is the class whose methods they await."""

    def __init__(self, twin: S) -> None:
        self._twin = twin


class Awaited(Generic[S, P, R]):
    """A method of S: `find = Awaited(Entries.find)` makes `await entries.find(...)` of it, with its own signature."""

    def __init__(self, method: Callable[Concatenate[S, P], R]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, twin: None, owner: type) -> Self: ...
    @overload
    def __get__(self, twin: Twin[S], owner: type) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __get__(self, twin: Twin[S] | None, owner: type) -> Self | Callable[P, Coroutine[Any, Any, R]]:
        if twin is None:
            return self
        return partial(asyncio.to_thread, self._method, twin._twin)


class Iterated(Generic[S, P, R]):
    """A method of S that yields: `async for result in ...`, one step in a thread for each result."""

    def __init__(self, method: Callable[Concatenate[S, P], Iterator[R]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, twin: None, owner: type) -> Self: ...
    @overload
    def __get__(self, twin: Twin[S], owner: type) -> Callable[P, AsyncIterator[R]]: ...
    def __get__(self, twin: Twin[S] | None, owner: type) -> Self | Callable[P, AsyncIterator[R]]:
        if twin is None:
            return self
        return partial(self._steps, twin._twin)

    async def _steps(self, sync: S, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        results = await asyncio.to_thread(self._method, sync, *args, **kwargs)
        ended = object()
        while (result := await asyncio.to_thread(next, results, ended)) is not ended:
            yield result  # type: ignore[misc]
