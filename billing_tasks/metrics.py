"""Metrics for Prometheus: how much waits, what failed, what may be missing. Asked for at each scrape.

A server that is away is `billing_up 0`; the others are still told.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from billing_tasks.errors import BillingError
from billing_tasks.flows.audit.backlog import watch
from billing_tasks.runtime import Runtime


class Watcher(Collector):
    """Looks at Redis and PostgreSQL whenever somebody scrapes."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def describe(self) -> list[Metric]:
        """Nothing: registering must not need a server."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics that can be read now."""
        up = GaugeMetricFamily("billing_up", "1 if the server answered", labels=["server"])
        for server, look in (("redis", self._redis), ("postgresql", self._postgresql)):
            try:
                seen = look()
            except BillingError:
                up.add_metric([server], 0)
            else:
                up.add_metric([server], 1)
                yield from seen
        yield up

    def _redis(self) -> list[Metric]:
        seen = self._runtime.run(watch(commands=self._runtime.commands))
        return [
            _gauge("billing_outbox_events", "Events that wait to be booked", seen.backlog),
            _gauge("billing_outbox_oldest_seconds", "How long the oldest of them has waited", seen.oldest_ms / 1000),
            _gauge("billing_open_holds", "Holds that are open", seen.open_holds),
        ]

    def _postgresql(self) -> list[Metric]:
        ledger = self._runtime.ledger
        dead_letters = GaugeMetricFamily("billing_dead_letters", "Dead letters by state", labels=["state"])
        for state, count in ledger.count_dead_letters().items():
            dead_letters.add_metric([state.value], count)
        missing = ledger.count_missing()
        return [
            dead_letters,
            _gauge("billing_incidents", "Signs that events of an outbox were lost or came back", missing.incidents),
            _gauge("billing_events_missing", "Events known to be lost with Redis, at least", missing.events),
        ]


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=value)
