"""PostgreSQL comes back older than Redis knew it: what it allows is the truth, and the loss is told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from billing_tasks import errors
from billing_tasks.flows.settlement import ring
from billing_tasks.holds.commands import Commands
from tests.conftest import Billing, Payer

TABLES = ("users", "tokens", "channels", "channel_usage", "ledger_entries", "top_ups", "refunds", "outbox_cursors")

Restore = Callable[[], None]


def saved(billing: Billing, *, in_place: bool) -> Restore:
    """Note what PostgreSQL has; the answer brings it back. `in_place`: without a new file for any table."""
    billing.sql("drop schema if exists saved cascade; create schema saved")
    for table in TABLES:
        billing.sql(f"create table saved.{table} as table billing.{table}")
    ((last,),) = billing.sql("select last_value from billing.versions")

    def restore() -> None:
        words = ["begin; set session_replication_role = replica"]
        tables = [f"billing.{table}" for table in TABLES[::-1]]
        words += [f"delete from {table}" for table in tables] if in_place else [f"truncate {', '.join(tables)}"]
        words += [f"insert into billing.{table} table saved.{table}" for table in TABLES]
        billing.sql("; ".join(words) + f"; commit; select setval('billing.versions', {last})")

    return restore


def spend(billing: Billing, payer: Payer, quota: int, *, times: int = 100) -> int:
    """As fast as it is granted, each request settled; returns what was granted."""
    granted = 0
    with suppress(errors.InsufficientUserQuota):
        for _ in range(times):
            billing.use(billing.reserve(payer, quota), quota)
            granted += quota
            billing.settle()
    return granted


def kinds(billing: Billing) -> list[tuple[str, int | None]]:
    return [(incident.kind, incident.events_bound) for incident in billing.runtime.ledger.incidents()]


def look(billing: Billing) -> None:
    billing.runtime.run(ring.ring_stale(commands=billing.runtime.commands, settings=billing.settings))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_top_up_that_was_lost_can_not_be_spent(billing: Billing, in_place: bool) -> None:
    payer = billing.payer(1000, unlimited=True)
    assert spend(billing, payer, 100, times=1) == 100
    restore = saved(billing, in_place=in_place)
    billing.accounts.top_up(payer[0], 20_000, "lost")
    assert spend(billing, payer, 100, times=1) == 100
    restore()
    assert spend(billing, payer, 100) == 900
    assert billing.available(payer[0]) == 0
    assert kinds(billing) == [("restored", 1)]  # one consume that Redis saw booked
    look(billing)
    assert kinds(billing) == [("restored", 1)]


@pytest.mark.parametrize("in_place", [True, False])
def test_charges_that_were_lost_are_told_and_the_user_has_what_the_books_say(billing: Billing, in_place: bool) -> None:
    payer = billing.payer(1000, unlimited=True)
    restore = saved(billing, in_place=in_place)
    assert spend(billing, payer, 100, times=7) == 700
    restore()
    assert spend(billing, payer, 100) == 1000
    assert kinds(billing) == [("restored", 7)]
    missing = billing.verify()
    assert (missing.ok, missing.events_missing) == (True, 7)


def test_an_account_that_is_only_read_is_the_truth_too(billing: Billing) -> None:
    payer = billing.payer(1000, unlimited=True)
    restore = saved(billing, in_place=True)
    billing.accounts.top_up(payer[0], 20_000, "lost")
    assert billing.available(payer[0]) == 21_000
    restore()
    billing.redis("HINCRBY", billing.user_key(payer[0]), "loaded_at", -3_600_000)  # a cached row lives some seconds
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 1001)
    assert billing.reserve(payer, 1000).held_quota == 1000
    assert [kind for kind, _ in kinds(billing)] == ["restored"]


def test_what_was_set_aside_before_stays_set_aside(billing: Billing) -> None:
    payer = billing.payer(1000, unlimited=True)
    restore = saved(billing, in_place=True)
    open_hold = billing.reserve(payer, 400)
    waits = billing.reserve(payer, 100)
    billing.accounts.top_up(payer[0], 20_000, "lost")
    restore()
    billing.use(waits, 100)
    assert spend(billing, payer, 100) == 500
    billing.use(open_hold, 400)
    billing.settle()
    assert billing.available(payer[0]) == 0


def test_versions_that_lie_behind_their_rows_are_set_right(billing: Billing) -> None:
    """As after a failover to a logical replica: rows are replicated, sequences are not."""
    payer = billing.payer(1000, unlimited=True)
    spend(billing, payer, 100, times=2)
    billing.sql("select setval('billing.versions', 1)")
    assert spend(billing, payer, 100) == 800
    entries = billing.sql("select count(*) from billing.ledger_entries where content like 'edited by%%'")
    assert entries == [(0,)]
    behind = "select count(*) from billing.users where version > (select last_value from billing.versions)"
    assert billing.sql(behind) == [(0,)]


def test_another_program_edits_while_versions_lie_behind(billing: Billing) -> None:
    payer = billing.payer(1000, unlimited=True)
    spend(billing, payer, 100, times=2)
    billing.sql("select setval('billing.versions', 1)")
    billing.sql("update billing.users set quota = 300 where id = %s", payer[0])
    assert spend(billing, payer, 100) in (300, 400)  # one more may be granted by the row cached before the edit
    assert billing.sql("select user_quota from billing.ledger_entries where content like 'edited by%%'") == [(-500,)]


def test_a_restart_loads_accounts_again_and_is_no_incident(billing: Billing) -> None:
    payer = billing.payer(1000, unlimited=True)
    spend(billing, payer, 100, times=1)
    billing.redis("HSET", billing.runtime.commands.keys.meta(payer[0] % billing.settings.shards), "ledger", "another")
    spend(billing, payer, 100, times=1)
    assert billing.available(payer[0]) == 800
    assert kinds(billing) == []


def test_a_drainer_that_thaws_leaves_what_the_restored_server_has_not_booked(
    billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It posted, and froze; the server was restored without that, and others met it before the drainer went on."""
    payer = billing.payer(1000, unlimited=True)
    restore = saved(billing, in_place=False)
    for _ in range(3):
        billing.use(billing.reserve(payer, 100), 100)
    settled, frozen = Commands.settled, [True]

    def thaws(self: Commands, shard: int, **more: Any) -> Any:
        if frozen.pop() if frozen else False:
            restore()
            billing.redis("HINCRBY", billing.user_key(payer[0]), "loaded_at", -3_600_000)
            billing.available(payer[0])  # a gateway looks, and meets the server
        return settled(self, shard, **more)

    monkeypatch.setattr(Commands, "settled", thaws)
    done = billing.settle()
    assert (done.posted, done.duplicates) == (3, 0)
    assert billing.sql("select quota from billing.users where id = %s", payer[0]) == [(700,)]
    assert billing.available(payer[0]) == 700
    assert billing.verify().events_missing == 0
