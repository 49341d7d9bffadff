"""Bugs that other gateways met in public, each done to ours. The first lines of each test say what theirs did."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from billing_tasks import Bookkeeper, Settings, errors
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.reservation import Reservation
from tests.acceptance.peers.forgetful import forgetful
from tests.conftest import CHANNEL, Billing, MakeBilling, Payer
from tests.worker.conftest import Processes, eventually

T = TypeVar("T")


def gateways(billing: Billing, count: int, **more: Any) -> list[Bookkeeper]:
    """Processes of a deployment, as far as Redis and PostgreSQL can tell: each has connections of its own."""
    settings = billing.settings.model_copy(update={"database_connections": 2, **more})
    return [Bookkeeper.from_settings(settings) for _ in range(count)]


def at_once(calls: list[Callable[[], T]]) -> list[T | errors.BillingError]:
    """All of them started together; refusals are answers."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T | errors.BillingError:
        barrier.wait()
        try:
            return call()
        except errors.BillingError as exc:
            return exc

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def until_done(call: Callable[[], T]) -> T:
    """As a gateway does: again, with the same id, until a server confirms."""
    while True:
        try:
            return call()
        except errors.Unavailable:
            continue


def test_one_api_2440_and_new_api_5690_fifty_requests_at_once_spend_no_more_than_there_is(billing: Billing) -> None:
    """one-api#2440, new-api#5690: check, then unguarded decrement: 50 requests of 100 against 1,000 all passed.

    Ours: ten of them reserve, are charged in full, and leave nothing and no debt."""
    payer = billing.payer(1000, unlimited=True)
    pods = gateways(billing, 5)

    def request(number: int) -> Reservation:
        bk = pods[number % 5]
        reservation = bk.pre_consume_quota(100, user_id=payer[0], token_id=payer[1])
        bk.consume(reservation.log(channel_id=CHANNEL, quota=100))
        return reservation

    answers = at_once([lambda n=n: request(n) for n in range(50)])  # type: ignore[misc]
    billing.settle()
    assert sum(isinstance(answer, Reservation) for answer in answers) == 10
    assert sum(isinstance(answer, errors.InsufficientUserQuota) for answer in answers) == 40
    assert (billing.accounts.user(payer[0]).quota, billing.accounts.user(payer[0]).used_quota) == (0, 1000)
    for pod in pods:
        pod.close()


def test_new_api_6609_a_rich_user_is_held_like_everybody_before_the_upstream_is_called(billing: Billing) -> None:
    """new-api#6609: a user with more than 100 times the amount in a cached balance was forwarded with nothing deducted.

    Ours: `trusted` says what the reference would have done; the hold is there all the same, on every gateway."""
    payer = billing.payer(100_000, unlimited=True)
    pods = gateways(billing, 4)
    for pod in pods:
        assert pod.user_has_much_more_quota(payer[0], 900)  # each has seen the whole balance
    answers = at_once(
        [
            lambda n=n: pods[n % 4].pre_consume_quota(900, user_id=payer[0], token_id=payer[1])
            for n in range(120)  # type: ignore[misc]
        ]
    )
    granted = [answer for answer in answers if isinstance(answer, Reservation)]
    assert granted[0].held_quota == 900
    assert len(granted) == 111
    assert any(reservation.trusted for reservation in granted)
    assert billing.available(payer[0]) == 100_000 - 111 * 900
    for pod in pods:
        pod.close()


def test_one_api_2397_one_code_redeemed_by_many_at_once_is_worth_one_top_up(billing: Billing) -> None:
    """one-api#2397, new-api PR#4302: `FOR UPDATE` was silently dropped by the ORM: one code filled many accounts.

    Ours: one top_up_id, raced over many connections by many users: one of them has it, the others are told."""
    payers = [billing.payer(0) for _ in range(6)]
    answers = at_once(
        [
            lambda u=user_id: billing.accounts.top_up(u, 500, "code-1")[1]
            for user_id, _ in payers
            for _ in range(3)  # type: ignore[misc]
        ]
    )
    assert answers.count(True) == 1
    assert answers.count(False) == 2  # the winner's own repeats
    assert sum(isinstance(answer, errors.IdempotencyConflict) for answer in answers) == 15
    assert sorted(billing.accounts.user(user_id).quota for user_id, _ in payers) == [0] * 5 + [500]


