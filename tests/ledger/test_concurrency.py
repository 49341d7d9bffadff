"""Many at once: threads on connections of their own, real locks, real waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from threading import Barrier
from typing import TypeVar

import psycopg
import pytest

from billing_tasks.ledger.migrations import pending, upgrade
from billing_tasks.model import events
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import PostOutcome

T = TypeVar("T")


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Run the calls in threads that start together."""
    barrier = Barrier(len(calls))

    def start(call: Callable[[], T]) -> T:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls))


def test_eight_threads_posting_the_same_batch_book_it_once(ledger, new_payer, shard):
    payers = [new_payer() for _ in range(20)]
    batch = [random.choice(payers).consume(n, channel_id=10**9 + n % 5) for n in range(1, 301)]

    answers = at_once(*[lambda: ledger.post_batch(shard, batch)] * 8)

    per_event = list(zip(*(answer.outcomes for answer in answers), strict=True))
    assert all(sorted(outcomes) == ["duplicate"] * 7 + ["posted"] for outcomes in per_event)
    assert sum(ledger.get_user(p.user.id).used_quota for p in payers) == sum(range(1, 301))


def test_overlapping_batches_in_different_order_never_deadlock_and_count_each_event_once(ledger, new_payer, shard):
    payers = [new_payer() for _ in range(10)]
    batch = [random.choice(payers).consume(n, channel_id=10**9 + n % 7) for n in range(1, 201)]

    def shuffled() -> list[PostOutcome]:
        mine = random.sample(batch, 150)
        return ledger.post_batch(shard, mine).outcomes

    answers = at_once(*[shuffled] * 8)

    assert {outcome for outcomes in answers for outcome in outcomes} <= {PostOutcome.POSTED, PostOutcome.DUPLICATE}
    ledger.post_batch(shard, batch)
    assert sum(ledger.get_user(p.user.id).used_quota for p in payers) == sum(range(1, 201))


def test_two_shards_posting_the_same_users_never_deadlock(ledger, new_payer, shard, sql):
    payers = [new_payer() for _ in range(30)]
    channel = ledger.create_channel()
    before = _deadlocks(sql)

    def post(own_shard: int) -> None:
        for _ in range(20):
            batch = [random.choice(payers).consume(1, channel_id=channel.id) for _ in range(40)]
            assert set(ledger.post_batch(own_shard, batch).outcomes) == {PostOutcome.POSTED}

    at_once(*[lambda own=shard + n: post(own) for n in range(4)])

    assert ledger.get_channel(channel.id).used_quota == 4 * 20 * 40
    assert _deadlocks(sql) == before


def _deadlocks(sql) -> int:
    return sql.execute("select deadlocks from pg_stat_database where datname = current_database()").fetchone()[0]


def test_a_release_waits_for_the_consume_of_its_hold_that_is_not_committed_yet(ledger, payer, shard, ledger_url):
    charge = payer.consume(40, held_quota=100)
    release = payer.release(100, request_id=charge.request_id)
    with psycopg.connect(ledger_url) as other, ThreadPoolExecutor(1) as thread:
        other.execute("select billing.post_batch_v2(%s, %s)", [f'[{{"shard": {shard}}}]', events.encode_all([charge])])
        answer = thread.submit(ledger.post_batch, shard, [release])
        while not other.execute("select count(*) from pg_locks where not granted").fetchone()[0]:
            assert not answer.done(), "nothing kept the release from being booked as well"
        other.commit()
        assert answer.result().outcomes == [PostOutcome.DUPLICATE]


def test_racing_refunds_never_exceed_the_charge(ledger, payer, shard):
    charge = payer.consume(100)
    ledger.post_batch(shard, [charge])

    answers = at_once(*[lambda: ledger.post_refund(shard, payer.refund(charge, 30)).outcomes[0]] * 8)

    assert sorted(answers) == ["above_charge"] * 5 + ["posted"] * 3
    assert ledger.get_user(payer.user.id).quota == 1_000_000 - 100 + 90


def test_racing_repeats_of_one_refund_book_it_once(ledger, payer, shard):
    charge = payer.consume(100)
    ledger.post_batch(shard, [charge])
    refund = payer.refund(charge)

    answers = at_once(*[lambda: ledger.post_refund(shard, refund).outcomes[0]] * 8)

    assert sorted(answers) == ["duplicate"] * 7 + ["posted"]


