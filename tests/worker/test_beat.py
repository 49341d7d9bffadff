"""Beat sends what is due, and does not fill a broker that nobody reads."""

from __future__ import annotations

from pathlib import Path

import redis

from tests.conftest import Billing
from tests.worker.conftest import Processes, eventually


def test_beat_does_not_fill_a_broker_that_nobody_reads(billing: Billing, processes: Processes, tmp_path: Path) -> None:
    broker = redis.Redis.from_url(f"{billing.settings.redis_url}?db=0")
    broker.flushdb()
    broker.lpush("billing", *(["x"] * 2000))
    beat = ("beat", "--schedule", str(tmp_path / "schedule"), "--pidfile", "", "--max-interval", "1")
    processes.celery(billing, "beat", *beat, BILLING_RING_EVERY_SECONDS="1", BILLING_EXPIRE_EVERY_SECONDS="1")
    log = processes.logs[-1]
    eventually(lambda: log.read_text().count("ring-stale is left out") >= 4, what="beat holds back")
    first_of_each = 6
    assert broker.llen("billing") <= 2000 + first_of_each
    broker.delete("billing")
    eventually(lambda: int(broker.llen("billing")) >= 3, what="beat sends again")  # type: ignore[arg-type]
    broker.flushdb()
