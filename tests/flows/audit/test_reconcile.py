"""Reconcile: what is off in Redis is found, named and set right; the ledger is never touched."""

from __future__ import annotations

import json

import pytest

from billing_tasks import errors
from billing_tasks.flows.audit import reconcile
from billing_tasks.flows.audit.answers import Finding
from billing_tasks.holds.repairs import ForgetAccount, RecountAccount
from tests.conftest import Billing


def look(billing: Billing) -> dict[str, Finding]:
    """What verify finds, by what it is."""
    return {finding.what: finding for finding in billing.verify().findings}


def repair(billing: Billing) -> list[str]:
    """Every repair that was made, in words."""
    wanted = [found.repair for found in billing.verify().findings if found.repair]
    return [
        str(made)
        for made in billing.runtime.run(
            reconcile.repair(wanted, commands=billing.runtime.commands, settings=billing.settings)
        )
    ]


def ledger_rows(billing: Billing) -> list[object]:
    return [
        billing.sql("select * from billing.users order by id"),
        billing.sql("select * from billing.tokens order by id"),
        billing.sql("select * from billing.ledger_entries order by entry_id, kind"),
    ]


@pytest.mark.parametrize("which", ["user", "token"])
@pytest.mark.parametrize("counter", ["held", "unposted"])
@pytest.mark.parametrize("by", [500, -70])
def test_a_counter_changed_by_hand_is_set_to_what_explains_it(
    billing: Billing, which: str, counter: str, by: int
) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 100), 40)
    billing.reserve(payer, 70)
    before = ledger_rows(billing)
    keys = billing.runtime.commands.keys
    account = (
        keys.user(keys.shard_of(payer[0]), payer[0])
        if which == "user"
        else keys.token(keys.shard_of(payer[0]), payer[1])
    )
    billing.redis("HINCRBY", account, counter, by)

    finding = look(billing)[f"{which}.{counter} in Redis"]
    right = {"held": 70, "unposted": 40}[counter]
    assert (finding.guarantee, finding.expected, finding.actual) == (4, right, right + by)
    assert repair(billing) == [f"count held and unposted of {which} {payer[which == 'token']} anew"]
    assert look(billing) == {}
    assert repair(billing) == []
    assert billing.available(payer[0]) == 1000 - 110
    assert ledger_rows(billing) == before


def test_an_account_hash_that_was_deleted_is_counted_anew(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 100), 40)
    billing.reserve(payer, 70)
    keys = billing.runtime.commands.keys
    billing.redis("DEL", keys.user(keys.shard_of(payer[0]), payer[0]), keys.token(keys.shard_of(payer[0]), payer[1]))
    assert len(repair(billing)) == 2
    assert billing.available(payer[0]) == 1000 - 110
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 891)


def test_an_account_that_would_vanish_with_its_holds_is_kept(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.reserve(payer, 70)
    key = billing.user_key(payer[0])
    billing.redis("EXPIRE", key, 100)
    assert "user that would vanish from Redis" in look(billing)
    assert len(repair(billing)) == 1
    assert billing.redis("TTL", key) == -1


def test_a_cached_row_that_postgresql_contradicts_is_loaded_again(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.reserve(payer, 70)
    billing.redis(
        "HSET",
        billing.user_key(payer[0]),
        "balance",
        5_000_000,
    )
    assert look(billing)["user.balance in Redis"].expected == 1000
    assert repair(billing) == [f"load user {payer[0]} from PostgreSQL again"]
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 931)
    assert billing.reserve(payer, 930).held_quota == 930


def test_rows_cached_from_a_postgresql_that_was_set_back_are_loaded_again(billing: Billing) -> None:
    """Restored from a backup: everything in it is older than what Redis has seen."""
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 100), 40)
    billing.settle()
    for account in ("users", "tokens"):
        # Not as another program would: to those a version never goes back.
        billing.sql(
            f"set session_replication_role = replica; update billing.{account} set version = 0 where id in ("
            f"{payer[0]}, {payer[1]})"
        )
    billing.sql("alter sequence billing.versions restart")
    assert set(look(billing)) == {"user.version in Redis", "token.version in Redis"}
    assert len(repair(billing)) == 2
    billing.use(billing.reserve(payer, 900), 60)
    billing.settle()
    assert billing.available(payer[0]) == 900


