"""Posting a batch: each event at most once, and balances follow exactly."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Kind
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import PostOutcome

POSTED, DUPLICATE, CONFLICT = PostOutcome.POSTED, PostOutcome.DUPLICATE, PostOutcome.CONFLICT


def test_a_consume_takes_its_whole_quota_from_user_and_token_and_counts_it_as_used(ledger, payer, shard):
    answer = ledger.post_batch(shard, [payer.consume(418, held_quota=900)])

    assert answer.outcomes == [POSTED]
    user, token, _ = ledger.accounts(payer.user.id, payer.token.id)
    assert (user.quota, user.used_quota, user.request_count) == (999_582, 418, 1)
    assert (token.remain_quota, token.used_quota) == (999_582, 418)


def test_the_answer_has_every_account_named_as_it_is_afterwards(ledger, new_payer, shard):
    a, b, c = new_payer(), new_payer(), new_payer()
    booked = c.consume(5)
    ledger.post_batch(shard, [booked])

    answer = ledger.post_batch(shard, [a.consume(1), b.release(7), booked, a.consume(2)])

    assert {u.id: u for u in answer.users} == {p.user.id: ledger.get_user(p.user.id) for p in (a, b, c)}
    assert {t.id: t for t in answer.tokens} == {p.token.id: ledger.get_token(p.token.id) for p in (a, b, c)}


def test_every_change_of_an_account_gives_it_a_newer_version(ledger, payer, shard):
    answer = ledger.post_batch(shard, [payer.consume(1)])
    again = ledger.post_batch(shard, [payer.consume(1)])

    versions = [payer.user.version, answer.users[0].version, again.users[0].version]
    assert versions == sorted(set(versions))
    versions = [payer.token.version, answer.tokens[0].version, again.tokens[0].version]
    assert versions == sorted(set(versions))


def test_a_batch_posted_twice_is_booked_once(ledger, payer, shard):
    batch = [payer.consume(10), payer.consume(20), payer.release(30)]
    first = ledger.post_batch(shard, batch)

    second = ledger.post_batch(shard, batch)

    assert second.outcomes == [DUPLICATE] * 3
    assert second.users == first.users
    assert ledger.get_user(payer.user.id).quota == 1_000_000 - 30


def test_the_same_id_with_another_body_is_a_conflict_and_changes_nothing(ledger, payer, shard):
    event = payer.consume(10)
    ledger.post_batch(shard, [event])

    answer = ledger.post_batch(shard, [payer.consume(99, request_id=event.request_id)])

    assert answer.outcomes == [CONFLICT]
    assert answer.users[0].quota == 1_000_000 - 10


def test_the_same_id_twice_in_one_batch_books_the_first_and_judges_the_second(ledger, payer, shard):
    event = payer.consume(10)
    other = payer.consume(99, request_id=event.request_id)

    assert ledger.post_batch(shard, [event, event, other]).outcomes == [POSTED, DUPLICATE, CONFLICT]

    event = payer.consume(10)
    other = payer.consume(99, request_id=event.request_id)
    assert ledger.post_batch(shard, [other, event, other]).outcomes == [POSTED, CONFLICT, DUPLICATE]
    assert ledger.get_user(payer.user.id).used_quota == 10 + 99


def test_a_late_consume_is_booked_although_its_hold_was_released(ledger, payer, shard):
    release = payer.release(500, expired=True)
    ledger.post_batch(shard, [release])

    late = payer.consume(400, held_quota=0, request_id=release.request_id)
    answer = ledger.post_batch(shard, [release, late])

    assert answer.outcomes == [DUPLICATE, POSTED]
    assert [e.kind for e in ledger.entries_of(late.request_id)] == ["release", "consume"]


def test_a_release_changes_no_balance_and_is_an_entry(ledger, payer, shard):
    event = payer.release(500, content="upstream 502", expired=False)

    answer = ledger.post_batch(shard, [event])

    assert answer.users == [payer.user]
    [entry] = ledger.entries_of(event.request_id)
    assert (entry.kind, entry.quota, entry.user_quota, entry.content) == ("release", 500, 0, "upstream 502")


def test_unknown_accounts_are_named_and_the_rest_of_the_batch_posts(ledger, new_payer, shard):
    payer, other = new_payer(), new_payer()
    batch = [
        payer.consume(1),
        payer.consume(2, user_id=10**15),
        payer.consume(3, token_id=10**15),
        payer.consume(4, token_id=other.token.id),
        payer.consume(5),
    ]

    answer = ledger.post_batch(shard, batch)

    assert answer.outcomes == [
        POSTED,
        PostOutcome.UNKNOWN_USER,
        PostOutcome.UNKNOWN_TOKEN,
        PostOutcome.UNKNOWN_TOKEN,
        POSTED,
    ]
    assert ledger.get_user(payer.user.id).used_quota == 6
    assert ledger.get_user(other.user.id).used_quota == 0


def test_an_unknown_account_does_not_use_up_the_request_id(ledger, payer, shard):
    event = payer.consume(5)
    lost = payer.consume(5, request_id=event.request_id, user_id=10**15)

    assert ledger.post_batch(shard, [lost, event]).outcomes == [PostOutcome.UNKNOWN_USER, POSTED]


def test_usage_beyond_the_balance_is_charged_and_goes_below_zero(ledger, new_payer, shard):
    payer = new_payer(quota=100)

    answer = ledger.post_batch(shard, [payer.consume(250, held_quota=100)])

    assert answer.users[0].quota == -150


def test_an_unlimited_token_counts_down_all_the_same(ledger, new_payer, shard):
    payer = new_payer(remain_quota=0, unlimited_quota=True)

    assert ledger.post_batch(shard, [payer.consume(30)]).tokens[0].remain_quota == -30


def test_channels_add_up_over_shards_and_none_is_needed(ledger, payer, shard):
    channel = ledger.create_channel(name="upstream")

    ledger.post_batch(shard, [payer.consume(10, channel_id=channel.id), payer.consume(1, channel_id=0)])
    ledger.post_batch(shard + 1, [payer.consume(5, channel_id=channel.id), payer.release(9, channel_id=channel.id)])

    assert ledger.get_channel(channel.id).used_quota == 15


def test_the_consume_log_keeps_every_field_of_the_event(ledger, payer, shard):
    event = payer.consume(
        7,
        held_quota=9,
        prompt_tokens=374,
        completion_tokens=44,
        model_name="gpt-4o",
        token_name="default",
        group="vip",
        content="模型倍率 1.25",
        client_key="order-17-öäü",
        pre_consumed_quota=9,
        model_ratio="2.75/0.65",
        completion_ratio="4",
        group_ratio="1",
        elapsed_ms=1234,
        is_stream=True,
        usage={"cached_tokens": 3},
        price={"cached_rate": "1/8"},
        details={"usage": {"nested": {"a": [1, 2]}}, "region": "eu"},
        price_version=3,
        fingerprint="02" + "ab" * 16,
        cost=5,
        used_at_ms=1_790_000_000_123,
    )
    ledger.post_batch(shard, [event])

    [row] = ledger.consume_log(client_key="order-17-öäü")

    skipped = {"kind", "group", "refund_id", "whole", "used_at_ms", "usage", "details"}
    names = [name for name in msgspec.structs.asdict(event) if name not in skipped]
    assert {name: getattr(row, name) for name in names} == {name: getattr(event, name) for name in names}
    assert row.group_name == "vip"
    assert (row.meters, row.usage, row.details) == ({"cached_tokens": 3}, {"nested": {"a": [1, 2]}}, {"region": "eu"})
    assert row.used_at == datetime.fromtimestamp(1_790_000_000.123, UTC)


def test_the_view_consume_log_has_the_columns_of_the_reference(ledger, payer, shard, sql):
    event = payer.consume(7, model_name="gpt-4o", elapsed_ms=12, is_stream=True)
    ledger.post_batch(shard, [event, payer.release(1)])

    cursor = sql.execute("select * from billing.consume_log where user_id = %s", [payer.user.id])

    [row] = [dict(zip([c.name for c in cursor.description], r, strict=True)) for r in cursor]
    expected = {"user_id", "created_at", "type", "content", "username", "token_name", "model_name", "quota"}
    expected |= {"prompt_tokens", "completion_tokens", "channel_id", "request_id", "elapsed_time", "is_stream"}
    assert expected <= set(row)
    assert (row["type"], row["quota"], row["request_id"], row["elapsed_time"]) == (2, 7, event.request_id, 12)


def test_reading_pages_from_the_newest_on(ledger, payer, shard):
    events = [payer.consume(n) for n in range(1, 6)]
    ledger.post_batch(shard, events)
    newest = sorted((e.request_id for e in events), reverse=True)

    page = ledger.consume_log(user_id=payer.user.id, limit=2)
    rest = ledger.consume_log(user_id=payer.user.id, before=page[-1])

    assert [row.entry_id for row in page + rest] == newest


@pytest.mark.parametrize(
    "broken",
    [
        {"model_name": "nul \x00 inside"},
        {"usage": {"nul": "\x00"}},
        {"content": "lone \ud800 surrogate"},
        {"prompt_tokens": 2**63},
        {"prompt_tokens": 2**200},
        {"quota": -1},
        {"held_quota": -1},
        {"request_id": "not a uuid"},
        {"request_id": "00000000-0000-7000-8000-000000000000"},  # 1970: no partition
        {"fingerprint": "not hex"},
        {"client_key": "".join(chr(33 + i % 90 + i // 90 * 7) for i in range(20_000))},
        {"kind": Kind.REFUND},
        {"kind": Kind.CONFLICT},
        {"usage": {"quota": 2**63 - 1}, "quota": 2**63 - 1},  # the balance would overflow
    ],
    ids="-".join,
)
def test_one_event_that_cant_be_stored_refuses_the_batch_and_nothing_is_booked(ledger, payer, shard, broken):
    good = payer.consume(1)
    bad = payer.consume(2)
    for name, value in broken.items():
        setattr(bad, name, value)
    other = payer.consume(2**62) if broken.get("quota") == 2**63 - 1 else payer.consume(3)

    with pytest.raises(LedgerRefusedData):
        ledger.post_batch(shard, [good, bad, other])

    assert ledger.get_user(payer.user.id) == payer.user
    assert ledger.post_batch(shard, [good]).outcomes == [POSTED]


def test_an_empty_batch_is_nothing(ledger, shard):
    answer = ledger.post_batch(shard, [])

    assert (answer.outcomes, answer.users, answer.tokens) == ([], [], [])


def test_a_thousand_events_of_a_hundred_users_are_all_counted(ledger: Ledger, new_payer, shard):
    payers = [new_payer() for _ in range(100)]
    batch = [payers[n % 100].consume(n) for n in range(1000)]

    answer = ledger.post_batch(shard, batch)

    assert answer.outcomes == [POSTED] * 1000
    assert sum(u.used_quota for u in answer.users) == sum(range(1000))
    assert {u.request_count for u in answer.users} == {10}


def test_an_answer_is_durable_even_where_commits_are_not_by_default(spare_ledger, new_spare_payer, spare_sql):
    database = spare_sql.info.dbname
    spare_sql.execute(f"alter database {database} set synchronous_commit = off")

    with spare_sql.transaction():
        spare_sql.execute("set local synchronous_commit = off")
        spare_sql.execute("select * from billing.post_batch_v2('[{\"shard\": 1}]', '[]')")
        assert spare_sql.execute("show synchronous_commit").fetchone() == ("on",)


def test_ids_are_found_again_whatever_case_they_come_in(ledger, payer, shard):
    event = payer.consume(1, request_id=new_request_id())
    ledger.post_batch(shard, [event])

    shouted = msgspec.structs.replace(event, request_id=event.request_id.upper())
    assert ledger.post_batch(shard, [shouted]).outcomes == [DUPLICATE]
    assert ledger.entries_of(event.request_id.upper())[0].request_id == event.request_id


def test_a_hold_that_a_restored_redis_brings_back_ends_once_in_the_books(ledger, payer, shard):
    """Its first end was booked; the second one comes in another epoch."""
    used, released = payer.consume(70, held_quota=100), payer.release(100)
    assert ledger.post_batch(shard, [used, released]).outcomes == ["posted", "posted"]

    expired_again = payer.release(100, request_id=used.request_id, expired=True)
    used_after_all = payer.consume(30, held_quota=100, request_id=released.request_id)
    assert ledger.post_batch(shard, [expired_again, used_after_all]).outcomes == ["duplicate", "posted"]

    assert [entry.kind for entry in ledger.entries_of(used.request_id)] == ["consume"]
    (late,) = [entry for entry in ledger.entries_of(released.request_id) if entry.kind == "consume"]
    assert (late.quota, late.held_quota) == (30, 0), "charged, as usage without a hold"


def test_a_hold_both_released_and_consumed_in_one_batch_ends_once_whatever_comes_first(ledger, payer, shard):
    first, second = payer.release(10), payer.consume(5, held_quota=10)
    batch = [
        first,
        payer.consume(7, held_quota=10, request_id=first.request_id),
        second,
        payer.release(10, request_id=second.request_id),
    ]
    assert ledger.post_batch(shard, batch).outcomes == ["posted"] * 4
    for event in (first, second):
        (charge,) = [entry for entry in ledger.entries_of(event.request_id) if entry.kind == "consume"]
        assert charge.held_quota == 0
