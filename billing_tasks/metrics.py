"""Metrics for Prometheus: how much waits, what failed, what may be missing. Asked for at each scrape.

A server that is away is `billing_up 0`; the others are still told.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from billing_tasks.admin import Admin
from billing_tasks.admin.status import Kept
from billing_tasks.admin.types import SetupWarning, Watched
from billing_tasks.runtime import Runtime


class Watcher(Collector):
    """Looks at Redis and PostgreSQL whenever Prometheus scrapes."""

    def __init__(self, runtime: Runtime) -> None:
        self._admin = Admin(runtime)
        self._kept: Kept | None = None  # what PostgreSQL said last

    def describe(self) -> list[Metric]:
        """Nothing: registering must not need a server."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics that can be read now."""
        seen = self._admin.status(workers=False)
        up = GaugeMetricFamily("billing_up", "1 if the server answered", labels=["server"])
        up.add_metric(["redis"], 0 if seen.redis is None else 1)
        up.add_metric(["postgresql"], 0 if seen.postgresql is None else 1)
        if seen.redis is not None:
            yield from _of_redis(seen.redis)
        self._kept = seen.postgresql or self._kept
        if self._kept is not None:  # `billing_up` says whether it is of now: an alert must not end with the server
            yield from _of_postgresql(self._kept)
        yield up
        yield _of_setup(seen.warnings)


def _of_redis(seen: Watched) -> list[Metric]:
    return [
        _gauge("billing_outbox_events", "Events that wait to be booked", seen.backlog),
        _gauge("billing_outbox_oldest_seconds", "How long the oldest of them has waited", seen.oldest_ms / 1000),
        _gauge("billing_open_holds", "Holds that are open", seen.open_holds),
    ]


def _of_postgresql(seen: Kept) -> list[Metric]:
    dead_letters = GaugeMetricFamily("billing_dead_letters", "Dead letters by state", labels=["state"])
    for state, count in seen.dead_letters.items():
        dead_letters.add_metric([state.value], count)
    reasons = GaugeMetricFamily("billing_open_dead_letters", "Open dead letters by reason", labels=["reason"])
    oldest = GaugeMetricFamily(
        "billing_open_dead_letters_oldest_seconds", "How long the oldest of them has been open", labels=["reason"]
    )
    for one in seen.reasons:
        reasons.add_metric([one.reason], one.count)
        oldest.add_metric([one.reason], one.oldest_seconds)
    return [
        dead_letters,
        reasons,
        oldest,
        _gauge(
            "billing_incidents",
            "Signs that events were lost or came back that nobody has closed; a restart that lost nothing is none",
            seen.missing.incidents,
        ),
        _gauge(
            "billing_events_missing", "Events known to be lost that nobody has seen to, at least", seen.missing.events
        ),
    ]


def _of_setup(warnings: list[SetupWarning]) -> Metric:
    gauge = GaugeMetricFamily(
        "billing_setup_warning", "1: a server is set so that the guarantees don't hold", labels=["code"]
    )
    for warning in warnings:
        gauge.add_metric([warning.code], 1)
    return gauge


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=value)
