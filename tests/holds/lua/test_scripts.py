"""The Lua scripts against a real server: what only they can promise."""

from __future__ import annotations

import msgspec
import pytest

from billing_tasks.errors import Unavailable
from billing_tasks.holds import outcomes
from billing_tasks.holds.commands import Command
from billing_tasks.holds.replies import LeaseReply, OutboxEntry, Reserved
from billing_tasks.holds.store import HoldStore
from billing_tasks.lab.servers import Servers
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import ServerRun
from billing_tasks.settings import Settings

USER, TOKEN = 42, 7
SHARD = USER % 12


@pytest.fixture
def store(servers: Servers):  # type: ignore[no-untyped-def]
    made = HoldStore(Settings(redis_url=servers.redis_url, database_url="postgresql:///never"))
    made.client.flushall()
    yield made
    made.close()


def user_row(balance: int = 1000, version: int = 5, status: str = "enabled") -> UserRow:
    return UserRow(USER, balance, 0, 0, "default", status, version)


def token_row(balance: int = 1000, version: int = 5, **more: object) -> TokenRow:
    values = {"unlimited_quota": False, "status": "enabled", "expires_at_ms": None, "user_id": USER, **more}
    return TokenRow(id=TOKEN, name="", remain_quota=balance, used_quota=0, version=version, **values)  # type: ignore[arg-type]


def reserve(store: HoldStore, amount: int, request_id: str | None = None, fresh_ms: int = 60_000) -> Reserved:
    return store.send(
        store.commands.reserve(
            request_id=request_id or new_request_id(),
            user_id=USER,
            token_id=TOKEN,
            amount=amount,
            ttl_ms=60_000,
            backlog_limit=1000,
            fresh_ms=fresh_ms,
        )
    )


#: Which run of PostgreSQL the rows are of.
SERVER = ServerRun("books.run", 0)


def load(store: HoldStore, user: UserRow | None = None, token: TokenRow | None = None) -> None:
    now = reserve(store, 1)
    for command in (
        store.commands.load_user(user or user_row(), began_ms=now.now_ms, epoch=now.epoch, server=SERVER),
        store.commands.load_token(token or token_row(), began_ms=now.now_ms, epoch=now.epoch, server=SERVER),
    ):
        assert store.send(command) is outcomes.Load.LOADED


def consume(store: HoldStore, request_id: str, quota: int) -> None:
    command = store.commands.consume(
        request_id=request_id, user_id=USER, token_id=TOKEN, quota=quota, fingerprint="f" * 32, payload=b"{}"
    )
    store.send(command)


def outbox(store: HoldStore) -> list[OutboxEntry]:
    return store.send(store.commands.read_outbox(SHARD, count=1000))


def lease(store: HoldStore, owner: str = "me") -> LeaseReply:
    return store.send(store.commands.lease(SHARD, owner=owner, lease_ms=5000))


def settled(store: HoldStore, entries: list[OutboxEntry], *, user: UserRow, since: LeaseReply) -> tuple[int, int, int]:
    command = store.commands.settled(
        SHARD, entries=entries, users=[user], tokens=[], read_ms=since.now_ms, epoch=since.epoch
    )
    return store.send(command)


def raw(store: HoldStore, *words: object):  # type: ignore[no-untyped-def]
    return store.send(Command(words, lambda reply: reply))


def restart(store: HoldStore) -> None:
    """To the fence a server whose run_id is not the one it remembers was restarted."""
    raw(store, "HSET", store.commands.keys.meta(SHARD), "run_id", "0" * 40)


def test_a_row_read_in_an_older_epoch_is_not_loaded(store: HoldStore) -> None:
    load(store)
    assert reserve(store, 10).outcome is outcomes.Reserve.HELD
    restart(store)
    assert reserve(store, 10).outcome is outcomes.Reserve.NOT_LOADED


def test_a_new_epoch_is_above_the_old_one_and_numbers_events_from_one(store: HoldStore) -> None:
    load(store)
    consume(store, new_request_id(), 5)
    restart(store)
    consume(store, new_request_id(), 5)
    first, second = outbox(store)
    assert second.epoch > first.epoch
    assert (first.seq, second.seq) == (1, 1)