def test_one_refund_id_raced_by_two_users_is_booked_for_one_of_them(ledger, new_payer, shard):
    for _ in range(10):
        refund_id = new_request_id()
        payers = [new_payer() for _ in range(4)]
        charges = [payer.consume(100) for payer in payers]
        ledger.post_batch(shard, charges)
        refunds = [p.refund(c, refund_id=refund_id) for p, c in zip(payers, charges, strict=True)]

        answers = at_once(*[lambda refund=r: ledger.post_refund(shard, refund).outcomes[0] for r in refunds])

        assert sorted(answers) == ["conflict"] * 3 + ["posted"]


def test_racing_repeats_of_one_top_up_add_it_once(ledger, payer):
    top_up_id = new_request_id()

    answers = at_once(*[lambda: ledger.top_up(payer.user.id, 500, top_up_id)[1]] * 8)

    assert sorted(answers) == [False] * 7 + [True]
    assert ledger.get_user(payer.user.id).quota == 1_000_500


def test_posting_top_ups_refunds_and_edits_at_once_still_add_up(ledger, new_payer, shard, ledger_url):
    payers = [new_payer() for _ in range(5)]
    charges = [payer.consume(50) for payer in payers]
    ledger.post_batch(shard, charges)

    def post() -> None:
        for _ in range(20):
            ledger.post_batch(shard, [random.choice(payers).consume(3) for _ in range(20)])

    def refund() -> None:
        for payer, charge in zip(payers, charges, strict=True):
            ledger.post_refund(shard, payer.refund(charge, 20))

    def top_up() -> None:
        for payer in payers * 4:
            ledger.top_up(payer.user.id, 7, new_request_id())
            ledger.adjust_token(payer.token.id, -7, new_request_id())

    def edit() -> None:
        with psycopg.connect(ledger_url, autocommit=True) as other:
            for payer in payers * 4:
                other.execute("update billing.users set quota = quota + 11 where id = %s", [payer.user.id])

    at_once(post, post, refund, top_up, edit)

    spent = sum(ledger.get_user(p.user.id).used_quota for p in payers)
    assert spent == 2 * 20 * 20 * 3 + 5 * 50 - 5 * 20
    assert sum(ledger.get_user(p.user.id).quota for p in payers) == 5_000_000 - spent + 20 * 7 + 20 * 11


def test_workers_that_claim_at_once_never_get_the_same_dead_letter(ledger):
    kind = new_request_id()
    for n in range(40):
        ledger.add_dead_letter(
            kind=kind, request_id=str(n), user_id=1, payload=b"{}", reason="r", error="e", next_attempt_seconds=-1
        )

    claims = at_once(*[lambda: ledger.claim_dead_letters(limit=10, lease_seconds=60, kind=kind)] * 8)

    ids = [dead_letter.id for claim in claims for dead_letter in claim]
    assert len(ids) == len(set(ids)) == 40


def test_a_claim_passes_by_what_another_worker_is_claiming(ledger, ledger_url):
    kind = new_request_id()
    fields = {"user_id": 1, "payload": b"{}", "reason": "r", "error": "e", "next_attempt_seconds": -1}
    taken, free = (ledger.add_dead_letter(kind=kind, request_id=r, **fields)[0].id for r in ("1", "2"))

    with psycopg.connect(ledger_url) as other:
        other.execute("select from billing.dead_letters where id = %s for update", [taken])
        claimed = ledger.claim_dead_letters(limit=5, lease_seconds=60, kind=kind)

    assert [dead_letter.id for dead_letter in claimed] == [free]


def test_upgrades_started_at_once_all_succeed(new_database):
    url = new_database()

    at_once(*[lambda: upgrade(url)] * 4)

    assert pending(url) == []


def test_upgrades_started_by_several_processes_all_succeed(new_database):
    url = new_database()

    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        list(pool.map(upgrade, [url] * 3))

    assert pending(url) == []


def test_an_upgrade_waits_for_another_one(new_database):
    url = new_database()

    with psycopg.connect(url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("select pg_advisory_xact_lock(hashtext('billing.migrations'))")
        waiting = pool.submit(upgrade, url)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        other.commit()
        waiting.result(timeout=20)

    assert pending(url) == []


def test_partitions_maintained_at_once_are_made_once(spare_ledger, spare_sql):
    spare_sql.execute("drop table billing.ledger_entries_" + _last_month(spare_sql))

    assert sorted(at_once(*[spare_ledger.maintain_partitions] * 6)) == [0] * 5 + [1]


def _last_month(sql) -> str:
    return sql.execute("select to_char(now() at time zone 'UTC' + interval '3 months', 'YYYY_MM')").fetchone()[0]
