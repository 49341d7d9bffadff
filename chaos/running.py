"""Running balances: every account's balance after each booking, in the order of the bookings.

Usage within its hold can't take an account below zero: the hold was granted out
of what was there, and nothing else may use it. So any point below zero is
overspending, but for usage whose hold had expired before (late usage), which is
charged all the same.

Entries of one transaction count together. Transactions are ordered by their
beginning: a charge that needed a top-up was reserved after the top-up's commit,
so it begins later, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from chaos.books import Books, Entry, by_account
from chaos.stories import Stories


@dataclass(frozen=True, slots=True)
class Point:
    """Where an account was lowest, below what late usage excuses."""

    which: str  # user or token
    account: int
    balance: int
    excused: int
    request_ids: tuple[str, ...]  # what was booked at this point


def late_requests(stories: Stories, consumed: Mapping[str, Entry], released: Mapping[str, Entry]) -> frozenset[str]:
    """Charged requests whose hold had ended before: the gateway was told so, or the ledger had the release first.

    A release that is booked after the charge excuses nothing: the hold was there when the usage came.
    """
    told = {
        request_id for request_id in consumed if request_id in stories.requests and stories.requests[request_id].late
    }
    first = {
        request_id
        for request_id, entry in consumed.items()
        if request_id in released and released[request_id].booked_us <= entry.booked_us
    }
    return frozenset(told | first)


def lowest_points(books: Books, late: Collection[str]) -> Iterator[Point]:
    """The lowest point of every account that was overspent. Unlimited tokens can't be."""
    for which, rows in (("user", books.users), ("token", books.tokens)):
        for account, entries in by_account(books.entries, which):
            if account in rows and not rows[account].unlimited:
                point = _lowest(which, account, entries, late)
                if point.balance + point.excused < 0:
                    yield point


def _lowest(which: str, account: int, entries: list[Entry], late: Collection[str]) -> Point:
    balance = excused = 0
    lowest = Point(which, account, 0, 0, ())
    for _, booked in groupby(entries, key=lambda entry: entry.booked_us):
        together = list(booked)
        balance += sum(entry.user_quota if which == "user" else entry.token_quota for entry in together)
        excused += sum(entry.quota for entry in together if entry.kind == "consume" and entry.entry_id in late)
        if balance + excused < lowest.balance + lowest.excused:
            ids = tuple(entry.request_id or entry.entry_id for entry in together if entry.kind == "consume")
            lowest = Point(which, account, balance, excused, ids)
    return lowest