def test_event_numbers_have_no_gaps(store: HoldStore) -> None:
    load(store)
    for _ in range(20):
        consume(store, new_request_id(), 1)
    assert [entry.seq for entry in outbox(store)] == list(range(1, 21))


def test_a_load_that_began_in_another_epoch_is_refused(store: HoldStore) -> None:
    now = reserve(store, 1)
    restart(store)
    command = store.commands.load_user(user_row(), began_ms=now.now_ms, epoch=now.epoch)
    assert store.send(command) is outcomes.Load.OTHER_EPOCH


def test_a_load_that_took_too_long_is_refused(store: HoldStore) -> None:
    now = reserve(store, 1)
    command = store.commands.load_user(user_row(), began_ms=now.now_ms - 5001, epoch=now.epoch)
    assert store.send(command) is outcomes.Load.TOO_LATE


def test_a_row_of_no_known_run_of_postgresql_is_not_loaded_where_none_is_known(store: HoldStore) -> None:
    """If PostgreSQL is restored next, it would count as a row of the new run."""
    now = reserve(store, 1)
    pushed = store.commands.load_user(user_row(), began_ms=now.now_ms, epoch=now.epoch)
    assert store.send(pushed) is outcomes.Load.OTHER_LEDGER
    load(store)
    assert store.send(pushed) is outcomes.Load.LOADED


def test_a_load_never_replaces_a_newer_version(store: HoldStore) -> None:
    load(store, user_row(balance=500, version=9))
    now = reserve(store, 1)
    command = store.commands.load_user(user_row(balance=1000, version=8), began_ms=now.now_ms, epoch=now.epoch)
    assert store.send(command) is outcomes.Load.OLDER
    assert store.send(store.commands.balance(user_id=USER)).balance == 500


def test_a_load_leaves_held_and_unposted_alone(store: HoldStore) -> None:
    load(store)
    request_id = new_request_id()
    reserve(store, 100, request_id)
    reserve(store, 30)
    consume(store, request_id, 60)
    load(store, user_row(balance=700, version=6))
    seen = store.send(store.commands.balance(user_id=USER))
    assert (seen.balance, seen.held, seen.unposted) == (700, 30 + 1, 60)  # load() itself reserves 1


def test_an_old_cached_row_is_refused_until_any_age_will_do(store: HoldStore) -> None:
    load(store)
    raw(store, "HINCRBY", store.commands.keys.user(store.commands.keys.shard_of(USER), USER), "loaded_at", -61_000)
    assert reserve(store, 1).outcome is outcomes.Reserve.STALE
    assert reserve(store, 1, fresh_ms=0).outcome is outcomes.Reserve.HELD


def test_settled_takes_weight_and_owner_from_the_outbox_and_not_from_the_caller(store: HoldStore) -> None:
    load(store)
    consume(store, new_request_id(), 60)
    (entry,) = outbox(store)
    now = lease(store)
    other = entry.event.replace(entry.request_id.encode(), new_request_id().encode())
    wrong = msgspec.structs.replace(entry, event=other)
    assert settled(store, [wrong], user=user_row(940, 6), since=now) == (0, 0, 1)
    forged = msgspec.structs.replace(entry, weight=999_999)
    assert settled(store, [forged], user=user_row(940, 6), since=now) == (1, 0, 0)
    assert store.send(store.commands.balance(user_id=USER)).unposted == 0


def test_settling_twice_removes_the_weight_once(store: HoldStore) -> None:
    load(store)
    consume(store, new_request_id(), 60)
    consume(store, new_request_id(), 7)
    entries, now = outbox(store), lease(store)
    assert settled(store, entries[:1], user=user_row(940, 6), since=now) == (1, 0, 0)
    assert settled(store, entries[:1], user=user_row(940, 6), since=now) == (0, 1, 0)
    seen = store.send(store.commands.balance(user_id=USER))
    assert (seen.balance, seen.unposted) == (940, 7)


def test_settled_never_replaces_a_newer_balance(store: HoldStore) -> None:
    load(store, user_row(balance=500, version=9))
    consume(store, new_request_id(), 60)
    settled(store, outbox(store), user=user_row(balance=940, version=6), since=lease(store))
    assert store.send(store.commands.balance(user_id=USER)).balance == 500


