"""docker-compose.yml: Redis has one user, who can do what the product does and no more; no password is an argument."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from billing_tasks.admin import Admin
from billing_tasks.runtime import Runtime
from tests.conftest import Billing, MakeBilling
from tests.faults.breaking import OwnValkey
from tests.faults.conftest import make_valkey, own
from tests.worker.conftest import Processes, eventually, processes

__all__ = ["make_valkey", "own", "processes"]

COMPOSE = (Path(__file__).parents[2] / "docker-compose.yml").read_text(encoding="utf-8")


@pytest.fixture
def guarded(make_billing: MakeBilling, own: OwnValkey) -> Billing:
    """A Billing whose Redis knows the users of docker-compose.yml."""
    own.listen()
    port = own.port
    (rules,) = re.findall(r"^ *user (billing .*)$", COMPOSE, re.MULTILINE)
    words = re.sub(r"\$\{REDIS_PASSWORD[^}]*\}", "secret", rules).split()
    own.client().execute_command("ACL", "SETUSER", *words)
    make_billing(redis_url=own.url)  # as the default user, who may empty it
    return make_billing(redis_url=f"redis://billing:secret@127.0.0.1:{port}")


def test_the_whole_path_runs_as_the_user_of_compose(guarded: Billing, processes: Processes) -> None:
    processes.worker(guarded)
    payer = guarded.payer(1000)
    charged, released = guarded.reserve(payer, 100), guarded.reserve(payer, 50)
    guarded.use(charged, 40)
    guarded.bk.refund_quota(released)
    eventually(lambda: guarded.accounts.user(payer[0]).used_quota == 40, what="a worker has booked it")
    guarded.bk.refund_charge(user_id=payer[0], request_id=charged.request_id, refund_id="case-1")
    eventually(lambda: guarded.accounts.user(payer[0]).used_quota == 0, what="a worker has refunded it")
    admin = Admin(Runtime(guarded.settings))
    assert admin.audit.reconcile().after.ok
    assert eventually(lambda: admin.status().workers)
    admin.close()


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "CONFIG GET save", "SHUTDOWN", "REPLICAOF no one", "KEYS *", "ACL LIST"]
)
def test_the_user_of_compose_can_do_no_more(guarded: Billing, command: str) -> None:
    client = redis.Redis.from_url(guarded.settings.cache_url)
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())
    client.close()


def test_no_password_is_an_argument() -> None:
    arguments = re.findall(r"^ *(?:command|test): *(\[.*?\])$|^ *\[(celery.*)\]$", COMPOSE, re.MULTILINE)
    assert len(arguments) >= 8
    assert not [found for found in arguments if "PASSWORD" in str(found) or "AUTH" in str(found)]
