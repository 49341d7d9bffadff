"""Gateway: one process of the traffic, to be killed at any moment.

    python -m chaos.gateway_process FOLDER NAME RATE async|threads

FOLDER has `population.json` and gets the journals, one for each run of the process. SIGTERM ends it
in good order: what has begun comes to its end, nothing new begins.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import cycle, islice
from pathlib import Path

from billing_tasks.admin.accounts import Accounts
from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
from billing_tasks.client.bookkeeper import Bookkeeper
from billing_tasks.runtime import Runtime
from billing_tasks.settings import load_settings
from chaos.clients import AsyncClient, Client, ThreadedClient
from chaos.journal import SUFFIX, Journal
from chaos.population import Population
from chaos.top_ups import TopUps
from chaos.traffic import Traffic

POPULATION_FILE = "population.json"
#: Requests on their way; while servers are away they pile up to this many.
MOST_IN_FLIGHT = 96
THREADS = 24
SPOOL_SECONDS = 25.0
#: After a standstill the clock is let go rather than made up for: no stampede.
LARGEST_DEBT_SECONDS = 0.5


async def run(folder: Path, name: str, rate: float, threads: bool) -> None:
    """Send requests until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    population = Population.load(folder / POPULATION_FILE)
    run_number = len(list(folder.glob(f"{name}.*{SUFFIX}")))
    dice = random.Random(f"{population.seed}:{name}:{run_number}")
    journal = Journal(folder / f"{name}.{run_number:04d}{SUFFIX}")
    runtime = Runtime(load_settings())
    bookkeeper = Bookkeeper(runtime) if threads else AsyncBookkeeper(runtime)
    client: Client = (
        AsyncClient(bookkeeper) if isinstance(bookkeeper, AsyncBookkeeper) else ThreadedClient(bookkeeper, THREADS)
    )
    traffic = Traffic(
        client=client,
        journal=journal,
        dice=dice,
        price=cache(lambda group, model: bookkeeper.price(group=group, model=model)),
        send=runtime.doorbell.enqueue,
        messengers=ThreadPoolExecutor(2),
        poor_users=frozenset(population.poor_users),
        tight_tokens=frozenset(population.tight_tokens),
    )
    top_ups = asyncio.create_task(TopUps(Accounts(runtime), population, journal, dice).work(stop))
    try:
        await _send(traffic, population, rate, stop)
        await top_ups
        await _empty_spool(runtime)
    finally:
        traffic.messengers.shutdown(cancel_futures=True)
        if isinstance(bookkeeper, AsyncBookkeeper):
            await bookkeeper.close()
        else:
            bookkeeper.close()


async def _send(traffic: Traffic, population: Population, rate: float, stop: asyncio.Event) -> None:
    """`rate` requests per second, at most MOST_IN_FLIGHT at a time."""
    requests = population.requests()
    in_flight: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    for request in islice(cycle(requests), traffic.dice.randrange(len(requests)), None):
        due = max(due + 1 / rate, time.monotonic() - LARGEST_DEBT_SECONDS)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, due - time.monotonic()))
        while len(in_flight) >= MOST_IN_FLIGHT and not stop.is_set():
            await asyncio.wait(in_flight, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            break
        task = asyncio.create_task(traffic.run(request))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)
    if in_flight:
        await asyncio.wait(in_flight)


async def _empty_spool(runtime: Runtime) -> None:
    """Wait until what was spooled has been relayed: this gateway is not started again to do it."""
    deadline = time.monotonic() + SPOOL_SECONDS
    while runtime.spool is not None and runtime.spool.waiting() and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


def main(folder: str, name: str, rate: str, kind: str) -> None:
    """The process."""
    asyncio.run(run(Path(folder), name, float(rate), kind == "threads"))


if __name__ == "__main__":
    main(*sys.argv[1:])