def test_rows_read_in_another_epoch_make_the_account_unloaded(store: HoldStore) -> None:
    load(store)
    consume(store, new_request_id(), 60)
    entries, before = outbox(store), lease(store)
    restart(store)
    load(store, user_row(balance=1000, version=5))  # another gateway read PostgreSQL before the commit
    assert settled(store, entries, user=user_row(balance=940, version=6), since=before) == (1, 0, 0)
    assert not store.send(store.commands.balance(user_id=USER)).loaded


def test_settled_writes_accounts_that_were_not_loaded(store: HoldStore) -> None:
    consume(store, new_request_id(), 60)
    settled(store, outbox(store), user=user_row(balance=940, version=6), since=lease(store))
    seen = store.send(store.commands.balance(user_id=USER))
    assert (seen.loaded, seen.balance, seen.unposted) == (True, 940, 0)


def test_an_idle_account_leaves_redis_and_a_busy_one_stays(store: HoldStore) -> None:
    load(store)
    key = store.commands.keys.user(store.commands.keys.shard_of(USER), USER)
    assert raw(store, "TTL", key) > 0
    request_id = new_request_id()
    reserve(store, 10, request_id)
    assert raw(store, "TTL", key) == -1
    consume(store, request_id, 4)
    assert raw(store, "TTL", key) == -1
    settled(store, outbox(store), user=user_row(996, 6), since=lease(store))
    assert raw(store, "TTL", key) > 0


def test_a_counter_outlives_an_idle_account(store: HoldStore) -> None:
    load(store)
    consume(store, new_request_id(), 60)  # without a hold, while the account is about to expire
    assert raw(store, "TTL", store.commands.keys.user(store.commands.keys.shard_of(USER), USER)) == -1


def test_one_drainer_at_a_time(store: HoldStore) -> None:
    assert lease(store, "one").outcome is outcomes.Lease.ACQUIRED
    assert lease(store, "one").outcome is outcomes.Lease.RENEWED
    assert lease(store, "two").outcome is outcomes.Lease.TAKEN


def test_a_drainer_leaves_only_an_empty_outbox(store: HoldStore) -> None:
    lease(store)
    consume(store, new_request_id(), 1)
    assert store.send(store.commands.leave(SHARD, owner="me")) is outcomes.Leave.NOT_EMPTY
    settled(store, outbox(store), user=user_row(999, 6), since=lease(store))
    assert store.send(store.commands.leave(SHARD, owner="you")) is outcomes.Leave.LOST
    assert store.send(store.commands.leave(SHARD, owner="me")) is outcomes.Leave.LEFT
    assert raw(store, "EXISTS", store.commands.keys.doorbell(SHARD)) == 0


def test_nobody_rings_while_somebody_drains(store: HoldStore) -> None:
    lease(store)
    assert not store.send(store.commands.ring(SHARD))
    store.send(store.commands.leave(SHARD, owner="me"))
    assert store.send(store.commands.ring(SHARD))


def test_one_ring_is_enough_for_many_consumes(store: HoldStore) -> None:
    load(store)
    rings = []
    for _ in range(5):
        command = store.commands.consume(
            request_id=new_request_id(), user_id=USER, token_id=TOKEN, quota=1, fingerprint="f" * 32, payload=b"{}"
        )
        rings.append(store.send(command).ring)
    assert rings == [True, False, False, False, False]


