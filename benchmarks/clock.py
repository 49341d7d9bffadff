"""Calls timed one by one, in nanoseconds, from a number of threads or of asyncio tasks at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def time_calls(call: Callable[[T], object], items: Sequence[T], at_once: int) -> list[int]:
    """Each call's nanoseconds; `at_once` threads share the items. What a call raises is raised here."""
    if at_once == 1:
        return _timed(call, items)
    together = threading.Barrier(at_once)
    taken: list[list[int]] = [[] for _ in range(at_once)]
    raised: list[BaseException] = []

    def work(number: int) -> None:
        try:
            together.wait()
            taken[number] = _timed(call, items[number::at_once])
        except BaseException as exc:
            raised.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return [ns for part in taken for ns in part]


def _timed(call: Callable[[T], object], items: Sequence[T]) -> list[int]:
    taken = []
    for item in items:
        began = time.perf_counter_ns()
        call(item)
        taken.append(time.perf_counter_ns() - began)
    return taken


async def time_awaited(call: Callable[[T], Awaitable[object]], items: Sequence[T], at_once: int) -> list[int]:
    """Each call's nanoseconds; `at_once` asyncio tasks share the items."""
    taken: list[int] = []

    async def work(own: Sequence[T]) -> None:
        for item in own:
            began = time.perf_counter_ns()
            await call(item)
            taken.append(time.perf_counter_ns() - began)

    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(work(items[number::at_once]))
    return taken
