"""Pages: complete whatever happens between two of them, and no cursor that is none is taken for one."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from billing_tasks.admin import Admin, Page
from billing_tasks.errors import InvalidRequest
from tests.admin.conftest import DeadLetterDriver, charge, refund_of, usage
from tests.conftest import Billing

#: How each list is read: by cursor and limit.
LISTS: dict[str, Callable[[Admin], Callable[..., Page[Any]]]] = {
    "users": lambda admin: admin.accounts.page_of_users,
    "tokens": lambda admin: admin.accounts.page_of_tokens,
    "channels": lambda admin: admin.accounts.page_of_channels,
    "entries": lambda admin: admin.entries.find,
    "dead letters": lambda admin: admin.dead_letters.find,
    "incidents": lambda admin: admin.incidents.find,
}
every_list = pytest.mark.parametrize("name", LISTS)


def key(row: Any) -> object:
    return (row.entry_id, row.kind) if hasattr(row, "entry_id") else row.id


def pages(read: Callable[..., Page[Any]], limit: int, between: Callable[[], object] = lambda: None) -> list[list[Any]]:
    """The keys of every page; `between` happens before each further one."""
    found, cursor = [], None
    while True:
        page = read(cursor=cursor, limit=limit)
        found.append([key(row) for row in page.rows])
        if page.next is None:
            return found
        assert re.fullmatch(r"[A-Za-z0-9_-]+", page.next), "it fits into a URL as it is"
        cursor = page.next
        between()


def add_one_of_each(billing: Billing, dead_letters: DeadLetterDriver) -> None:
    payer = billing.payer()
    billing.accounts.create_channel()
    charge(billing, payer)
    dead_letters.keep(usage((999, 7), 50), "unknown_user")
    billing.sql(
        "insert into billing.incidents (shard, epoch, kind, from_seq, to_seq, events_bound, note)"
        " values (1, 1, 'new_epoch', 1, 1, 0, 'restarted')"
    )


@every_list
def test_every_row_is_on_one_page_and_pages_are_full(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin, name: str
) -> None:
    for _ in range(7):
        add_one_of_each(billing, dead_letters)
    read = LISTS[name](admin)
    (everything,) = pages(read, 10_000)
    assert len(everything) >= 7
    for limit in (1, 2, 3, len(everything) - 1, len(everything)):
        found = pages(read, limit)
        assert [row for page in found for row in page] == everything
        assert all(len(page) == limit for page in found[:-1])
        assert found[-1]


@every_list
def test_what_is_added_between_two_pages_moves_no_other_row(
    billing: Billing, dead_letters: DeadLetterDriver, admin: Admin, name: str
) -> None:
    for _ in range(5):
        add_one_of_each(billing, dead_letters)
    read = LISTS[name](admin)
    (before,) = pages(read, 10_000)
    left = iter(range(3))

    def add() -> None:
        if next(left, None) is not None:
            add_one_of_each(billing, dead_letters)

    found = [row for page in pages(read, 2, between=add) for row in page]
    assert len(found) == len(set(found))
    assert [row for row in found if row in before] == before


def test_a_consume_and_a_release_of_one_request_are_two_rows_between_which_a_page_may_end(
    billing: Billing, admin: Admin
) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    billing.bk.refund_quota(reservation)
    billing.settle()
    billing.bk.consume(reservation.log(channel_id=3, quota=40, prompt_tokens=1))
    billing.settle()
    both = admin.entries.find(request_id=reservation.request_id)
    assert [row.kind for row in both.rows] == ["release", "consume"]
    found = pages(lambda **more: admin.entries.find(request_id=reservation.request_id, **more), 1)
    assert [kind for page in found for _, kind in page] == ["release", "consume"]


def word(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


GARBAGE = [
    "",
    " ",
    "x",
    "=",
    "é",
    "AAAA",
    "a" * 401,
    "../../etc/passwd",
    word(None),
    word([]),
    word({}),
    word({"v": 1}),
    word({"v": 1, "of": "users"}),
    word({"v": "1", "of": "users", "after": [1]}),
    word({"v": 1, "of": "users", "after": [1], "more": 1}),
    "[" * 300,
    42,
    b"abc",
]


@every_list
def test_garbage_is_no_cursor(admin: Admin, name: str) -> None:
    for cursor in GARBAGE:
        with pytest.raises(InvalidRequest, match="is no cursor; take `next` of the page before"):
            LISTS[name](admin)(cursor=cursor)


CHANGED: list[object] = [None, 1, "1", [], [1, 2, 3], [True], [-1], [2**63], [1.5], [None], ["x"], {"id": 1}]
CHANGED += [["x", "consume"], *(["01a209f5-f9e2-7e67-9a8c-f4fdded60da1", kind] for kind in ("", "gift", "\x00", None))]


@every_list
def test_a_cursor_whose_inside_was_changed_is_none(admin: Admin, name: str) -> None:
    for after in CHANGED:
        with pytest.raises(InvalidRequest, match="is no cursor"):
            LISTS[name](admin)(cursor=word({"v": 1, "of": name, "after": after}))


@every_list
def test_a_cursor_of_another_list_or_release_is_refused_and_said(admin: Admin, name: str) -> None:
    other = "users" if name != "users" else "tokens"
    with pytest.raises(InvalidRequest, match=f"is of the list '{other}', not of '{name}'"):
        LISTS[name](admin)(cursor=word({"v": 1, "of": other, "after": [1]}))
    with pytest.raises(InvalidRequest, match="of version 2, not 1; begin again"):
        LISTS[name](admin)(cursor=word({"v": 2, "of": name, "after": [1]}))


@every_list
def test_a_limit_is_an_int_from_1_to_10000(admin: Admin, name: str) -> None:
    for limit in (0, -1, 10_001, True, 2.0, "5", None):
        with pytest.raises(InvalidRequest, match="limit"):
            LISTS[name](admin)(limit=limit)


def test_an_empty_list_is_one_empty_page(admin: Admin) -> None:
    assert admin.entries.find() == Page([], None)


def test_a_filter_holds_on_every_page(billing: Billing, dead_letters: DeadLetterDriver, admin: Admin) -> None:
    payer, other = billing.payer(), billing.payer()
    for number in range(4):
        charge(billing, payer)
        charge(billing, other)
        dead_letters.keep(refund_of(payer[0], charge(billing, payer), 5, f"case-{number}"))
        dead_letters.keep(refund_of(other[0], charge(billing, other), 5, f"other-{number}"))
    entries = pages(lambda **more: admin.entries.find(user_id=payer[0], kinds=["consume"], **more), 3)
    assert [len(page) for page in entries] == [3, 3, 2]
    found = pages(lambda **more: admin.dead_letters.find(user_id=payer[0], **more), 3)
    assert [len(page) for page in found] == [3, 1]
