"""Dead letters by what lies inside their payloads: a refund's own id, the caller's own key, an id that is no UUID.

PostgreSQL looks for the bytes, because payloads come from outside and need not be JSON, and a cast that fails
would end the statement. What it finds is read here, so that the same words deeper inside are not taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import sqlalchemy as sa

from billing_tasks.errors import InvalidRequest
from billing_tasks.ledger.database import Database
from billing_tasks.ledger.models import DeadLetterRecord

#: So many dead letters are looked into at most; a search that finds more has to be narrowed.
MOST_FOUND: Final = 10_000
_PAGE: Final = 200
#: Longer numbers are no ids.
_DIGITS: Final = 40


def carrying(
    database: Database, wanted: Mapping[str, Collection[str]], narrower: Sequence[sa.ColumnElement[bool]]
) -> list[int]:
    """Numbers of the dead letters whose payload is a JSON object with one of the values in each field named.

    `narrower`: what else must be true of them. Raises InvalidRequest above MOST_FOUND, Unavailable.
    """
    found: list[int] = []
    for number, payload in _candidates(database, [*narrower, *(_bytes(*field) for field in wanted.items())]):
        inside = _fields(payload)
        if all(_spelled(inside.get(name)) in values for name, values in wanted.items()):
            found.append(number)
        if len(found) > MOST_FOUND:
            raise InvalidRequest(
                f"More than {MOST_FOUND:,} dead letters have such a {' and '.join(wanted)}; narrow it, by time say."
            )
    return found


def _candidates(database: Database, conditions: Sequence[sa.ColumnElement[bool]]) -> Iterator[tuple[int, bytes]]:
    """Page by page, so that large payloads are never all in memory."""
    statement = sa.select(DeadLetterRecord.id, DeadLetterRecord.payload).where(*conditions)
    after = 0
    while True:
        page = statement.where(DeadLetterRecord.id > after).order_by(DeadLetterRecord.id).limit(_PAGE)
        rows = database.statement(page)
        yield from ((row.id, bytes(row.payload)) for row in rows)
        if len(rows) < _PAGE:
            return
        after = rows[-1].id


def _spelled(value: object) -> str | None:
    """An id as a person types it; a program may have sent it as a number."""
    return str(value) if isinstance(value, str) or type(value) is int else None


def _bytes(name: str, values: Collection[str]) -> sa.ColumnElement[bool]:
    """True if the field, spelled as our two encoders spell it, is somewhere in the payload."""
    spelled = {
        f'"{name}":{blank}'.encode() + json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        for given in values
        for value in (given, *([int(given)] if given.isdecimal() and len(given) < _DIGITS else []))
        for blank, ascii_only in (("", False), (" ", True))
    }
    # By the name of the function: `position(a in b)` is grammar that a schema in front of it switches off.
    return sa.or_(*(sa.func.pg_catalog.position(DeadLetterRecord.payload, word) > 0 for word in sorted(spelled)))


def _fields(payload: bytes) -> dict[str, object]:
    try:
        inside = json.loads(payload[max(payload.find(b"{"), 0) :])  # an outbox entry's header stands in front
    except (ValueError, RecursionError):
        return {}
    return inside if isinstance(inside, dict) else {}
