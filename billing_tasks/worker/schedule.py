"""What beat sends, and how often."""

from __future__ import annotations

from typing import Any

from billing_tasks.broker import names
from billing_tasks.settings import Settings


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Everything here is safe to run twice or late: it looks at what is there and repairs."""
    schedule: dict[str, dict[str, Any]] = {
        "expire-holds": {"task": names.EXPIRE_HOLDS, "schedule": settings.expire_every_seconds},
        "ring-stale": {"task": names.RING_STALE, "schedule": settings.ring_every_seconds},
        "retry-due": {"task": names.RETRY_FAILED, "schedule": 15.0, "kwargs": {"due_only": True}},
        # The sums read the whole ledger, so they come less often than the look at Redis.
        "reconcile": {"task": names.RECONCILE, "schedule": 300.0, "kwargs": {"sums": False}},
        "reconcile-sums": {"task": names.RECONCILE, "schedule": 3600.0},
        "maintain-partitions": {"task": names.MAINTAIN_PARTITIONS, "schedule": 6 * 3600.0},
    }
    if settings.learn_estimates:
        schedule["learn-estimates"] = {"task": names.LEARN_ESTIMATES, "schedule": 600.0}
    return schedule
