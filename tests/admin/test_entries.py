"""Entries: every filter finds what it says and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from billing_tasks.admin import Admin
from billing_tasks.errors import InvalidRequest
from billing_tasks.ledger import reads
from billing_tasks.model.ids import new_request_id
from tests.conftest import Billing


def kinds(rows: list[Any]) -> list[str]:
    return sorted(row.kind for row in rows)


def test_entries_are_found_by_user_token_request_key_and_kind(billing: Billing, admin: Admin) -> None:
    payer, other = billing.payer(), billing.payer()
    reservation = billing.reserve(payer, 1000, client_key="order-9")
    billing.use(reservation, 1000)
    billing.use(billing.reserve(other, 10), 10)
    billing.settle()
    for refund_id, quota in (("case-1", 300), ("case-2", 100)):
        billing.bk.refund_charge(user_id=payer[0], request_id=reservation.request_id, refund_id=refund_id, quota=quota)
    billing.bk.refund_quota(billing.reserve(payer, 70))
    billing.settle()
    billing.accounts.top_up(payer[0], 5, "payment-7")

    find = admin.entries.find
    assert kinds(find(request_id=reservation.request_id).rows) == ["consume", "refund", "refund"]
    assert [row.kind for row in admin.entries.of_request(reservation.request_id)] == ["consume", "refund", "refund"]
    booked = ["consume", "refund", "refund", "release"]
    assert [kind for kind in kinds(find(token_id=payer[1]).rows) if kind != "adjust"] == booked
    assert {row.user_id for row in find(user_id=payer[0]).rows} == {payer[0]}
    assert find(user_id=payer[0], token_id=other[1]).rows == []
    assert find(token_id=10**6).rows == []
    assert [row.request_id for row in find(client_key="order-9", kinds=["consume"]).rows] == [reservation.request_id]
    assert kinds(find(client_key="payment-7").rows) == ["topup"]
    assert kinds(find(user_id=payer[0], kinds=["refund", "topup"]).rows) == ["refund", "refund", "topup"]
    assert find(request_id=new_request_id()).rows == []
    ids = [row.entry_id for row in find().rows]
    assert ids == sorted(ids, reverse=True)


def test_entries_are_found_by_time(billing: Billing, admin: Admin) -> None:
    payer = billing.payer()
    (opening,) = admin.entries.find(user_id=payer[0], kinds=["adjust", "topup"]).rows[-1:]
    at, second = opening.created_at, timedelta(seconds=1)
    find = admin.entries.find
    assert opening in find(since=at, before=at + second).rows
    assert opening not in find(before=at).rows
    assert opening not in find(since=at + second).rows
    assert find(since=datetime.now(UTC) + second).rows == []


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"user_id": 0}, "user_id must be from 1"),
        ({"token_id": "7"}, "token_id must be an int"),
        ({"request_id": "garbage"}, "no request_id"),
        ({"request_id": ""}, "request_id is empty"),
        ({"client_key": ""}, "client_key is empty"),
        ({"client_key": "a\x00"}, "NUL"),
        ({"client_key": "x" * 201}, "at most 200"),
        ({"kinds": ["consume", "gift"]}, "no entries of kind"),
        ({"kinds": "consume"}, "kinds must be a list"),
        ({"kinds": 5}, "kinds must be a list"),
        ({"kinds": [["consume"]]}, "no entries of kind"),
        ({"since": datetime(2026, 1, 1)}, "since must be a datetime with a time zone"),  # noqa: DTZ001
        ({"before": "2h"}, "before must be a datetime with a time zone"),
        ({"user": 1}, "no filter user; filters are user_id, token_id"),
    ],
)
def test_a_filter_that_can_not_be_one_is_refused(admin: Admin, wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        admin.entries.find(**wanted)


def test_what_was_booked_for_a_request_is_read_by_its_ids_and_not_by_reading_the_ledger(billing: Billing) -> None:
    statement = sa.select(reads.Entry.kind).where(reads._of_request(new_request_id()))
    text = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    with psycopg.connect(billing.settings.database_url) as connection:
        connection.execute("set local enable_seqscan = off")  # it is used all the same where no index can be
        plan = "\n".join(row[0] for row in connection.execute(f"explain {text}"))  # type: ignore[call-overload]
    assert "Index Cond: (entry_id = ANY" in plan
