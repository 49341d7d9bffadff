"""Status, incidents, audit, the facade, and which module may import which."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from billing_tasks.admin import Admin
from billing_tasks.admin.incidents import grouped, worth_a_look
from billing_tasks.errors import BadSettings, InvalidRequest
from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.settings import Settings
from tests.admin.conftest import DeadLetterDriver, usage
from tests.conftest import Billing
from tests.flows.requests.test_away import NO_POSTGRESQL, NO_REDIS

ROOT = Path(__file__).resolve().parents[2]


def incident(billing: Billing, shard: int, events: int, seconds_ago: float, **more: object) -> None:
    """As observe_outboxes notes one."""
    values = {"kind": "new_epoch", "note": "Redis came back empty; shard 1", "lost": None, **more}
    billing.sql(
        "insert into billing.incidents"
        " (shard, epoch, kind, from_seq, to_seq, events_bound, note, noticed_at, unseen_from, unseen_to) values"
        " (%s, 1, %s, 1, 9, %s, %s, now() - %s::interval, now() - %s::interval, now())",
        *(shard, values["kind"], events, values["note"], timedelta(seconds=seconds_ago), values["lost"]),
    )


def test_status_counts_what_waits_and_what_failed(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin
) -> None:
    payer = billing.payer()
    billing.reserve(payer, 100)
    billing.use(billing.reserve(payer, 100), 40)
    dead_letters.keep(usage((999, 7), 50), "unknown_user")
    incident(billing, 1, 3, 0)
    seen = admin.status()
    assert seen.redis is not None
    assert seen.postgresql is not None
    assert (seen.redis.backlog, seen.redis.open_holds, seen.workers, seen.problems) == (1, 1, [], [])
    assert seen.postgresql.dead_letters[DeadLetterState.FAILED] == 1
    assert (seen.postgresql.missing.events, len(seen.incidents)) == (3, 1)
    told = json.loads(json.dumps(seen.as_dict(), default=str))
    assert list(told) == [
        "redis",
        "behind",
        "dead_letters",
        "open_dead_letters",
        "incidents",
        "workers",
        "broker",
        "set_aside",
        "problems",
        "warnings",
    ]
    assert "workers" not in admin.status(workers=False).as_dict()


def test_a_server_that_is_away_is_a_problem_and_keeps_the_other_from_nothing(billing: Billing) -> None:
    with Admin.from_settings(Settings(redis_url=NO_REDIS, database_url=billing.settings.database_url)) as admin:
        seen = admin.status(workers=False)
    assert (seen.redis, seen.postgresql is None, len(seen.problems)) == (None, False, 1)
    with Admin.from_settings(Settings(redis_url=billing.settings.redis_url, database_url=NO_POSTGRESQL)) as admin:
        seen = admin.status(workers=False)
    assert (seen.redis is None, seen.postgresql, seen.incidents, len(seen.problems)) == (False, None, [], 1)
    assert "dead_letters" not in seen.as_dict()


def test_incidents_of_one_cause_are_one(billing: Billing, admin: Admin) -> None:
    for shard in (4, 2, 7):
        incident(billing, shard, 2, 3600 + shard, lost=timedelta(seconds=4000))
    incident(billing, 3, 5, 100, kind="gap", note="a gap")
    incident(billing, 3, 0, 10)
    restart, gap, lost = admin.incidents.causes()
    assert (restart.kind, restart.events, restart.unseen) == ("new_epoch", 0, None)
    assert (gap.kind, gap.shards, gap.note) == ("gap", [3], "a gap")
    assert (lost.shards, lost.events, lost.note) == ([2, 4, 7], 6, "Redis came back empty")
    assert lost.unseen is not None
    assert lost.unseen[0] < lost.unseen[1]
    assert [worth_a_look(cause.incidents[0]) for cause in (restart, gap, lost)] == [False, True, True]
    assert json.loads(json.dumps(lost.as_dict(), default=str))["shards"] == [2, 4, 7]
    assert [one.shard for one in admin.incidents.find(shard=3).rows] == [3, 3]
    assert grouped([]) == []


def test_reconcile_verifies_repairs_and_verifies_again(billing: Billing, admin: Admin) -> None:
    payer = billing.payer(1000)
    billing.reserve(payer, 70)
    assert admin.audit.verify().ok
    billing.redis("HINCRBY", billing.user_key(payer[0]), "held", 5)
    listed = admin.audit.reconcile(repair=False)
    assert (listed.before.ok, listed.after is listed.before, listed.repaired) == (False, True, [])
    done = admin.audit.reconcile(sums=False)
    assert (done.before.ok, done.after.ok, done.repairs) == (False, True, done.repaired)
    assert done.as_dict()["repaired"] == [f"count held and unposted of user {payer[0]} anew"]
    assert 3 not in done.after.checked


def test_migrate_may_be_repeated_and_makes_the_months_ahead(admin: Admin) -> None:
    admin.migrate()
    assert admin.migrate() == admin.maintain_partitions() == 0


def test_migrate_changes_the_layout_of_redis_only_if_it_is_told_to(billing: Billing) -> None:
    billing.available(billing.payer()[0])  # something fills it
    other = Admin.from_settings(billing.settings.model_copy(update={"shards": 7}))
    with pytest.raises(BadSettings, match="migrate --change-layout"):
        other.migrate()
    assert billing.redis("GET", billing.runtime.commands.keys.layout) == b"12/2"
    other.migrate(change_layout=True)
    assert billing.redis("GET", billing.runtime.commands.keys.layout) == b"7/2"
    other.close()
    billing.runtime.holds.check_layout(change=True)


@pytest.mark.parametrize(
    "expires_at",
    ["x", date(2100, 1, 1), datetime(2100, 1, 1), datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))],  # noqa: DTZ001
)
def test_a_token_expires_at_a_moment_or_never(admin: Admin, expires_at: Any) -> None:
    user = admin.accounts.create_user()
    with pytest.raises(InvalidRequest, match="expires_at"):
        admin.accounts.create_token(user.id, expires_at=expires_at)
    token = admin.accounts.create_token(user.id, expires_at=datetime(2100, 1, 1, tzinfo=UTC))
    assert token.expires_at_ms == 4_102_444_800_000


def test_the_months_ahead_are_made_once(admin: Admin) -> None:
    admin.maintain_partitions()
    assert admin.maintain_partitions() == 0


def test_accounts_keep_what_they_answer_beside_their_pages(billing: Billing, admin: Admin) -> None:
    payers = [billing.payer() for _ in range(3)]
    assert admin.accounts.page_of_users(limit=10).rows == admin.accounts.users()
    assert admin.accounts.page_of_tokens(payers[1][0]).rows == admin.accounts.tokens(payers[1][0])
    assert [token.user_id for token in admin.accounts.page_of_tokens(payers[1][0]).rows] == [payers[1][0]]
    assert admin.accounts.page_of_channels().rows == admin.accounts.channels() == []


LOADED = "import sys; {}; print(*sorted({{'alembic', 'typer', 'rich', 'celery', 'sqlalchemy'}} & set(sys.modules)))"


@pytest.mark.parametrize(
    ("statement", "loads"),
    [
        ("import billing_tasks, billing_tasks.admin", ""),
        ("from billing_tasks.admin import Admin, AsyncAdmin", "sqlalchemy"),
        ("from billing_tasks import Bookkeeper", "sqlalchemy"),
    ],
)
def test_a_web_app_loads_no_migrations_and_no_command_line(statement: str, loads: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(statement)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == loads


def test_doors_reach_into_no_store() -> None:
    doors = [*(ROOT / "billing_tasks/cli").glob("*.py"), *(ROOT / "billing_tasks/worker").glob("*.py")]
    reached = {
        f"{path.name}: {line.strip()}"
        for path in [*doors, ROOT / "billing_tasks/metrics.py"]
        for line in path.read_text(encoding="utf-8").splitlines()
        if "runtime().ledger" in line or "runtime().holds" in line or "r.ledger" in line or "r.holds" in line
    }
    assert reached == set()
