"""The drill of docs/how-to/backup.md: dumped under traffic, lost, restored, and made good from a gateway's log."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from billing_tasks import errors
from billing_tasks.admin import Admin
from billing_tasks.lab.servers.binaries import find_postgres
from tests.conftest import CHANNEL, Billing


def program(billing: Billing, name: str, *arguments: str) -> None:
    """A program of PostgreSQL's, on the test's database."""
    done = subprocess.run(
        [str(find_postgres().bin / name), *arguments],
        env={**os.environ, "PGUSER": "billing"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_books_that_are_restored_from_a_dump_are_made_good(billing: Billing, tmp_path: Path) -> None:
    url, dump = billing.settings.database_url, str(tmp_path / "billing.dump")
    payer = billing.payer(10_000, unlimited=True)
    logs = []

    def use(times: int) -> None:
        for _ in range(times):
            logs.append(billing.reserve(payer, 10).log(channel_id=CHANNEL, quota=10))
            billing.bk.consume(logs[-1])

    use(5)
    billing.settle()
    program(billing, "pg_dump", "--format=custom", "--schema=billing", f"--file={dump}", url)
    use(7)
    billing.accounts.top_up(payer[0], 500, "invoice-17")
    billing.settle()
    use(3)  # waits in Redis while the books are lost
    billing.runtime.ledger.dispose()
    program(billing, "psql", url, "--quiet", "--command", "drop schema billing cascade")
    program(billing, "pg_restore", f"--dbname={url}", dump)
    admin = Admin(billing.runtime)
    admin.migrate()
    billing.settle()
    with pytest.raises(errors.InsufficientUserQuota):
        billing.reserve(payer, 10_000 - 80 + 1)
    restored = [one for one in billing.runtime.ledger.incidents() if one.kind == "restored"]
    assert sum(one.events_bound or 0 for one in restored) == 7
    report = billing.verify()
    assert (report.findings, report.events_missing) == ([], 7)

    lines = [json.dumps(log.model_dump(exclude_defaults=True)) for log in logs]
    answers = [answer.outcome for answer in admin.imports.usage(lines)]
    assert answers == ["duplicate"] * 5 + ["posted"] * 7 + ["duplicate"] * 3
    assert billing.accounts.top_up(payer[0], 500, "invoice-17")[1]
    admin.incidents.close([one.id for one in restored], actor="ann", comment="taken in again")
    assert billing.accounts.user(payer[0]).quota == 10_000 + 500 - 150
    assert billing.verify().events_missing == 0