def test_litellm_27639_requests_that_ended_leave_nothing_reserved(billing: Billing) -> None:
    """litellm#27639: some of a request's exits did not release its reservation: 429 at no real spend.

    Ours: however 60 requests end, the balance is short of exactly what they used."""
    payer = billing.payer(100_000)
    charge = {
        "user_id": payer[0],
        "token_id": payer[1],
        "channel_id": CHANNEL,
        "model": "gpt-4o",
        "prompt_tokens": 5,
        "max_tokens": 500,
    }

    def fails_before_usage() -> None:
        with billing.bk.charge(**charge):  # type: ignore[arg-type]
            raise ConnectionError("upstream 502")

    def fails_after_usage() -> None:
        with billing.bk.charge(**charge) as running:  # type: ignore[arg-type]
            running.usage(quota=7)
            raise TimeoutError("the client left")

    def ends_well() -> None:
        with billing.bk.charge(**charge) as running:  # type: ignore[arg-type]
            running.usage(quota=7)

    def ends_without_usage() -> None:
        with billing.bk.charge(**charge):  # type: ignore[arg-type]
            pass

    def repeats_its_end() -> None:
        reservation = billing.reserve(payer, 50)
        billing.bk.refund_quota(reservation)
        billing.bk.refund_quota(reservation)

    def never_ends() -> None:
        billing.reserve(payer, 50, ttl_seconds=1)

    ends = [fails_before_usage, fails_after_usage, ends_well, ends_without_usage, repeats_its_end, never_ends]
    with ThreadPoolExecutor(12) as threads:
        for done in [threads.submit(ends[n % 6]) for n in range(60)]:
            assert not isinstance(done.exception(), errors.BillingError)
    eventually(
        lambda: billing.expire() and billing.verify().open_holds == 0, what="what the gateways did not end has expired"
    )
    billing.settle()
    assert billing.available(payer[0]) == 100_000 - 20 * 7
    assert billing.accounts.user(payer[0]).quota == 100_000 - 20 * 7


def test_litellm_28247_many_gateways_loading_one_cold_account_count_it_once(billing: Billing) -> None:
    """litellm#28247: each pod that met a cold counter added the database's value to it: N times the spend.

    Ours: the cached balance is set, not added to; eight gateways load at once, again and again, and it stays right."""
    payer = billing.payer(10_000)
    pods = gateways(billing, 8)
    keys = billing.runtime.commands.keys
    for round_number in range(1, 11):
        billing.redis("HDEL", keys.user(keys.shard_of(payer[0]), payer[0]), "loaded_epoch")
        billing.redis("HDEL", keys.token(keys.shard_of(payer[0]), payer[1]), "loaded_epoch")
        answers = at_once([lambda p=p: p.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]) for p in pods])  # type: ignore[misc]
        assert all(isinstance(answer, Reservation) for answer in answers)
        assert billing.available(payer[0]) == 10_000 - round_number * 80
    for pod in pods:
        pod.close()


def test_litellm_30460_answers_that_are_lost_inflate_no_counter(make_billing: MakeBilling) -> None:
    """litellm#30460: an increment whose answer timed out was made again: $50 counted where $14 were spent.

    Ours: every third answer of Redis is lost, every call is repeated under its id until confirmed, and all is exact."""
    billing = make_billing()
    payer = billing.payer(1_000_000)
    with forgetful(billing.settings.redis_url, seed=1, losses_in_a_hundred=33) as url:
        (bk,) = gateways(billing, 1, redis_url=url)

        def request(number: int) -> None:
            ids: Any = {"user_id": payer[0], "token_id": payer[1], "request_id": new_request_id()}
            reservation = until_done(lambda: bk.pre_consume_quota(100, **ids))
            if number % 4:
                until_done(lambda: bk.consume(reservation.log(channel_id=CHANNEL, quota=40)))
            else:
                until_done(lambda: bk.refund_quota(reservation))

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(request, range(80)))
        bk.close()
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 60 * 40
    report = billing.verify()
    # A consume that Redis did not confirm was booked directly; then its hold is still open, and expires.
    assert billing.available(payer[0]) == 1_000_000 - 60 * 40 - 100 * report.open_holds
    for shard in range(billing.settings.shards):
        for request_id in billing.redis("ZRANGE", billing.runtime.commands.keys.due(shard), 0, -1):
            billing.redis("ZADD", billing.runtime.commands.keys.due(shard), 1, request_id)
    billing.expire()
    billing.settle()
    assert billing.available(payer[0]) == 1_000_000 - 60 * 40


def test_litellm_33872_a_worker_killed_before_its_commit_loses_no_spend(
    make_billing: MakeBilling, processes: Processes
) -> None:
    """litellm#33872: spend was popped from Redis before the database had committed it, and a crash lost it.

    Ours: a worker and its children die by SIGKILL inside the transaction; the next one books it, once."""
    billing = make_billing(lease_ms=500, doorbell_ms=500, ring_every_seconds=0.5, lock_timeout_seconds=30)
    payer = billing.payer()
    doomed = processes.worker(billing, "doomed")
    children = [int(pid) for pid in Path(f"/proc/{doomed.pid}/task/{doomed.pid}/children").read_text().split()]
    with psycopg.connect(billing.settings.database_url) as other:
        other.execute("select from billing.users where id = %s for update", [payer[0]])
        for _ in range(10):
            billing.use(billing.reserve(payer, 100), 40)
        waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        eventually(lambda: billing.sql(waits), what="the worker is inside its transaction")
        for pid in (doomed.pid, *children):
            os.kill(pid, signal.SIGKILL)
        doomed.wait()
        other.rollback()
    assert billing.accounts.user(payer[0]).used_quota in (0, 400)  # its statement may end without it
    processes.worker(billing, "heir", "--beat", "--schedule", str(processes.folder / "beat"))
    eventually(lambda: billing.verify().backlog == 0, what="the heir books what is left")
    assert billing.accounts.user(payer[0]).used_quota == 400