def test_a_full_memory_refuses_reservations_and_lets_the_outbox_drain(store: HoldStore) -> None:
    load(store)
    request_id = new_request_id()
    reserve(store, 10, request_id)
    raw(store, "CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(Unavailable, match=r"OOM|memory"):
            reserve(store, 10)
        consume(store, request_id, 4)
        assert settled(store, outbox(store), user=user_row(996, 6), since=lease(store)) == (1, 0, 0)
        assert store.send(store.commands.leave(SHARD, owner="me")) is outcomes.Leave.LEFT
    finally:
        raw(store, "CONFIG", "SET", "maxmemory", "0")


def test_scripts_come_back_after_script_flush(store: HoldStore) -> None:
    load(store)
    raw(store, "SCRIPT", "FLUSH")
    assert reserve(store, 10).outcome is outcomes.Reserve.HELD


def test_a_row_read_before_a_settlement_of_an_older_epoch_is_refused(store: HoldStore) -> None:
    load(store)
    consume(store, new_request_id(), 60)
    entries, before = outbox(store), lease(store)
    restart(store)
    asked = reserve(store, 1)  # NOT_LOADED in the new epoch; now the gateway reads version 5, 1000 quota ...
    settled(store, entries, user=user_row(balance=940, version=6), since=before)  # ... while the worker commits
    late = store.commands.load_user(user_row(balance=1000, version=5), began_ms=asked.now_ms, epoch=asked.epoch)
    assert store.send(late) is outcomes.Load.OLDER
    fresh = store.commands.load_user(user_row(balance=940, version=6), began_ms=asked.now_ms, epoch=asked.epoch)
    assert store.send(fresh) is outcomes.Load.LOADED


def test_a_settlement_of_an_older_epoch_leaves_a_newer_cached_row_alone(store: HoldStore) -> None:
    load(store)
    consume(store, new_request_id(), 60)
    entries, before = outbox(store), lease(store)
    restart(store)
    load(store, user_row(balance=940, version=6))  # read after the commit
    settled(store, entries, user=user_row(balance=940, version=6), since=before)
    assert store.send(store.commands.balance(user_id=USER)).loaded


def test_weights_above_two_to_the_53_are_taken_off_exactly(store: HoldStore) -> None:
    load(store, user_row(balance=2**53), token_row(balance=2**53, unlimited_quota=True))
    for quota in (2**53, 1, 1):
        consume(store, new_request_id(), quota)
    settled(store, outbox(store), user=user_row(-2, 6), since=lease(store))
    assert raw(store, "HGET", store.commands.keys.user(store.commands.keys.shard_of(USER), USER), "unposted") == b"0"


def due(store: HoldStore) -> list[bytes]:
    return raw(store, "ZRANGE", store.commands.keys.due(SHARD), 0, -1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("user_id", "token_id"), [(USER + 12, TOKEN), (USER, TOKEN + 1)])
def test_a_release_by_another_owner_gives_nothing_back(store: HoldStore, user_id: int, token_id: int) -> None:
    load(store)
    request_id = new_request_id()
    reserve(store, 100, request_id)
    release = store.commands.release(request_id=request_id, user_id=user_id, token_id=token_id, payload=b"{}")
    assert store.send(release).outcome is outcomes.Release.IDEMPOTENCY_CONFLICT
    assert store.send(store.commands.balance(user_id=USER)).held == 100
    assert outbox(store) == []


def test_a_member_of_due_without_a_hold_is_taken_out_once_it_is_met(store: HoldStore) -> None:
    gone, consumed = new_request_id(), new_request_id()
    load(store)
    reserve(store, 1, consumed)
    consume(store, consumed, 1)
    for request_id in (gone, consumed):
        raw(store, "ZADD", store.commands.keys.due(SHARD), 1, request_id)
        expire = store.commands.expire(request_id=request_id, user_id=USER, token_id=TOKEN, payload=b"{}")
        assert store.send(expire).outcome is outcomes.Expire.CLOSED
    assert due(store) == []


def test_a_renewal_never_shortens_a_hold(store: HoldStore) -> None:
    load(store)
    request_id = new_request_id()
    until = reserve(store, 1, request_id).expires_at_ms
    renewed = store.send(store.commands.renew(request_id=request_id, user_id=USER, ttl_ms=1))
    assert renewed == (outcomes.Renew.RENEWED, until)
    assert float(raw(store, "ZSCORE", store.commands.keys.due(SHARD), request_id)) == until


def test_settled_removes_no_event_that_its_caller_could_not_read(store: HoldStore) -> None:
    """Its weight would stay in `unposted` for ever."""
    load(store)
    request_id = new_request_id()
    reserve(store, 100, request_id)
    consume(store, request_id, 40)
    since = lease(store)
    (entry,) = outbox(store)
    unread = msgspec.structs.replace(entry, event=b"", weight=0)
    assert settled(store, [unread], user=user_row(), since=since) == (0, 0, 1)
    assert settled(store, [entry], user=user_row(balance=960, version=6), since=since) == (1, 0, 0)
