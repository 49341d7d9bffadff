"""Redis's clock had run ahead and was set back: what it dated is not believed."""

from __future__ import annotations

import pytest

from billing_tasks import errors
from billing_tasks.flows.audit import reconcile
from billing_tasks.flows.settlement import ring
from billing_tasks.holds.outcomes import Lease
from billing_tasks.holds.repairs import Repair
from tests.conftest import Billing, Payer

TEN_YEARS_MS = 315_360_000_000


def ahead(billing: Billing, payer: Payer) -> None:
    """The user's row was cached ten years from now."""
    billing.redis("HINCRBY", billing.user_key(payer[0]), "loaded_at", TEN_YEARS_MS)


def findings(billing: Billing) -> set[str]:
    return {finding.what for finding in billing.verify().findings}


def repaired(billing: Billing) -> list[Repair]:
    wanted = [finding.repair for finding in billing.verify().findings if finding.repair is not None]
    flow = reconcile.repair(wanted, commands=billing.runtime.commands, settings=billing.settings)
    return billing.runtime.run(flow)


def test_a_row_cached_in_the_future_is_read_again(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.reserve(payer, 100)
    ahead(billing, payer)
    billing.sql("update billing.users set quota = 150 where id = %s", payer[0])
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 51)
    assert billing.reserve(payer, 50).held_quota == 50


def test_a_balance_cached_in_the_future_is_read_again(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.reserve(payer, 100)
    ahead(billing, payer)
    billing.sql("update billing.users set quota = 150 where id = %s", payer[0])
    assert billing.available(payer[0]) == 50


def test_verify_names_it_and_reconcile_sets_it_right(billing: Billing) -> None:
    payer = billing.payer(1000)
    hold = billing.reserve(payer, 100)
    keys = billing.runtime.commands.keys
    billing.redis("ZINCRBY", keys.due(keys.shard_of(payer[0])), TEN_YEARS_MS, hold.request_id)
    ahead(billing, payer)
    assert findings(billing) == {
        "user cached in the future, in ms since 1970",
        "hold that is due too late, in ms since 1970",
    }
    assert len(repaired(billing)) == 2
    assert findings(billing) == set()


def test_a_hold_that_is_due_in_ten_years_expires_after_a_ttl(billing: Billing) -> None:
    payer = billing.payer(1000)
    hold = billing.reserve(payer, 100)
    keys = billing.runtime.commands.keys
    due = keys.due(keys.shard_of(payer[0]))
    right = float(billing.redis("ZSCORE", due, hold.request_id))
    billing.redis("ZINCRBY", due, TEN_YEARS_MS, hold.request_id)
    assert billing.expire() == 0
    assert abs(float(billing.redis("ZSCORE", due, hold.request_id)) - right) < 60_000
    billing.use(hold, 100)
    billing.settle()


def test_a_hold_that_lasts_a_day_is_left_alone(billing: Billing) -> None:
    payer = billing.payer(1000)
    hold = billing.reserve(payer, 100, ttl_seconds=86_400)
    keys = billing.runtime.commands.keys
    due = keys.due(keys.shard_of(payer[0]))
    right = billing.redis("ZSCORE", due, hold.request_id)
    assert billing.expire() == 0
    assert billing.redis("ZSCORE", due, hold.request_id) == right
    assert findings(billing) == set()


def test_a_lease_and_a_doorbell_of_the_future_stop_no_shard(billing: Billing) -> None:
    payer = billing.payer(1000)
    keys = billing.runtime.commands.keys
    shard = keys.shard_of(payer[0])
    for key in (keys.drainer(shard), keys.doorbell(shard)):
        billing.redis("SET", key, "of the future", "PX", TEN_YEARS_MS)
    billing.use(billing.reserve(payer, 100), 100)
    assert billing.runtime.run(ring.ring_stale(commands=billing.runtime.commands, settings=billing.settings)) == [shard]
    assert billing.settle().posted == 1


def test_a_lease_that_runs_is_not_taken(billing: Billing) -> None:
    commands, holds = billing.runtime.commands, billing.runtime.holds
    assert holds.send(commands.lease(0, owner="one", lease_ms=5000)).outcome is Lease.ACQUIRED
    assert holds.send(commands.lease(0, owner="two", lease_ms=5000)).outcome is Lease.TAKEN
    billing.redis("DEL", commands.keys.drainer(0))
