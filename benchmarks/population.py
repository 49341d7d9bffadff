"""Accounts and history, filled in by whole sets: a million users in seconds, not one by one.

The triggers that book opening balances are switched off for it, and their entries
written as a set too, so that the guarantees hold over all of it. History lies in the
current month and the four before it. A month is filled as a table without indexes and
attached afterwards, which builds them at once.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.environment import CHANNELS, Environment

#: Enough for every measure; the sums stay far below bigint.
QUOTA = 10**12
CHARGE = 10
#: Months that history is spread over, the current one included.
MONTHS = 5


def populate(environment: Environment, users: int, *, entries: int = 0) -> None:
    """`entries` booked consumes spread over MONTHS months, then the accounts. The environment must be empty."""
    environment.sql("set session_replication_role = replica")
    environment.sql(_read("ids"))
    if entries:
        for back in range(MONTHS):
            _fill_month(environment, back, entries // MONTHS, users)
    _run(environment, "accounts", channels=CHANNELS, quota=QUOTA, users=users, now_ms=time.time_ns() // 1_000_000)
    if entries:
        _run(environment, "charges")
    environment.sql("set session_replication_role = default")
    environment.sql("vacuum analyze")
    environment.settle_down()


def _read(name: str) -> str:
    return (Path(__file__).with_name("sql") / f"{name}.sql").read_text(encoding="utf-8")


def _run(environment: Environment, name: str, **values: int) -> None:
    """The statements of a file, one by one: with parameters PostgreSQL takes one at a time."""
    for statement in _read(name).split(";\n"):
        if statement.strip():
            environment.sql(statement, values)


def _fill_month(environment: Environment, back: int, entries: int, users: int) -> None:
    """One month's partition, made anew with `entries` consumes spread evenly over its days so far."""
    now = datetime.now(UTC)
    month, following = first_of_month(now, -back), first_of_month(now, 1 - back)
    span_ms = int((min(following, now) - month).total_seconds() * 1000)
    name = f"billing.ledger_entries_{month:%Y_%m}"
    first, end = (environment.sql("select billing.first_entry_id(%s)", [moment])[0][0] for moment in (month, following))
    environment.sql(f"drop table if exists {name}")
    environment.sql(f"create table {name} (like billing.ledger_entries including defaults including constraints)")
    history = _read("history").replace("{partition}", name)
    began_ms = int(month.timestamp() * 1000)
    values = {"channels": CHANNELS, "charge": CHARGE, "users": users, "began_ms": began_ms, "span_ms": span_ms - 1}
    environment.sql(history, {**values, "entries": entries})
    environment.sql(f"alter table {name} add check (entry_id >= '{first}' and entry_id < '{end}')")
    environment.sql(
        f"alter table billing.ledger_entries attach partition {name} for values from ('{first}') to ('{end}')"
    )


def first_of_month(moment: datetime, months: int) -> datetime:
    """The first instant of the month that is `months` after the moment's, in UTC."""
    number = moment.year * 12 + moment.month - 1 + months
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)
