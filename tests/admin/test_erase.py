"""Erasing a person's data: the texts go, the books stay, and nothing else can be changed by the same door."""

from __future__ import annotations

import psycopg
import pytest

from billing_tasks import ConsumeLog, errors
from billing_tasks.admin import Admin
from billing_tasks.model.ids import new_request_id
from tests.cli.test_cli import run
from tests.conftest import CHANNEL, Billing

__all__ = ["run"]

NAME = "Erika Mustermann"


def texts(billing: Billing) -> str:
    """All that PostgreSQL holds in its tables, as text."""
    tables = [row[0] for row in billing.sql("select tablename from pg_tables where schemaname = 'billing'")]
    found = [str(billing.sql(f"select t::text from billing.{table} as t")) for table in tables]
    payloads = billing.sql("select convert_from(payload, 'UTF8') from billing.dead_letters")
    return "".join([*found, str(payloads)])


@pytest.fixture
def person(billing: Billing) -> tuple[int, ConsumeLog]:
    """A user whose name is everywhere."""
    accounts = billing.accounts
    user_id = accounts.create_user(5001, quota=1_000_000).id
    token_id = accounts.create_token(user_id, 5001, name=f"{NAME}'s laptop", quota=1_000_000).id
    accounts.top_up(user_id, 500, "invoice-1", note=f"paid by {NAME}")
    log = ConsumeLog(
        user_id=user_id,
        token_id=token_id,
        channel_id=CHANNEL,
        quota=40,
        model_name="gpt-4o",
        request_id=new_request_id(),
        content=f"asked by {NAME}",
        client_key=NAME,
        token_name=NAME,
    )
    billing.bk.consume(log)
    billing.settle()
    billing.bk.refund_charge(user_id=user_id, request_id=log.request_id, quota=10, refund_id="case-1", reason=NAME)
    billing.bk.refund_charge(user_id=user_id, request_id=new_request_id(), refund_id="case-2", reason=NAME)
    billing.settle()
    return user_id, log


def test_a_persons_texts_go_and_the_books_stay(billing: Billing, person: tuple[int, ConsumeLog]) -> None:
    user_id, log = person
    other = billing.payer()
    billing.use(billing.reserve(other, 10), 10)
    billing.settle()
    admin = Admin(billing.runtime)
    (open_one,) = billing.runtime.ledger.dead_letters()
    sums = [(row.key, row.net) for row in admin.entries.usage("model")]
    before = admin.accounts.user(user_id)
    first = admin.accounts.erase_user(user_id, actor="ann", comment="request 17")
    assert (first.entries, first.tokens, first.top_ups, first.open_dead_letters) == (5, 1, 1, 1)
    admin.dead_letters.discard(open_one.id, actor="ann", comment=f"{NAME} asked for it")
    assert admin.accounts.erase_user(user_id, actor="ann").dead_letters == 1
    assert admin.accounts.erase_user(user_id, actor="ann").entries == 0
    assert "Erika" not in texts(billing)
    assert "invoice-1" in texts(billing)
    assert [(row.key, row.net) for row in admin.entries.usage("model")] == sums
    assert admin.accounts.user(user_id) == before
    # Repetitions are known as such, and what differs as well.
    assert billing.accounts.top_up(user_id, 500, "invoice-1")[1] is False
    billing.redis("FLUSHALL")
    billing.bk.consume(log)
    billing.settle()
    assert admin.accounts.user(user_id).quota == before.quota
    done = billing.sql("select actor, comment, entries from billing.erasures order by id limit 1")
    assert done == [("ann", "request 17", 5)]


@pytest.mark.parametrize(
    "change", ["quota = quota + 1", "user_id = user_id + 1", "model_name = 'x'", "fingerprint = ''", "usage = '{}'"]
)
def test_the_door_for_erasing_changes_nothing_else(
    billing: Billing, person: tuple[int, ConsumeLog], change: str
) -> None:
    with psycopg.connect(billing.settings.database_url) as other:
        other.execute("select set_config('billing.erasing', 'on', true)")
        with pytest.raises(psycopg.errors.RestrictViolation, match="never changed"):
            other.execute(f"update billing.ledger_entries set {change} where user_id = %s", [person[0]])


def test_the_command_line_asks_first(run, billing: Billing, person: tuple[int, ConsumeLog]) -> None:  # type: ignore[no-untyped-def]
    assert run("users", "erase", person[0], status=1).exit_code == 1
    assert NAME in texts(billing)
    shown = run("users", "erase", person[0], "--yes", "--comment", "request 18").output
    assert "dead-letters list --user" in shown
    with pytest.raises(errors.UserNotFound):
        run("users", "erase", 777_777, "--yes")
