"""Settings of the servers under which the guarantees don't hold: each is said where an operator looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from billing_tasks.admin import Admin
from billing_tasks.lab.servers.folders import StateFolder
from billing_tasks.metrics import Watcher
from billing_tasks.runtime import Runtime
from tests.conftest import Billing
from tests.faults.breaking import OwnValkey
from tests.faults.conftest import make_valkey, own
from tests.faults.pooler import dropping_options
from tests.worker.conftest import Processes, eventually, processes

__all__ = ["StateFolder", "make_valkey", "own", "processes"]

#: The tests' servers are fast on purpose.
FAST = {"redis_fsync", "postgresql_fsync", "postgresql_full_page_writes"}


def codes(runtime: Runtime) -> set[str]:
    found = {warning.code for warning in Admin(runtime).audit.setup()}
    assert found == {warning.code for warning in Admin(runtime).status(workers=False).warnings}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Watcher(runtime))
    text = generate_latest(registry).decode()
    assert all(f'billing_setup_warning{{code="{code}"}} 1.0' in text for code in found)
    return found - FAST


def over(billing: Billing, **settings: object) -> Runtime:
    return Runtime(billing.settings.model_copy(update=settings))


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("maxmemory-policy", "allkeys-lru", "redis_eviction"),
        ("maxmemory-policy", "volatile-ttl", "redis_eviction"),
        ("appendonly", "no", "redis_snapshots_only"),
        ("appendfsync", "everysec", "redis_fsync"),
    ],
)
def test_a_setting_of_redis_that_loses_usage_is_said(
    billing: Billing, own: OwnValkey, name: str, value: str, code: str
) -> None:
    client = own.client()
    before = {one: client.config_get(one)[one] for one in (name, "save")}  # type: ignore[index]
    client.config_set("save", "3600 1")
    client.config_set(name, value)
    runtime = over(billing, redis_url=own.url)
    try:
        assert {warning.code for warning in Admin(runtime).audit.setup()} >= {code}
        if code == "redis_snapshots_only":
            client.config_set("save", "")
            assert codes(runtime) == {"redis_persistence"}
        report = Admin(runtime).audit.verify()
        assert code in {warning.code for warning in report.warnings} or name == "appendonly"
    finally:
        for one, was in before.items():
            client.config_set(one, was)
        runtime.close()


def test_a_replica_and_a_server_that_does_not_tell(billing: Billing, own: OwnValkey) -> None:
    client = own.client()
    runtime = over(billing, redis_url=own.url)
    client.execute_command("ACL", "SETUSER", "default", "-config")
    try:
        assert codes(runtime) == set()
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert codes(runtime) == {"redis_replica"}
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.execute_command("ACL", "SETUSER", "default", "+config")
        runtime.close()


def test_settings_of_postgresql_that_lose_books_are_said(billing: Billing) -> None:
    assert {warning.code for warning in Admin(billing.runtime).audit.setup()} == FAST


def test_a_pooler_that_drops_what_a_session_asks_for_is_said(billing: Billing) -> None:
    folder = billing.settings.database_url.partition("host=")[2]
    with (
        dropping_options(f"{folder}/.s.PGSQL.5432") as port,
        psycopg.connect(billing.settings.database_url, autocommit=True) as other,
    ):
        runtime = over(billing, database_url=f"postgresql://billing@127.0.0.1:{port}/billing")
        other.execute("alter role billing set synchronous_commit = off")
        try:
            assert codes(runtime) == {"postgresql_timeouts", "postgresql_synchronous_commit"}
        finally:
            other.execute("alter role billing reset synchronous_commit")
            runtime.close()


def test_a_clock_that_differs_is_said(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> None:
    from billing_tasks.flows.audit import setup

    real = setup.time.time
    monkeypatch.setattr(setup.time, "time", lambda: real() + 3600)
    assert codes(billing.runtime) == {"redis_clock", "postgresql_clock"}


def test_a_warning_that_is_meant_so_is_not_said(billing: Billing) -> None:
    runtime = over(billing, accepted_warnings=", ".join(FAST))
    assert Admin(runtime).audit.setup() == []
    runtime.close()


def test_a_worker_says_it_when_it_starts_and_the_command_line_when_it_is_asked(
    billing: Billing, processes: Processes
) -> None:
    processes.worker(billing, "w1")
    eventually(lambda: "(redis_fsync)" in processes.logs[-1].read_text(), what="the worker says it")
    ask = [sys.executable, "-c", "from billing_tasks.cli import main; main()"]
    for command, where in (("status", "stderr"), ("verify", "stderr")):
        done = subprocess.run(
            [*ask, command], env={**os.environ, **billing.environment}, capture_output=True, text=True, check=False
        )
        assert "(redis_fsync)" in getattr(done, where)
        told = json.loads(
            subprocess.run(
                [*ask, command, "--json"], env={**os.environ, **billing.environment}, capture_output=True, check=False
            ).stdout
        )
        assert {one["code"] for one in told["warnings"]} == FAST
