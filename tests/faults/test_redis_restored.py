"""Redis comes back, with all it knew, with less, or with nothing: no stale balance is trusted, and loss is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from billing_tasks import AsyncBookkeeper, Bookkeeper, Settings, errors
from billing_tasks.flows.effects import Effect
from billing_tasks.flows.settlement import settle
from billing_tasks.flows.settlement.ring import ring_stale
from billing_tasks.holds.connection.connection import IDLE_SECONDS
from tests.conftest import CHANNEL, Billing, MakeBilling
from tests.faults.breaking import OwnValkey
from tests.faults.conftest import MakeValkey
from tests.worker.conftest import eventually

#: Takes Redis back to what it was when the loss was prepared; returns the gateway to go on with.
Return = Callable[[], Billing]


@pytest.fixture
def billing(make_billing: MakeBilling, own: OwnValkey) -> Billing:
    return make_billing(redis_url=own.url, shards=2)


def older_file(billing: Billing, own: OwnValkey, _: MakeBilling, __: MakeValkey) -> Return:
    copy = own.copy()

    def back() -> Billing:
        own.restore(copy)
        return billing

    return back


def empty_file(billing: Billing, own: OwnValkey, _: MakeBilling, __: MakeValkey) -> Return:
    def back() -> Billing:
        own.restore(None)
        return billing

    return back


def flushed(billing: Billing, own: OwnValkey, _: MakeBilling, __: MakeValkey) -> Return:
    def back() -> Billing:
        own.client().flushall()
        return billing

    return back


def promoted_replica(billing: Billing, own: OwnValkey, make_billing: MakeBilling, make_valkey: MakeValkey) -> Return:
    replica = make_valkey()
    own.listen()
    replicate(replica, own)
    replica.client().replicaof("NO", "ONE")  # type: ignore[no-untyped-call]  # cut off; what is written from now on it misses
    own.client().config_set("port", 0)
    return lambda: make_billing(redis_url=replica.url, shards=2)


EACH_LOSS = pytest.mark.parametrize("loss", [older_file, empty_file, flushed, promoted_replica])


def kinds(billing: Billing) -> set[str]:
    return {incident.kind for incident in billing.runtime.ledger.incidents()}


def settle_all(billing: Billing) -> None:
    """Release what is due, book everything, as workers would."""
    keys = billing.runtime.commands.keys
    for shard in range(keys.shards):
        for request_id in billing.redis("ZRANGE", keys.due(shard), 0, -1):
            billing.redis("ZADD", keys.due(shard), 1, request_id)  # time passes
    billing.expire()
    billing.settle()


def test_a_killed_redis_comes_back_with_every_hold_and_event(billing: Billing, own: OwnValkey) -> None:
    payer = billing.payer(1000)
    used, open_hold = billing.reserve(payer, 300), billing.reserve(payer, 400)
    billing.use(used, 250)
    own.crash()
    assert billing.available(payer[0]) == 1000 - 250 - 400
    assert billing.reserve(payer, 400, request_id=open_hold.request_id).again
    assert not billing.use(open_hold, 100).late
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 651)
    assert billing.settle().posted == 2
    assert billing.accounts.user(payer[0]).quota == 650
    assert kinds(billing) <= {"new_epoch"}


def test_a_restarted_redis_grants_nothing_before_postgresql_has_spoken(billing: Billing, own: OwnValkey) -> None:
    payer = billing.payer(1000)
    billing.reserve(payer, 10)
    own.crash()
    away = Settings(redis_url=own.url, shards=2, database_url="postgresql://user@/nothing?host=/nonexistent")
    with Bookkeeper.from_settings(away) as bk, pytest.raises(errors.UserQuotaUnreadable):
        bk.pre_consume_quota(1, user_id=payer[0], token_id=payer[1])
    assert billing.reserve(payer, 990).held_quota == 990


@EACH_LOSS
def test_what_was_spent_after_the_snapshot_can_not_be_spent_again(
    billing: Billing, own: OwnValkey, make_billing: MakeBilling, make_valkey: MakeValkey, loss: Callable[..., Return]
) -> None:
    payer = billing.payer(1000)
    early = billing.reserve(payer, 300)
    back = loss(billing, own, make_billing, make_valkey)
    log = early.log(channel_id=CHANNEL, quota=300)
    billing.bk.consume(log)
    billing.use(billing.reserve(payer, 700), 700)
    billing.settle()

    billing = back()

    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 1)
    billing.bk.consume(log)  # the gateway repeats what it was not sure of
    settle_all(billing)
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 1)
    assert billing.available(payer[0]) == 0
    assert billing.accounts.user(payer[0]).used_quota == 1000
    assert "new_epoch" in kinds(billing)


@EACH_LOSS
def test_a_hold_that_came_back_after_its_charge_gives_nothing_when_it_expires(
    billing: Billing, own: OwnValkey, make_billing: MakeBilling, make_valkey: MakeValkey, loss: Callable[..., Return]
) -> None:
    payer = billing.payer(1000)
    early = billing.reserve(payer, 300)
    back = loss(billing, own, make_billing, make_valkey)
    billing.use(early, 200)
    billing.settle()

    billing = back()

    assert billing.available(payer[0]) <= 800
    settle_all(billing)
    assert billing.available(payer[0]) == 800
    assert billing.accounts.user(payer[0]).quota == 800


@EACH_LOSS
def test_a_hold_that_was_lost_with_redis_is_charged_late(
    billing: Billing, own: OwnValkey, make_billing: MakeBilling, make_valkey: MakeValkey, loss: Callable[..., Return]
) -> None:
    payer = billing.payer(1000)
    back = loss(billing, own, make_billing, make_valkey)
    lost = billing.reserve(payer, 300)
    assert not lost.again

    billing = back()

    assert billing.use(lost, 200).late
    billing.settle()
    assert billing.accounts.user(payer[0]).quota == 800
    (entry,) = billing.runtime.ledger.entries_of(lost.request_id)
    assert entry.held_quota == 0


@EACH_LOSS
def test_events_lost_with_redis_are_counted_in_an_incident(
    billing: Billing, own: OwnValkey, make_billing: MakeBilling, make_valkey: MakeValkey, loss: Callable[..., Return]
) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 10), 10)
    billing.settle()
    back = loss(billing, own, make_billing, make_valkey)
    for _ in range(5):
        billing.use(billing.reserve(payer, 10), 10)
    billing.runtime.run(
        ring_stale(commands=billing.runtime.commands, settings=billing.settings)
    )  # as beat does every few seconds

    billing = back()

    billing.use(billing.reserve(payer, 20), 20)
    billing.settle()
    bounds = [i.events_bound for i in billing.runtime.ledger.incidents() if i.kind == "new_epoch"]
    assert max(bound or 0 for bound in bounds) >= 5
    assert billing.accounts.user(payer[0]).used_quota == 30


def test_events_that_vanished_from_an_outbox_are_a_gap(billing: Billing) -> None:
    payer = billing.payer(1000)
    keys, shard = billing.runtime.commands.keys, payer[0] % 2
    for _ in range(3):
        billing.use(billing.reserve(payer, 10), 10)
    first = billing.redis("XRANGE", keys.outbox(shard), "-", "+", "COUNT", 2)
    for entry_id, _ in first:
        billing.redis("XDEL", keys.outbox(shard), entry_id)
        for account in (keys.user(keys.shard_of(payer[0]), payer[0]), keys.token(keys.shard_of(payer[0]), payer[1])):
            billing.redis("HINCRBY", account, "unposted", -10)
    assert billing.settle().posted == 1
    (incident,) = billing.runtime.ledger.incidents()
    assert (incident.kind, incident.events_bound) == ("gap", 2)


def test_an_outbox_that_was_set_back_is_a_rewind_and_its_events_are_booked(billing: Billing) -> None:
    payer = billing.payer(1000)
    keys, shard = billing.runtime.commands.keys, payer[0] % 2
    for _ in range(3):
        billing.use(billing.reserve(payer, 10), 10)
    billing.settle()
    billing.redis("DEL", keys.outbox(shard))
    billing.redis("HSET", keys.meta(shard), "seq", 0)
    for _ in range(2):
        billing.use(billing.reserve(payer, 10), 10)
    assert billing.settle().posted == 2
    incident = billing.runtime.ledger.incidents()[0]
    assert (incident.kind, incident.events_bound) == ("rewind", 2)


@pytest.mark.parametrize("stop_at", range(6))
@pytest.mark.parametrize("fault", ["crash", "flush"])
def test_redis_lost_between_any_two_steps_of_a_drainer_books_nothing_twice(
    billing: Billing, own: OwnValkey, fault: str, stop_at: int
) -> None:
    payer = billing.payer(1000)
    for _ in range(10):
        billing.use(billing.reserve(payer, 50), 40)
    drain = settle.drain(
        payer[0] % 2,
        owner="interrupted",
        commands=billing.runtime.commands,
        settings=billing.settings,
        now=time.monotonic,
    )
    steps = 0

    def perform(effect: Effect) -> object:
        nonlocal steps
        if steps == stop_at:
            own.crash() if fault == "crash" else own.client().flushall()
        steps += 1
        return billing.runtime.perform(effect)

    effect = drain.send(None)
    try:
        while True:
            effect = drain.send(perform(effect))
    except (StopIteration, errors.OutboxStuck):
        pass
    billing.redis("DEL", billing.runtime.commands.keys.drainer(payer[0] % 2))  # the lease ran out
    billing.settle()
    lost = fault == "flush" and stop_at < 2  # before the batch was read
    if stop_at < steps:
        assert billing.accounts.user(payer[0]).used_quota == (0 if lost else 400)
    assert billing.available(payer[0]) == (1000 if lost else 600)
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 1001 if lost else 601)


def test_an_old_primary_that_is_promoted_again_is_another_one(
    billing: Billing, own: OwnValkey, make_valkey: MakeValkey
) -> None:
    """It keeps its run_id and the gateway's connection, but not what it was told before it was demoted."""
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 10), 10)
    billing.settle()
    other = make_valkey()
    for one in (own, other):
        one.listen()
    replicate(other, own)
    other.client().replicaof("NO", "ONE")  # type: ignore[no-untyped-call]  # what is written from now on it misses
    billing.use(billing.reserve(payer, 600), 600)
    billing.reserve(payer, 100)
    look(billing)
    replicate(own, other)
    own.client().replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
    for connection in billing.runtime.holds._connections._idle:
        connection._run._answered -= IDLE_SECONDS  # time passes
    assert billing.available(payer[0]) == 990
    look(billing)
    incident, *_ = billing.runtime.ledger.incidents()  # its first replica gave it a new name, too
    assert (incident.kind, incident.events_bound) == ("rewind", 1)


