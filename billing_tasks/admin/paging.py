"""Lists in pages. A cursor says where the next page begins, and is a word that fits into a URL.

It names the last row of its page and not a number of rows, so what is added or removed
meanwhile shifts no other row out of the pages or into two of them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.ids import shorten
from billing_tasks.model.validation import check_int

K = TypeVar("K")
R = TypeVar("R")

#: Rows of one page at most.
MOST_ROWS: Final = 10_000
_VERSION: Final = 1
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,400}")

#: A number that PostgreSQL gave to a row.
RowNumber = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """Rows of a list, and the cursor of what follows them; None: nothing does."""

    rows: list[R]
    next: str | None


class _Cursor(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    of: str  # the list
    after: Any  # what `key` of the list made of the last row


class Listing(Generic[R, K]):
    """A list that is read page by page: its name, the type of its cursors' keys, and a row's key."""

    def __init__(self, name: str, key_type: Any, key: Callable[[R], K]) -> None:
        self.name = name
        self._key_type = key_type
        self._key = key

    def page(self, cursor: str | None, limit: int, read: Callable[[K | None, int], list[R]]) -> Page[R]:
        """The first page, or the one that `cursor` names, of at most `limit` rows (1 to 10,000).

        `read` gets the key of the last row before and how many rows to return. Raises InvalidRequest.
        """
        check_int("limit", limit, 1, MOST_ROWS)
        rows = read(None if cursor is None else self.key_in(cursor), limit + 1)
        more, rows = len(rows) > limit, rows[:limit]
        return Page(rows, self.cursor_after(rows[-1]) if more else None)

    def cursor_after(self, row: R) -> str:
        """The cursor of the page that begins behind this row."""
        word = msgspec.json.encode(_Cursor(_VERSION, self.name, self._key(row)))
        return base64.urlsafe_b64encode(word).decode().rstrip("=")

    def key_in(self, cursor: object) -> K:
        """The key inside a cursor. Raises InvalidRequest if it is garbage, or not a cursor of this list."""
        if not isinstance(cursor, str) or not _WORD.fullmatch(cursor):
            raise _no_cursor(cursor)
        try:
            inside = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=_Cursor)
        except (ValueError, RecursionError):
            raise _no_cursor(cursor) from None
        if inside.v != _VERSION:
            raise InvalidRequest(f"This cursor is of version {inside.v}, not {_VERSION}; begin again without a cursor.")
        if inside.of != self.name:
            raise InvalidRequest(f"This cursor is of the list {shorten(inside.of)}, not of {self.name!r}.")
        try:
            key: K = msgspec.convert(inside.after, self._key_type)
        except msgspec.ValidationError:
            raise _no_cursor(cursor) from None
        return key


def check_filters(given: Mapping[str, object], known: Collection[str]) -> None:
    """Raises InvalidRequest for an unknown filter: ignored, it would let through what it should keep out."""
    unknown = given.keys() - set(known)
    if unknown:
        raise InvalidRequest(f"There is no filter {', '.join(sorted(unknown))}; filters are {', '.join(known)}.")


def check_times(since: datetime | None, before: datetime | None) -> None:
    """Raises InvalidRequest for a time without a time zone: it could be any of many moments."""
    for name, moment in (("since", since), ("before", before)):
        if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
            raise InvalidRequest(f"{name} must be a datetime with a time zone, for instance datetime.now(UTC).")


def _no_cursor(cursor: object) -> InvalidRequest:
    return InvalidRequest(f"{shorten(cursor)} is no cursor; take `next` of the page before, as it is.")
