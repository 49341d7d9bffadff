"""The command line: what an operator types, what is shown, and the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from billing_tasks import __version__
from billing_tasks.cli import app, show
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import runtime
from tests.conftest import Billing

Run = Callable[..., Result]


@pytest.fixture
def run(billing: Billing, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs a command in this process, on the test's servers."""
    for name, value in billing.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    runtime.cache_clear()

    def invoke(*words: object, status: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    yield invoke
    if runtime.cache_info().currsize:
        runtime().close()
    runtime.cache_clear()


def as_json(result: Result) -> Any:
    return json.loads(result.stdout)


def test_accounts_are_made_topped_up_and_shown(run: Run) -> None:
    user = as_json(run("users", "create", "--id", 42, "--quota", 1000, "--group", "vip", "--json"))[0]
    assert (user["quota"], user["group_name"]) == (1000, "vip")
    run("tokens", "create", 42, "--id", 7, "--name", "laptop", "--quota", 500)
    run("channels", "create", "--id", 3, "--name", "azure")
    assert "Booked: user 42 has 3,000 quota now (<$0.01)." in run("top-up", 42, 2000, "--id", "payment-1").output
    assert "booked before; nothing changed" in run("top-up", 42, 2000, "--id", "payment-1").output
    assert "3,000" in run("users", "list").output
    assert "laptop" in run("tokens", "list", "--user", 42).output
    assert "azure" in run("channels", "list").output
    assert as_json(run("balance", 42, "--json"))["available"] == 3000


def test_tokens_and_users_are_changed(run: Run) -> None:
    run("users", "create", "--id", 42)
    run("tokens", "create", 42, "--id", 7)
    changes = ("--status", "disabled", "--quota", 900, "--unlimited", "--expires", "2030-01-01")
    token = as_json(run("tokens", "set", 7, *changes, "--json"))[0]
    assert token["expires_at_ms"] == 1_893_456_000_000
    assert (token["status"], token["remain_quota"], token["unlimited_quota"]) == ("disabled", 900, True)
    assert as_json(run("users", "set", 42, "--status", "disabled", "--json"))[0]["status"] == "disabled"


def test_the_log_shows_what_was_booked(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 100, client_key="order-9")
    billing.use(reservation, 40)
    billing.settle()
    (entry,) = as_json(run("log", "--request", reservation.request_id, "--json"))
    assert (entry["kind"], entry["quota"]) == ("consume", 40)
    assert reservation.request_id in run("log", "--client-key", "order-9").output
    assert "opening balance" in run("log", "--user", payer[0]).output


def test_status_counts_what_waits(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    billing.reserve(payer, 100)
    billing.use(billing.reserve(payer, 100), 40)
    seen = as_json(run("status", "--json"))
    assert (seen["redis"]["backlog"], seen["redis"]["open_holds"], seen["workers"]) == (1, 1, [])
    assert "events waiting" in run("status").output


def test_status_says_when_a_server_is_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_REDIS_URL", "unix:///nonexistent/valkey.sock")
    runtime.cache_clear()
    result = run("status", status=1)
    assert "did not answer" in result.output


def test_verify_says_what_is_off_and_exits_with_1(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    billing.reserve(payer, 100)
    assert "All guarantees hold" in run("verify").output
    key = billing.user_key(payer[0])
    billing.redis("HINCRBY", key, "held", 5)
    report = as_json(run("verify", "--json", status=1))
    billing.redis("HINCRBY", key, "held", -5)
    assert report["findings"] == [
        {"guarantee": 4, "what": "user.held in Redis", "id": str(payer[0]), "expected": 100, "actual": 105}
    ]


@pytest.mark.parametrize(
    ("table", "column", "guarantee"),
    [
        ("users", "used_quota", 3),
        ("tokens", "remain_quota", 3),
        ("channel_usage", "used_quota", 3),
        ("outbox_cursors", "posted", 2),
    ],
)
def test_verify_finds_damage_in_postgresql(run: Run, billing: Billing, table: str, column: str, guarantee: int) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    billing.settle()
    damaged = "set session_replication_role = replica; update billing.{} set {} = {} {} 1"  # no trigger books it
    billing.sql(damaged.format(table, column, column, "-"))
    found = {finding["guarantee"] for finding in as_json(run("verify", "--json", status=1))["findings"]}
    billing.sql(damaged.format(table, column, column, "+"))
    assert guarantee in found


def test_verify_finds_a_cached_row_that_postgresql_never_had(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    billing.settle()
    key = billing.user_key(payer[0])
    billing.redis("HINCRBY", key, "balance", 1)
    findings = as_json(run("verify", "--json", status=1))["findings"]
    billing.redis("HINCRBY", key, "balance", -1)
    assert [(finding["guarantee"], finding["what"]) for finding in findings] == [(4, "user.balance in Redis")]


def test_a_dead_letter_is_listed_shown_retried_and_discarded(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    request_id = new_request_id()
    for refund_id in ("a", "b"):
        billing.bk.refund_charge(user_id=payer[0], request_id=request_id, refund_id=refund_id, quota=10)
    billing.settle()
    second, first = (dead_letter["id"] for dead_letter in as_json(run("dead-letters", "list", "--json")))
    assert "no_charge" in run("dead-letters", "list", "--kind", "refund").output
    assert f"dead-letters retry {first}" in run("dead-letters", "show", first).output
    assert "still refused, no_charge" in run("dead-letters", "retry", first, status=1).output

    run("dead-letters", "discard", second, "--comment", "asked for twice", "--actor", "ann")
    shown = as_json(run("dead-letters", "show", second, "--json"))
    assert (shown["state"], shown["handled_by"], shown["handled_why"]) == ("discarded", "ann", "asked for twice")

    log = {"user_id": payer[0], "token_id": payer[1], "channel_id": 3, "quota": 50, "request_id": request_id}
    from billing_tasks import ConsumeLog

    billing.bk.consume(ConsumeLog(**log))
    billing.settle()
    assert "booked now" in run("dead-letters", "retry", "--all", "--actor", "ann").output
    assert "had been booked before, nothing charged again" in run("dead-letters", "retry", first).output
    assert "No dead letters." in run("dead-letters", "list").output
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_price_needs_no_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_REDIS_URL", "unix:///nonexistent/valkey.sock")
    assert as_json(run("price", "gpt-4o", "--prompt", 374, "--completion", 44, "--json"))["quota"] == 1375


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"billing-tasks {__version__}\n"


def test_migrate_can_be_repeated(run: Run) -> None:
    assert as_json(run("migrate", "--json"))["migrated"]
    said = run("migrate").output
    assert "up to date" in said
    assert "Redis is filled for 12 shards with spread tags." in said
    assert run("migrate", "--change-layout").exit_code == 0  # the layout that is there already


def test_an_error_is_a_sentence_and_what_to_do_about_it(billing: Billing) -> None:
    command = [sys.executable, "-c", "from billing_tasks.cli import main; main()", "balance", "999"]
    done = subprocess.run(
        command, env={**billing.environment, "COLUMNS": "200"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "There is no user 999.",
        "Create the user with Accounts.create_user, or correct the id.",
    ]


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "from billing_tasks.cli import main; main()", "price", "gpt-4o"]
    done = subprocess.run(command, env={"BILLING_SHARDS": "many"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BILLING_SHARDS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("width", [80, 140])
def test_a_log_keeps_ids_in_one_line_and_says_what_the_balance_did(  # type: ignore[no-untyped-def]
    run, billing: Billing, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(show.console, "width", width)
    payer = billing.payer()
    charged, released = billing.reserve(payer, 1500), billing.reserve(payer, 700)
    billing.use(charged, 1234)
    billing.bk.refund_quota(released)
    billing.settle()
    billing.bk.refund_charge(user_id=payer[0], request_id=charged.request_id, quota=1000, refund_id="case-1")
    billing.settle()
    lines = [line for line in run("log", "--user", payer[0]).stdout.splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    quota = {line.split()[2]: line for line in lines if len(line.split()) > 2}
    assert "+1,000" in quota["refund"]
    assert "-1,234" in quota["consume"]
    assert charged.request_id in quota["consume"]
    assert quota["release"].split()[-1 if width == 80 else -2] in ("0", "–")