def test_a_cached_row_that_was_replaced_meanwhile_is_not_forgotten(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.reserve(payer, 70)
    key = billing.user_key(payer[0])
    version = int(billing.redis("HGET", key, "version"))
    stale = ForgetAccount(billing.runtime.commands.keys.shard_of(payer[0]), "user", payer[0], version - 1)
    run = billing.runtime.run
    assert run(reconcile.repair([stale], commands=billing.runtime.commands, settings=billing.settings)) == []
    assert int(billing.redis("HGET", key, "version")) == version


def test_a_recount_of_what_is_right_changes_nothing(billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 100), 40)
    needless = RecountAccount(billing.runtime.commands.keys.shard_of(payer[0]), "user", payer[0])
    run = billing.runtime.run
    assert run(reconcile.repair([needless], commands=billing.runtime.commands, settings=billing.settings)) == []


def test_a_hold_that_no_sweep_would_find_expires_after_all(billing: Billing) -> None:
    payer = billing.payer(1000)
    reservation = billing.reserve(payer, 70)
    keys = billing.runtime.commands.keys
    due = keys.due(keys.shard_of(payer[0]))
    billing.redis("ZREM", due, reservation.request_id)
    assert "hold that would never expire" in look(billing)
    assert len(repair(billing)) >= 1
    assert look(billing) == {}
    assert billing.redis("ZSCORE", due, reservation.request_id)
    billing.redis("ZADD", due, 1, reservation.request_id)
    assert billing.expire() == 1


def test_what_no_script_wrote_is_told_and_left_to_a_person(billing: Billing) -> None:
    keys = billing.runtime.commands.keys
    billing.redis("SET", keys.hold(3, "garbage"), "not a hold")
    finding = look(billing)["hold that no script wrote"]
    assert (finding.id, finding.repair) == ("garbage", None)
    billing.redis("DEL", keys.hold(3, "garbage"))


def test_the_ledgers_own_faults_are_told_and_never_repaired(billing: Billing) -> None:
    payer = billing.payer(1000)
    with_damage = "set session_replication_role = replica; update billing.users set quota = quota + 1"
    billing.sql(with_damage)
    finding = look(billing)["users.quota"]
    assert (finding.guarantee, finding.expected, finding.actual, finding.repair) == (3, 1000, 1001, None)
    assert repair(billing) == []
    assert billing.accounts.user(payer[0]).quota == 1001
    billing.sql("set session_replication_role = replica; update billing.users set quota = quota - 1")


def test_the_task_repairs_redis_and_says_what_it_did(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.worker.tasks import module as tasks
    from tests.worker.tasks import task_of

    monkeypatch.setattr(tasks, "runtime", lambda: billing.runtime)
    payer = billing.payer(1000)
    billing.reserve(payer, 70)
    billing.redis(
        "HINCRBY",
        billing.user_key(payer[0]),
        "held",
        30,
    )
    told = task_of("reconcile_all")(repair=False)
    assert (told["ok"], told["repaired"]) == (False, [])
    told = task_of("reconcile_all")(sums=False)
    assert told["repaired"] == [f"count held and unposted of user {payer[0]} anew"]
    assert json.loads(json.dumps(told)) == told
    assert task_of("reconcile_all")()["ok"]


def test_a_shard_with_a_long_backlog_is_not_judged_rather_than_blocked(
    billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding up a million events inside Redis would stop every gateway for seconds."""
    from billing_tasks.holds import audit, repairs

    payer = billing.payer(1000)
    for _ in range(5):
        billing.use(billing.reserve(payer, 10), 1)
    key = billing.user_key(payer[0])
    billing.redis("HINCRBY", key, "held", 7)
    wanted = RecountAccount(billing.runtime.commands.keys.shard_of(payer[0]), "user", payer[0])
    for module in (audit, repairs):
        monkeypatch.setattr(module, "MOST_IN_A_SHARD", 4)
    report = billing.verify()
    assert (report.findings, report.unjudged) == ([], 1)
    run = billing.runtime.run
    assert run(reconcile.repair([wanted], commands=billing.runtime.commands, settings=billing.settings)) == []
    for module in (audit, repairs):
        monkeypatch.setattr(module, "MOST_IN_A_SHARD", 5)
    assert len(repair(billing)) == 1