def test_litellm_34238_no_counter_that_matters_runs_out(billing: Billing) -> None:
    """litellm#34238: the spend counter lived for 60 seconds; once it had run out, old spend did not count.

    Ours: an account with anything held or not yet booked never runs out, and one that left comes back as booked."""
    payer = billing.payer(1000)
    keys = billing.runtime.commands.keys
    accounts = keys.user(keys.shard_of(payer[0]), payer[0]), keys.token(keys.shard_of(payer[0]), payer[1])

    def runs_out() -> set[bool]:
        return {billing.redis("PTTL", account) != -1 for account in accounts}

    reservation = billing.reserve(payer, 600)
    assert runs_out() == {False}
    billing.use(reservation, 600)
    assert runs_out() == {False}
    billing.settle()
    assert runs_out() == {True}
    billing.redis("DEL", *accounts)  # its time is over
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 401)
    assert billing.reserve(payer, 400).held_quota == 400
    assert runs_out() == {False}


def test_litellm_36940_a_budget_set_anew_in_the_middle_of_traffic_erases_no_spend(billing: Billing) -> None:
    """litellm#36940: the reset of a budget wrote its counter while requests were adding to it, and erased spend.

    Ours: top-ups, corrections and a token's new quota race with settlements; every change is one of the sum's terms."""
    payer = billing.payer(10**9, 10**9)
    traffic, requests = 4, 100

    def spend() -> None:
        for _ in range(requests):
            billing.use(billing.reserve(payer, 20), 10)

    with ThreadPoolExecutor(traffic) as threads:
        running = [threads.submit(spend) for _ in range(traffic)]
        for number in range(20):
            billing.settle()
            billing.accounts.top_up(payer[0], 100, f"month-{number}")
            billing.accounts.set_token_quota(payer[1], 10**9)
            billing.sql("update billing.users set quota = quota + 7 where id = %s", payer[0])
        for done in running:
            done.result()
    billing.settle()
    user = billing.accounts.user(payer[0])
    spent = traffic * requests * 10
    assert (user.used_quota, user.quota) == (spent, 10**9 + 20 * 107 - spent)


def reserve_and_die(settings: dict[str, Any], payer: Payer) -> None:
    """Six requests in flight, and the process is gone: no `finally`, no exit handler."""
    bk = Bookkeeper.from_settings(Settings(**settings))
    for _ in range(6):
        bk.pre_consume_quota(100, user_id=payer[0], token_id=payer[1], ttl_seconds=1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_new_api_4429_holds_of_a_process_that_panicked_come_back(billing: Billing) -> None:
    """new-api#4429: a panic between reserving and settling leaked the reservation: 6 of 8, about $1.02, for good.

    Ours: the process dies by SIGKILL with six holds open; they expire, and the ledger says so."""
    payer = billing.payer(1000)
    for _ in range(2):
        billing.use(billing.reserve(payer, 100), 100)
    child = multiprocessing.get_context("spawn").Process(
        target=reserve_and_die, args=(billing.settings.model_dump(), payer)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert billing.available(payer[0]) == 200
    eventually(lambda: billing.expire() and billing.verify().open_holds == 0, what="six holds expire")
    billing.settle()
    assert billing.available(payer[0]) == 800
    expired = "select count(*) from billing.ledger_entries where kind = 'release' and expired and user_id = %s"
    assert billing.sql(expired, payer[0]) == [(6,)]


def test_kombu_337_a_task_delivered_again_while_it_runs_charges_once(
    make_billing: MakeBilling, processes: Processes
) -> None:
    """kombu#337: what is unacknowledged longer than the visibility time-out is delivered again, though it still runs.

    Ours: the same settlement runs in several processes at once, its lease long over, and charges once."""
    billing = make_billing(lease_ms=500, doorbell_ms=500, lock_timeout_seconds=30, shards=1)
    payer = billing.payer()
    processes.worker(billing, "w1", "--include", "tests.acceptance.peers.impatient", "-c", "4")
    log = processes.logs[-1]
    with psycopg.connect(billing.settings.database_url) as other:
        other.execute("select from billing.users where id = %s for update", [payer[0]])
        reservation = billing.reserve(payer, 100)
        billing.use(reservation, 40)
        for _ in range(4):
            billing.use(billing.reserve(payer, 100), 40)
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        eventually(lambda: billing.sql(waits)[0][0] >= 2, what="two processes post the same events")
        other.rollback()
    eventually(lambda: billing.verify().backlog == 0)
    taken = [line for line in log.read_text().splitlines() if "billing.settle[" in line and "received" in line]
    received = [line.split("billing.settle[")[1][:36] for line in taken]
    assert max(map(received.count, received)) >= 2  # one message, delivered more than once
    assert billing.accounts.user(payer[0]).used_quota == 200
    assert billing.available(payer[0]) == 1_000_000 - 200
