"""Entries: what the ledger booked, by user, token, request, the caller's own key, kind and time."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final, Literal, TypeAlias, Unpack, get_args
from uuid import UUID

from billing_tasks.admin.paging import Listing, Page, check_filters, check_times
from billing_tasks.errors import InvalidRequest
from billing_tasks.ledger.rows import EntryFilter, EntryRow, UsageRow
from billing_tasks.ledger.usage import USAGE_BY, UsageBy
from billing_tasks.model.ids import shorten
from billing_tasks.model.validation import check_int, check_text
from billing_tasks.runtime import Runtime

EntryKind: TypeAlias = Literal["consume", "release", "refund", "correction", "topup", "adjust"]
#: Every kind of entry.
KINDS: Final[tuple[str, ...]] = get_args(EntryKind)

# Both: the consume and the release of one request share their entry_id.
_ENTRIES: Final = Listing[EntryRow, tuple[UUID, str]](
    "entries", tuple[UUID, EntryKind], lambda row: (UUID(row.entry_id), row.kind)
)


class Entries:
    """Reads the ledger's entries; changes nothing. All methods raise Unavailable if PostgreSQL is away."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def find(self, *, cursor: str | None = None, limit: int = 100, **wanted: Unpack[EntryFilter]) -> Page[EntryRow]:
        """Entries that match, newest first: by the time inside `entry_id`, which for usage is when it was reserved.

        Give the same filter with each cursor. Raises InvalidRequest for a filter or cursor that can't be one.
        """
        _check(wanted)
        ledger = self._runtime.ledger
        return _ENTRIES.page(cursor, limit, lambda after, most: ledger.find_entries(after=after, limit=most, **wanted))

    def usage(
        self,
        by: UsageBy,
        *,
        since: datetime | None = None,
        before: datetime | None = None,
        user_id: int | None = None,
        limit: int | None = None,
    ) -> list[UsageRow]:
        """What was used and given back in that time, summed up; amounts in quota, days are UTC's.

        By the time of use, whenever it was booked; `since` belongs to it, `before` does not. Days come in their order,
        all else by what was charged. It reads every entry of that time. Raises InvalidRequest.
        """
        if by not in USAGE_BY:
            raise InvalidRequest(f"Usage is summed up by {', '.join(USAGE_BY)}, got {shorten(by)}.")
        check_times(since, before)
        if user_id is not None:
            check_int("user_id", user_id, 1)
        if limit is not None:
            check_int("limit", limit, 1)
        return self._runtime.ledger.usage(by, since=since, before=before, user_id=user_id, limit=limit)

    def of_request(self, request_id: str) -> list[EntryRow]:
        """All that was booked for one request, oldest first: its consume, its release, its refunds and corrections.

        Raises InvalidRequest if the id is no UUID.
        """
        return self._runtime.ledger.entries_of(check_text("request_id", request_id, 200))


def _check(wanted: EntryFilter) -> None:
    check_filters(wanted, EntryFilter.__annotations__)
    for name in ("user_id", "token_id"):
        if wanted.get(name) is not None:
            check_int(name, wanted[name], 1)
    for name in ("request_id", "client_key"):
        # Empty would match all, where the caller meant one.
        if wanted.get(name) is not None and not check_text(name, wanted[name], 200):  # type: ignore[literal-required]
            raise InvalidRequest(f"{name} is empty; leave it out to have all.")
    kinds = wanted.get("kinds") or ()
    if isinstance(kinds, str | bytes) or not isinstance(kinds, Collection):
        raise InvalidRequest(f"kinds must be a list, got {shorten(kinds)}; kinds are {', '.join(KINDS)}.")
    unknown = {str(kind) for kind in kinds} - set(KINDS)
    if unknown:
        raise InvalidRequest(f"There are no entries of kind {shorten(sorted(unknown))}; kinds are {', '.join(KINDS)}.")
    check_times(wanted.get("since"), wanted.get("before"))