def replicate(replica: OwnValkey, primary: OwnValkey) -> None:
    """Make it a replica, and wait until it has everything."""
    replica.client().replicaof("127.0.0.1", primary.port)  # type: ignore[no-untyped-call]

    def offset(valkey: OwnValkey) -> int:
        return int(valkey.client().info("replication")["master_repl_offset"])  # type: ignore[index]

    eventually(lambda: replica.client().info("replication").get("master_link_status") == "up")  # type: ignore[union-attr]
    eventually(lambda: offset(replica) == offset(primary), what="the replica has everything")


def look(billing: Billing) -> None:
    billing.runtime.run(ring_stale(commands=billing.runtime.commands, settings=billing.settings))


@pytest.mark.parametrize("style", ["sync", "asyncio"])
def test_connections_to_a_demoted_primary_are_dropped(
    make_billing: MakeBilling, make_valkey: MakeValkey, tmp_path: Path, style: str
) -> None:
    """One address, behind which another server answers for new connections, as a service's name does."""
    old, new = make_valkey(), make_valkey()
    address = tmp_path / "redis.sock"
    address.symlink_to(old.url.removeprefix("unix://"))
    billing = make_billing(redis_url=f"unix://{address}", shards=2)
    payer = billing.payer(1000)
    for one in (old, new):
        one.listen()
    replicate(new, old)

    def fail_over() -> None:
        new.client().replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
        address.unlink()
        address.symlink_to(new.url.removeprefix("unix://"))
        old.client().replicaof("127.0.0.1", new.port)  # type: ignore[no-untyped-call]

    async def run() -> None:
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            await bk.refund_quota(await bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]))
            fail_over()
            for _ in range(3):
                await bk.refund_quota(await bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]))

    if style == "asyncio":
        asyncio.run(run())
    else:
        billing.bk.refund_quota(billing.reserve(payer, 10))
        fail_over()
        for _ in range(3):
            billing.bk.refund_quota(billing.reserve(payer, 10))
    billing.settle()
