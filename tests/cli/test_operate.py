"""reconcile, metrics, spool, and what status says of a loss: as an operator meets them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from billing_tasks import Bookkeeper, Settings
from billing_tasks.cli import app
from billing_tasks.flows.settlement.ring import ring_stale
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import runtime
from tests.conftest import Billing
from tests.flows.requests.test_away import NO_POSTGRESQL, NO_REDIS, log_of

Run = Callable[..., Result]


@pytest.fixture
def run(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in this process, on the test's servers or on those of BILLING_* as they are then."""
    for name, value in billing.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*words: object, status: int = 0) -> Result:
        runtime.cache_clear()
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        runtime().close()
        runtime.cache_clear()
        assert result.exit_code == status, result.output
        return result

    yield invoke
    runtime.cache_clear()


def as_json(result: Result) -> Any:
    return json.loads(result.stdout)


def test_reconcile_lists_what_it_would_repair_and_repairs_it_when_asked(run: Run, billing: Billing) -> None:
    payer = billing.payer(1000)
    billing.reserve(payer, 70)
    assert "All guarantees hold" in run("reconcile").output
    billing.redis(
        "HINCRBY",
        billing.user_key(payer[0]),
        "held",
        5,
    )

    listed = run("reconcile", status=1).output
    assert f"to repair: count held and unposted of user {payer[0]} anew" in listed
    assert "reconcile --repair" in listed
    assert as_json(run("reconcile", "--json", status=1))["repaired"] == []

    assert f"repaired: count held and unposted of user {payer[0]} anew" in run("reconcile", "--repair").output
    told = as_json(run("reconcile", "--repair", "--json"))
    assert (told["ok"], told["repairs"], told["findings"]) == (True, [], [])


def test_metrics_tell_what_an_alert_needs(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    billing.reserve(payer, 70)
    billing.use(billing.reserve(payer, 100), 40)
    told = metrics_of(run("metrics").output)
    assert told['billing_up{server="redis"}'] == told['billing_up{server="postgresql"}'] == "1.0"
    assert (told["billing_outbox_events"], told["billing_open_holds"]) == ("1.0", "1.0")
    assert told['billing_dead_letters{state="failed"}'] == told["billing_events_missing"] == "0.0"


def metrics_of(text: str) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_metrics_of_the_server_that_is_left_are_told(
    run: Run, billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLING_REDIS_URL", NO_REDIS)
    told = metrics_of(run("metrics").output)
    assert (told['billing_up{server="redis"}'], told['billing_up{server="postgresql"}']) == ("0.0", "1.0")
    assert "billing_outbox_events" not in told
    assert "billing_incidents" in told


def test_metrics_are_served(billing: Billing) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from billing_tasks.cli import main; main()"
    command = [sys.executable, "-uc", program, "metrics", "--port", str(port)]
    serving = subprocess.Popen(command, env={**os.environ, **billing.environment}, stdout=subprocess.PIPE, text=True)
    with serving:
        try:
            assert serving.stdout is not None
            assert f"http://127.0.0.1:{port}/metrics" in serving.stdout.readline()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert metrics_of(answer.read().decode())["billing_outbox_events"] == "0.0"
        finally:
            serving.terminate()


def test_status_and_metrics_say_what_a_lost_redis_cost(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    for _ in range(3):
        billing.use(billing.reserve(payer, 100), 40)
    billing.runtime.run(ring_stale(commands=billing.runtime.commands, settings=billing.settings))
    billing.redis("FLUSHDB")
    billing.use(billing.reserve(payer, 100), 40)
    billing.runtime.run(ring_stale(commands=billing.runtime.commands, settings=billing.settings))
    shard = billing.runtime.commands.keys.shard_of(payer[0])
    told = re.sub(r"\s+", " ", run("status").output)
    assert f"3 events of shard {shard} are missing, and what was filed from" in told
    assert "Redis came back empty" in told
    assert metrics_of(run("metrics").output)["billing_events_missing"] == "3.0"
    assert as_json(run("verify", "--json"))["events_missing"] == 3


def test_the_spool_is_shown_and_relayed(
    run: Run, billing: Billing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "BILLING_SPOOL_FOLDER" in str(CliRunner().invoke(app, ["spool"]).exception)
    monkeypatch.setenv("BILLING_SPOOL_FOLDER", str(tmp_path))
    assert "Nothing waits" in run("spool").output
    payer = billing.payer()
    with Bookkeeper.from_settings(
        Settings(redis_url=NO_REDIS, database_url=NO_POSTGRESQL, spool_folder=tmp_path)
    ) as bk:
        log = log_of(payer)
        assert bk.consume(log).spooled
    assert log.request_id in run("spool", status=1).output
    told = as_json(run("spool", "--relay", "--json"))
    assert told == {"relayed": 1, "refused": 0, "left": []}
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_status_says_whose_a_backlog_is(run: Run, billing: Billing) -> None:
    busy, other = billing.payer(), billing.payer()
    for payer, times in ((busy, 3), (other, 1)):
        for _ in range(times):
            billing.use(billing.reserve(payer, 100), 40)
    told = as_json(run("status", "--json"))["behind"]
    assert [(one["user_id"], one["events"], one["quota"]) for one in told] == [(busy[0], 3, 120), (other[0], 1, 40)]
    assert f"user {busy[0]} (3 events, 120 quota)" in re.sub(r"\s+", " ", run("status").output)
    billing.settle()
    assert as_json(run("status", "--json"))["behind"] == []


def test_metrics_tell_reasons_and_ages_of_dead_letters_and_count_no_restart_as_a_loss(
    run: Run, billing: Billing
) -> None:
    payer = billing.payer()
    for number in range(2):
        billing.bk.refund_charge(user_id=payer[0], request_id=new_request_id(), refund_id=f"case-{number}")
    billing.settle()
    billing.sql("update billing.dead_letters set first_seen = now() - interval '2 hours' where id = 1")
    billing.sql(
        "insert into billing.incidents (shard, epoch, kind, from_seq, to_seq, events_bound, note)"
        " values (1, 7, 'new_epoch', 0, 0, 0, 'Redis came back with all that was known')"
    )
    told = metrics_of(run("metrics").output)
    assert told['billing_open_dead_letters{reason="no_charge"}'] == "2.0"
    assert 7200 <= float(told['billing_open_dead_letters_oldest_seconds{reason="no_charge"}']) < 7300
    assert told["billing_incidents"] == "0.0"
