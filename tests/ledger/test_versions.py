"""A version never goes back, and what another program changes is an entry, however that program writes."""

from __future__ import annotations

import pytest

from billing_tasks.flows.settlement import settle
from billing_tasks.holds.commands import Pipeline
from billing_tasks.model.posting import OutboxPart
from tests.conftest import Billing, Payer

Row = dict[str, int]


def row(billing: Billing, payer: Payer) -> Row:
    ((quota, used_quota, version),) = billing.sql(
        "select quota, used_quota, version from billing.users where id = %s", payer[0]
    )
    return {"quota": quota, "used_quota": used_quota, "version": version}


def save(billing: Billing, payer: Payer, values: Row) -> None:
    """As an ORM that writes all columns of a row."""
    billing.sql(
        "update billing.users set quota = %s, used_quota = %s, version = %s where id = %s", *values.values(), payer[0]
    )


def use(billing: Billing, payer: Payer, quota: int = 100) -> None:
    billing.use(billing.reserve(payer, quota), quota)
    billing.settle()


def edits(billing: Billing) -> list[int]:
    found = billing.sql(
        "select user_quota from billing.ledger_entries where content like 'edited by%%' order by entry_id"
    )
    return [quota for (quota,) in found]


def test_a_whole_row_that_was_read_before_a_charge_overwrites_it_by_an_entry(billing: Billing) -> None:
    payer = billing.payer(1000)
    read = row(billing, payer)
    use(billing, payer)
    save(billing, payer, {**read, "quota": 1500})
    assert edits(billing) == [600]  # the charge of 100 is given back: a person can see who did it
    after = row(billing, payer)
    assert after["quota"] == 1500
    assert after["version"] > read["version"]
    use(billing, payer)
    assert billing.available(payer[0]) == 1400


def test_a_whole_row_that_changes_nothing_leaves_the_version(billing: Billing) -> None:
    payer = billing.payer(1000)
    read = row(billing, payer)
    use(billing, payer)
    now = row(billing, payer)
    save(billing, payer, {**now, "version": read["version"]})
    assert row(billing, payer) == now
    assert edits(billing) == []


@pytest.mark.parametrize("version", ["version + 1", "version + 1000000", "1", "0", "-5", "9007199254740993"])
def test_a_version_of_its_own_hides_no_change(billing: Billing, version: str) -> None:
    """An ORM that locks optimistically counts them up; another takes a clock's time."""
    payer = billing.payer(1000)
    use(billing, payer)
    billing.sql(f"update billing.users set quota = quota - 300, version = {version} where id = %s", payer[0])
    billing.sql(
        f"update billing.tokens set remain_quota = remain_quota - 300, version = {version} where id = %s", payer[1]
    )
    assert edits(billing) == [-300, 0]
    ((last,),) = billing.sql("select last_value from billing.versions")
    assert row(billing, payer)["version"] <= last
    billing.redis("DEL", billing.user_key(payer[0]))
    use(billing, payer)
    assert billing.available(payer[0]) == 500
    assert billing.runtime.ledger.incidents() == []


def test_a_version_alone_that_is_set_too_high_is_not_taken(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.sql("update billing.users set version = 5000000000 where id = %s", payer[0])
    ((last,),) = billing.sql("select last_value from billing.versions")
    assert row(billing, payer)["version"] <= last
    billing.sql("insert into billing.users (id, quota, version) values (77, 10, 5000000000)")
    ((version,),) = billing.sql("select version from billing.users where id = 77")
    assert version <= last + 2


def test_charges_one_after_the_other_are_no_edits(billing: Billing) -> None:
    """Versions that follow each other directly are ours, too."""
    payer = billing.payer(1000)
    for number in range(3):
        billing.accounts.top_up(payer[0], 10, f"top-up {number}")
    assert edits(billing) == []


def test_a_row_that_a_frozen_worker_brings_back_is_not_cached(billing: Billing) -> None:
    payer = billing.payer(1000, unlimited=True)
    holds, commands = billing.runtime.holds, billing.runtime.commands
    shard = commands.keys.shard_of(payer[0])
    billing.use(billing.reserve(payer, 100), 100)
    lease = holds.send(commands.lease(shard, owner="frozen", lease_ms=60_000))
    entries = holds.send(commands.read_outbox(shard, count=10))
    posted = billing.runtime.ledger.post_batch(shard, [entry.read() for entry in entries])
    billing.redis("DEL", commands.keys.drainer(shard))
    billing.settle()
    use(billing, payer, 900)
    billing.redis("DEL", billing.user_key(payer[0]))  # an hour passes
    thaws = commands.settled(
        shard, entries=entries, users=posted.users, tokens=posted.tokens, read_ms=lease.now_ms - 5001, epoch=lease.epoch
    )
    assert holds.send_all(Pipeline((thaws,))) == [(0, 1, 0)]
    assert billing.available(payer[0]) == 0


def test_rows_that_come_late_but_are_news_have_the_account_loaded_again(billing: Billing) -> None:
    """Their events leave `unposted`, so the balance from before must not stay."""
    payer = billing.payer(1000, unlimited=True)
    holds, commands = billing.runtime.holds, billing.runtime.commands
    shard = commands.keys.shard_of(payer[0])
    billing.use(billing.reserve(payer, 100), 100)
    lease = holds.send(commands.lease(shard, owner="slow", lease_ms=60_000))
    entries = holds.send(commands.read_outbox(shard, count=10))
    part = OutboxPart(shard, entries[0].epoch, ((1, 1),))
    posted = billing.runtime.ledger.post_outboxes([entry.read() for entry in entries], [part])
    late = commands.settled(
        shard, entries=entries, users=posted.users, tokens=posted.tokens, read_ms=lease.now_ms - 5001, epoch=lease.epoch
    )
    assert holds.send(late) == (1, 0, 0)
    assert billing.redis("HGET", billing.user_key(payer[0]), "loaded_epoch") is None
    assert billing.available(payer[0]) == 900
    assert settle.Drained() == billing.settle()
