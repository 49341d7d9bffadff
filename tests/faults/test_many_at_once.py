"""One stuck user, a storm of rings, a full memory: what is stuck stays alone, and two workers stay calm."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import redis

from billing_tasks import errors
from tests.conftest import Billing
from tests.faults.site import Site
from tests.worker.conftest import Processes, eventually


def used(billing: Billing, user_id: int) -> int:
    return billing.accounts.user(user_id).used_quota


def test_a_users_row_locked_for_long_delays_no_other_shard(site: Site) -> None:
    payers = [site.billing.payer() for _ in range(8)]
    stuck, others = payers[0], [p for p in payers[1:] if p[0] % 12 != payers[0][0] % 12]
    with psycopg.connect(site.billing.settings.database_url) as other:
        other.execute("select from billing.users where id = %s for update", [stuck[0]])
        for times in range(1, 7):  # about a second each: the stuck shard is tried, given up and tried again
            site.billing.use(site.billing.reserve(stuck, 100), 40)
            for payer in others:
                site.billing.use(site.billing.reserve(payer, 100), 40)
            eventually(
                lambda: all(used(site.billing, user_id) == times * 40 for user_id, _ in others),  # noqa: B023
                seconds=10,
                what="the others are booked although one is stuck",
            )
            threading.Event().wait(0.5)  # the lock is held on purpose; nothing to be awaited
        assert used(site.billing, stuck[0]) == 0
        other.rollback()
    eventually(lambda: used(site.billing, stuck[0]) == 6 * 40, seconds=60, what="the stuck one is booked in the end")


def test_a_storm_of_rings_makes_few_messages_and_one_drainer_at_a_time(site: Site) -> None:
    gateways = [site.gateway() for _ in range(4)]
    payers = [site.billing.payer() for _ in range(4)]
    before = len(site.log("w1")), len(site.log("w2"))

    def work(number: int) -> None:
        gateway, payer = gateways[number % 4], payers[number // 4 % 4]
        for _ in range(100):
            gateway.use(gateway.reserve(payer, 10), 4)

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(work, range(32)))
    eventually(lambda: sum(used(site.billing, user_id) for user_id, _ in payers) == 3200 * 4, what="3,200 are booked")
    for gateway in gateways:
        gateway.bk.close()
    written = site.log("w1")[before[0] :] + site.log("w2")[before[1] :]
    messages = written.count("Task billing.settle[") // 2  # received, succeeded
    assert 0 < messages < 320
    # Two drainers of one shard would have read the same events.
    assert {int(n) for n in re.findall(r"'duplicates': (\d+)", written)} == {0}


@pytest.mark.parametrize("from_when", ["full before the worker starts", "full while it runs"])
def test_a_full_memory_refuses_reservations_alone_and_empties_itself(
    billing: Billing, processes: Processes, from_when: str
) -> None:
    """One Redis for quota and broker, which is the default: rings and tasks must pass, too."""
    payer = billing.payer()
    reservations = [billing.reserve(payer, 100) for _ in range(50)]
    client = redis.Redis.from_url(f"{billing.settings.redis_url}?db=0")
    beat = ("--beat", "--schedule", str(processes.folder / "beat"))
    try:
        if from_when == "full while it runs":
            processes.worker(billing, "w1", *beat)
        client.config_set("maxmemory", "1mb")
        with pytest.raises(errors.HoldNotWritten, match="maxmemory"):
            billing.reserve(payer, 100)
        for reservation in reservations[:40]:
            assert not billing.use(reservation, 40).posted  # filed in Redis, not booked past it
        for reservation in reservations[40:]:
            billing.bk.refund_quota(reservation)
        billing.runtime.doorbell.close()
        for shard in range(billing.settings.shards):  # the ring is lost; beat's must do
            billing.redis("DEL", billing.runtime.commands.keys.doorbell(shard))
        if from_when != "full while it runs":
            processes.worker(billing, "w1", *beat)
        eventually(lambda: used(billing, payer[0]) == 1600, what="the outbox drains")
        eventually(lambda: billing.verify().backlog == 0)
    finally:
        client.config_set("maxmemory", 0)
    assert billing.available(payer[0]) == 1_000_000 - 1600
    assert processes.running[0].poll() is None
