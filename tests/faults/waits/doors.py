"""The doors: everything that a caller may wait at, each as a call that is made by many at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from billing_tasks import AsyncBookkeeper, Bookkeeper, ConsumeLog, Reservation, Settings, errors
from billing_tasks.admin import Admin
from billing_tasks.broker.names import CONSUME
from billing_tasks.metrics import Watcher
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import Runtime

#: Who is at each door at once.
CALLERS = 12
#: A call that has not come back by then hangs.
HANGS_SECONDS = 90.0

PAYER = {"user_id": 42, "token_id": 7}
COLD = {"user_id": 43, "token_id": 8}


@dataclass
class Waited:
    """The longest wait at a door, and what the callers were told."""

    seconds: float
    told: set[str] = field(default_factory=set)


def usage() -> ConsumeLog:
    return ConsumeLog(request_id=new_request_id(), channel_id=3, quota=1, **PAYER)


class Site:
    """A gateway in both styles, warm, with connections that are open; and an operator."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bk = Bookkeeper.from_settings(settings)
        self.admin = Admin.from_settings(settings)
        self.watcher = CollectorRegistry(auto_describe=False)
        self.runtime = Runtime(settings)
        self.watcher.register(Watcher(self.runtime))
        self.reservations: list[Reservation] = []

    def warm(self) -> None:
        """Open connections, load the account, make holds that are to be released."""
        with ThreadPoolExecutor(CALLERS) as threads:
            list(threads.map(lambda _: self.bk.consume(usage()), range(CALLERS)))
            reserve = lambda _: self.bk.pre_consume_quota(1, **PAYER)  # noqa: E731
            self.reservations = list(threads.map(reserve, range(2 * CALLERS)))
        self.admin.status(workers=False)
        self.runtime.doorbell.enqueue(CONSUME, new_request_id(), {"user_id": 42})
        generate_latest(self.watcher)

    def close(self) -> None:
        self.bk.close()
        self.admin.close()
        self.runtime.close()


Door = Callable[[Site], Any]
AsyncDoor = Callable[[AsyncBookkeeper], Awaitable[Any]]

DOORS: dict[str, Door] = {
    "reserve, account cached": lambda site: site.bk.pre_consume_quota(1, **PAYER),
    "reserve, account not cached": lambda site: site.bk.pre_consume_quota(1, **COLD),
    "consume": lambda site: site.bk.consume(usage()),
    "release": lambda site: site.bk.refund_quota(site.reservations.pop()),
    "renew": lambda site: site.bk.renew(site.reservations[0]),
    "refund a charge": lambda site: site.bk.refund_charge(
        user_id=42, request_id=new_request_id(), refund_id=new_request_id()
    ),
    "look at a balance": lambda site: site.bk.user_has_enough_quota(42, 1),
    "send a task": lambda site: site.runtime.doorbell.enqueue(CONSUME, new_request_id(), {"user_id": 42}),
    "Admin: a user": lambda site: site.admin.accounts.user(42),
    "Admin: status": lambda site: site.admin.status(),
    "metrics": lambda site: generate_latest(site.watcher),
}
ASYNC_DOORS: dict[str, AsyncDoor] = {
    "reserve, account cached": lambda bk: bk.pre_consume_quota(1, **PAYER),
    "reserve, account not cached": lambda bk: bk.pre_consume_quota(1, **COLD),
    "consume": lambda bk: bk.consume(usage()),
    "refund a charge": lambda bk: bk.refund_charge(user_id=42, request_id=new_request_id(), refund_id=new_request_id()),
    "look at a balance": lambda bk: bk.user_has_enough_quota(42, 1),
}


def wait_at(site: Site, door: Door) -> Waited:
    """All callers at once, threads."""
    waited = Waited(0.0)

    def one(_: int) -> float:
        began = time.monotonic()
        try:
            door(site)
        except errors.BillingError as exc:
            waited.told.add(type(exc).__name__)
        return time.monotonic() - began

    with ThreadPoolExecutor(CALLERS) as threads:
        waited.seconds = max(threads.map(one, range(CALLERS)))
    return waited


async def wait_at_async(bk: AsyncBookkeeper, door: AsyncDoor) -> Waited:
    """All callers at once, tasks of one loop. A loop that is blocked shows as a wait, too."""
    waited = Waited(0.0)

    async def one() -> float:
        began = time.monotonic()
        try:
            await asyncio.wait_for(door(bk), HANGS_SECONDS)
        except (errors.BillingError, TimeoutError) as exc:
            waited.told.add(type(exc).__name__)
        return time.monotonic() - began

    waited.seconds = max(await asyncio.gather(*(one() for _ in range(CALLERS))))
    return waited


def command_line(environment: dict[str, str], *arguments: str) -> Waited:
    """One command, the start of its process included."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "from billing_tasks.cli import main; main()", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=HANGS_SECONDS,
        check=False,
    )
    return Waited(time.monotonic() - began)
