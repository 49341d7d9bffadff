"""The stores of a process, and the sync runner of flows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.flows.effects import Effect, Enqueue, Flow, InLedger, IntoSpool, Meanwhile, Ring
from billing_tasks.holds.commands import Command, Commands, Pipeline
from billing_tasks.holds.store import HoldStore
from billing_tasks.ledger.reach import Reach
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event
from billing_tasks.model.forks import in_child
from billing_tasks.settings import Settings, load_settings
from billing_tasks.spool.folder import Spool

if TYPE_CHECKING:
    from billing_tasks.broker.publisher import Publisher

T = TypeVar("T")


class Runtime:
    """Redis, PostgreSQL and the doorbell, as the settings say. Nothing connects before the first call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.holds = HoldStore(settings)
        self.ledger = Ledger.from_settings(settings)
        self.holds.installation = self._installation
        self.reach = Reach()
        self.spool = Spool(settings.spool_folder) if settings.spool_folder else None
        self.when_spooled: Callable[[], None] = lambda: None
        in_child(self.forget_parents_connections)

    @functools.cached_property
    def doorbell(self) -> Publisher:
        """The publisher of this process. Loads Celery at the first use; a program that only reads never does."""
        from billing_tasks.broker.publisher import Publisher  # noqa: PLC0415

        return Publisher(self.settings)

    @property
    def commands(self) -> Commands:
        """Builder of commands for Redis."""
        return self.holds.commands

    def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end. An error of an effect is raised inside the flow, which may handle it."""
        try:
            effect = flow.send(None)
            while True:
                try:
                    reply = self.perform(effect)
                except BillingError as exc:
                    effect = flow.throw(exc)
                else:
                    effect = flow.send(reply)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def perform(self, effect: Effect[Any]) -> Any:
        """Do one thing that a flow asked for."""
        match effect:
            case Command():
                return self.holds.send(effect)
            case Pipeline():
                return self.holds.send_all(effect)
            case InLedger():
                self._meet_installation()
                if effect.needed is None:
                    return effect.call(self.ledger)
                with self.reach.asking(needed=effect.needed):
                    return effect.call(self.ledger)
            case Ring():
                return self.doorbell.ring(effect.shard, effect.request_id)
            case Enqueue():
                return self.doorbell.enqueue(effect.task, effect.task_id, effect.kwargs)
            case IntoSpool():
                return self._keep(effect.event)
            case Meanwhile():
                return self._both(effect)

    def _installation(self) -> str:
        with self.reach.asking(needed=True):
            return self.ledger.installation()

    def _meet_installation(self) -> None:
        """Before anything is booked: is Redis this ledger's? Once; while Redis is away that is not known."""
        if not self.holds.installation_checked:
            with suppress(Unavailable):
                self.holds.check_installation()

    def _both(self, effect: Meanwhile[Any]) -> Any:
        """PostgreSQL works in a thread of its own while this one talks to Redis."""
        with ThreadPoolExecutor(1, thread_name_prefix="billing-ledger") as thread:
            asked = thread.submit(effect.ledger.call, self.ledger)
            self.run(effect.others())
        return asked.result()

    def _keep(self, event: Event) -> bool:
        if self.spool is None:
            return False
        self.spool.keep(event)
        self.when_spooled()
        return True

    def forget_parents_connections(self) -> None:
        """In a forked child: leave the parent's connections alone."""
        self.ledger.dispose_after_fork()

    def close(self) -> None:
        """Send waiting rings, close all connections."""
        if "doorbell" in vars(self):
            self.doorbell.close()
        self.holds.close()
        self.ledger.dispose()


@functools.cache
def runtime() -> Runtime:
    """The runtime of this process, from BILLING_* settings. Workers and the command line share it."""
    return Runtime(load_settings())
