"""Gateway processes: whole requests (reserve, then consume), as fast as one process makes them.

Spawned, not forked, like the processes of a real gateway; each connects, warms its
accounts, says that it is ready and waits for the word. They end with us.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.backlog import MAX_TOKENS, PROMPT_TOKENS, make_log, some_users
from benchmarks.environment import GROUP, MODEL
from benchmarks.opponents import plain_port
from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
from billing_tasks.settings import Settings

AT_ONCE = 32
WARM_UP = 2 * AT_ONCE  # requests of each process that are not measured

Latencies = dict[str, list[int]]
#: Returns when the traffic may begin; to be called once everything is connected and warm.
Word = Callable[[], None]
#: What a process runs: settings, requests, users, seed, word -> nanoseconds by operation.
Traffic = Callable[[Settings, int, int, int, Word], Latencies]


def our_traffic(settings: Settings, requests: int, users: int, seed: int, word: Word) -> Latencies:
    """An asyncio gateway with AT_ONCE requests in flight; the upstream answers at once."""
    return asyncio.run(_our_traffic(settings, requests, users, seed, word))


async def _our_traffic(settings: Settings, requests: int, users: int, seed: int, word: Word) -> Latencies:
    taken: Latencies = {"reserve": [], "consume": []}
    async with AsyncBookkeeper.from_settings(settings) as bk:
        price = bk.price(model=MODEL, group=GROUP)
        held = price.estimate(PROMPT_TOKENS, MAX_TOKENS)

        async def work(numbers: Iterator[tuple[int, int]]) -> None:
            for number, user in numbers:
                began = time.perf_counter_ns()
                reservation = await bk.pre_consume_quota(held, user_id=user, token_id=user, price=price)
                between = time.perf_counter_ns()
                await bk.consume(make_log(reservation, number))
                taken["reserve"].append(between - began)
                taken["consume"].append(time.perf_counter_ns() - between)

        async def make(count: int) -> None:
            numbers = enumerate(some_users(count, users, seed=seed))
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work(numbers))

        await make(WARM_UP)
        for latencies in taken.values():
            latencies.clear()
        await asyncio.to_thread(word)
        await make(requests)
    return taken


def plain_traffic(settings: Settings, requests: int, users: int, seed: int, word: Word) -> Latencies:
    """A gateway process of the plain Celery port."""
    with plain_port.requester(settings, users, seed=seed) as make_requests:
        make_requests(WARM_UP)
        word()
        make_requests(requests)
    return {}


def run_gateways(
    traffic: Traffic, settings: Settings, *, processes: int, requests: int, users: int, started: Callable[[], None]
) -> Latencies:
    """All requests, shared out; `started` is called at the word. Raises RuntimeError if a process dies."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as cleanup:
        pipes: list[Any] = []
        for number in range(processes):
            ours, theirs = context.Pipe()
            arguments = (theirs, traffic, settings, requests // processes, users, number)
            process = context.Process(target=_process, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that its death is our end of file
            cleanup.callback(process.join, 5)
            cleanup.callback(process.terminate)
            pipes.append(ours)
        for pipe in pipes:
            _receive(pipe)
        started()
        for pipe in pipes:
            pipe.send("go")
        answers: list[Latencies] = [_receive(pipe) for pipe in pipes]
    return {name: [ns for answer in answers for ns in answer[name]] for name in answers[0]}


def _receive(pipe: Any) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a gateway process died; its error is above") from None


def _process(
    pipe: Connection[Any, Any], traffic: Traffic, settings: Settings, requests: int, users: int, seed: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us all; the parent decides

    def word() -> None:
        pipe.send("ready")
        pipe.recv()

    pipe.send(traffic(settings, requests, users, seed, word))
