"""Two installations that share a Redis or a queue by mistake: the second is told, before any quota moves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from billing_tasks import AsyncBookkeeper, Bookkeeper, ConsumeLog, Settings, errors
from billing_tasks.admin import Admin
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.model.ids import new_request_id
from tests.conftest import CHANNEL, Billing
from tests.ledger.conftest import *  # noqa: F403 - a database of its own
from tests.worker.conftest import Processes, eventually


@pytest.fixture
def other(billing: Billing, new_database) -> Settings:  # type: ignore[no-untyped-def]
    """A second installation, whose Redis and prefix are the first one's."""
    url = new_database()
    upgrade(url)
    return billing.settings.model_copy(update={"database_url": url})


def told(error: pytest.ExceptionInfo[errors.BadSettings]) -> bool:
    return all(word in str(error.value) for word in ("BILLING_KEY_PREFIX", "another ledger", "--change-ledger"))


def test_no_door_of_the_second_moves_quota(billing: Billing, other: Settings) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 100), 40)
    log = ConsumeLog(user_id=payer[0], token_id=payer[1], channel_id=CHANNEL, quota=7, request_id=new_request_id())
    before = {key: billing.redis("DUMP", key) for key in billing.redis("KEYS", "*")}

    async def by_asyncio(call: str) -> None:
        async with AsyncBookkeeper.from_settings(other) as bk:
            if call == "reserve":
                await bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
            else:
                await bk.consume(log)

    for call in ("reserve", "consume"):
        with pytest.raises(errors.BadSettings) as error:
            asyncio.run(by_asyncio(call))
        assert told(error)
    with Bookkeeper.from_settings(other) as bk:
        for attempt in (
            lambda: bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1]),
            lambda: bk.consume(log),
            lambda: bk.refund_charge(user_id=payer[0], request_id=log.request_id, refund_id="case-1"),
            lambda: bk.user_has_enough_quota(payer[0], 1),
        ):
            with pytest.raises(errors.BadSettings) as error:
                attempt()
            assert told(error)
    admin = Admin.from_settings(other)
    for look in (admin.audit.verify, admin.audit.reconcile, admin.migrate):
        with pytest.raises(errors.BadSettings) as error:
            look()
        assert told(error)
    assert any("another ledger" in problem for problem in admin.status(workers=False).problems)
    admin.close()
    assert {key: billing.redis("DUMP", key) for key in billing.redis("KEYS", "*")} == before
    billing.settle()
    assert billing.accounts.user(payer[0]).quota == 960


def test_another_prefix_or_the_word_of_a_person_makes_it_two_or_one(billing: Billing, other: Settings) -> None:
    payer = billing.payer(1000)
    billing.use(billing.reserve(payer, 100), 40)
    billing.settle()
    second = other.model_copy(update={"key_prefix": "second"})
    with pytest.raises(errors.UserNotFound), Bookkeeper.from_settings(second) as bk:
        bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
    admin = Admin.from_settings(other)
    assert admin.migrate(change_ledger=True) >= 0
    assert admin.audit.verify(sums=False).findings == []
    with pytest.raises(errors.UserNotFound), Bookkeeper.from_settings(other) as bk:
        bk.pre_consume_quota(10, user_id=payer[0], token_id=payer[1])
    admin.close()
    Admin(billing.runtime).migrate(change_ledger=True)


def test_a_worker_does_not_take_the_messages_of_another_installation(
    billing: Billing, other: Settings, processes: Processes
) -> None:
    payer = billing.payer(1000)
    queue = f"queue-{new_request_id()}"
    environment = {**os.environ, **billing.environment, "BILLING_QUEUE": queue}
    first = processes.celery(
        billing, "w1", "worker", "-c", "1", "-n", "w1@%h", "--loglevel", "INFO", BILLING_QUEUE=queue
    )
    eventually(lambda: b" ready." in processes.logs[-1].read_bytes(), what="the first is ready")
    second = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "billing_tasks", "worker", "-c", "1", "-n", "w2@%h"],
        env={**environment, "BILLING_DATABASE_URL": other.database_url, "BILLING_KEY_PREFIX": "second"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == os.EX_CONFIG
    assert "BILLING_QUEUE" in second.stdout + second.stderr
    assert first.poll() is None
    assert billing.accounts.user(payer[0]).quota == 1000
