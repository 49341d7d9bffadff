"""Dead letters: events that could not be posted, kept until a retry or a person settles them.

Written in a transaction of its own, after the posting that failed was rolled back. A
crash before it leaves the event in its outbox, from where it fails, and comes here, again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from billing_tasks.events import Kind
from billing_tasks.ledger.models import Letter
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import DeadLetter, LetterState

_COLUMNS: Final = tuple(Letter.__table__.columns)
#: Far more than a uuid; an index row takes no more than 2,700 bytes.
_LONGEST_ID: Final = 200
_LONGEST_ERROR: Final = 4000


class DeadLetters(Part):
    """Keeps what failed."""

    def add_dead_letter(
        self,
        *,
        kind: str,
        request_id: str,
        user_id: int | None,
        payload: bytes,
        reason: str,
        error: str,
        fingerprint: str = "",
        state: LetterState = LetterState.RETRYING,
        next_attempt_seconds: float | None = None,
    ) -> tuple[DeadLetter, bool]:
        """Keep one event as it came. True: kept now; False: known before, only last_seen moves.

        Takes whatever comes from outside: characters that PostgreSQL refuses are written
        out, and without a fingerprint the payload's hash serves.
        """
        values = {
            "kind": _printable(kind, _LONGEST_ID),
            "request_id": _printable(request_id, _LONGEST_ID),
            "fingerprint": _printable(fingerprint, _LONGEST_ID) or hashlib.blake2b(payload, digest_size=16).hexdigest(),
            "user_id": user_id if user_id is not None and abs(user_id) < 2**63 else None,
            "payload": payload,
            "reason": _printable(reason, _LONGEST_ID),
            "error": _printable(error, _LONGEST_ERROR),
            "state": state.value,
            "next_attempt_at": _in(next_attempt_seconds),
        }
        statement = (
            insert(Letter)
            .values(values)
            .on_conflict_do_update(
                constraint="dead_letters_are_kept_once", set_={"last_seen": sa.func.clock_timestamp()}
            )
            # xmax is 0 for a row that this statement inserted, not updated.
            .returning(*_COLUMNS, sa.literal_column("xmax = 0").label("new"))
        )
        row = self._db.statement(statement)[0]
        return _letter(row[:-1]), bool(row.new)

    def get_dead_letter(self, letter_id: int) -> DeadLetter | None:
        """None if there is none."""
        rows = self._db.statement(sa.select(*_COLUMNS).where(Letter.id == letter_id))
        return _letter(rows[0]) if rows else None

    def dead_letters(
        self,
        *,
        states: Collection[LetterState] = (),
        kind: str | None = None,
        user_id: int | None = None,
        request_id: str | None = None,
        before_id: int | None = None,
        limit: int = 100,
    ) -> list[DeadLetter]:
        """Newest first; every filter that is given must match."""
        statement = sa.select(*_COLUMNS).order_by(Letter.id.desc()).limit(limit)
        if states:
            statement = statement.where(Letter.state.in_([state.value for state in states]))
        if kind is not None:
            statement = statement.where(Letter.kind == kind)
        if user_id is not None:
            statement = statement.where(Letter.user_id == user_id)
        if request_id is not None:
            statement = statement.where(Letter.request_id == _printable(request_id, _LONGEST_ID))
        if before_id is not None:
            statement = statement.where(Letter.id < before_id)
        return [_letter(row) for row in self._db.statement(statement)]

    def claim_dead_letters(
        self,
        *,
        limit: int,
        lease_seconds: float,
        kind: str | None = None,
        states: Collection[LetterState] = (LetterState.RETRYING,),
    ) -> list[DeadLetter]:
        """Take letters that are due, oldest first: they become `retrying`, one attempt more.

        Two claims never return the same letter. Whoever claimed it has `lease_seconds` to
        mark it; after that (the worker died, say) it is due again. A failed letter without
        a time is due whenever somebody asks for failed ones.
        """
        due = (
            sa.select(Letter.id)
            .where(
                Letter.state.in_([state.value for state in states]),
                sa.func.coalesce(Letter.next_attempt_at, sa.literal_column("'-infinity'")) <= sa.func.now(),
            )
            .order_by(
                Letter.updated_at, Letter.id
            )  # whose turn was longest ago: those that fail again don't starve the rest
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        # A conflict can never be booked; it is sent again only if somebody asks for conflicts.
        due = due.where(Letter.kind == kind if kind is not None else Letter.kind != Kind.CONFLICT)
        # Materialized: planned as a join, the inner query could run, and lock, more than once.
        claimed = due.cte("due").prefix_with("MATERIALIZED", dialect="postgresql")
        statement = (
            sa.update(Letter)
            .where(Letter.id == claimed.c.id)
            .values(
                state=LetterState.RETRYING.value,
                attempts=Letter.attempts + 1,
                next_attempt_at=_in(lease_seconds),
                updated_at=sa.func.now(),
            )
            .returning(*_COLUMNS)
        )
        return sorted(map(_letter, self._db.statement(statement)), key=lambda letter: letter.id)

    def mark_dead_letter(
        self,
        letter_id: int,
        state: LetterState,
        *,
        who: str = "",
        why: str = "",
        error: str | None = None,
        next_attempt_seconds: float | None = None,
        attempts: int = 0,
        open_only: bool = False,
    ) -> DeadLetter | None:
        """Say how it went: the new state, who decided and why, which attempt it was. None: no such letter.

        `open_only`: leave a letter alone that is resolved or discarded meanwhile; None then, too.
        """
        changes: dict[str, Any] = {
            "state": state.value,
            "next_attempt_at": _in(next_attempt_seconds),
            "handled_by": _printable(who, _LONGEST_ID),
            "handled_why": _printable(why, _LONGEST_ERROR),
            "attempts": sa.func.greatest(Letter.attempts, attempts),
            "updated_at": sa.func.now(),
        }
        if error is not None:
            changes["error"] = _printable(error, _LONGEST_ERROR)
        statement = sa.update(Letter).where(Letter.id == letter_id).values(changes).returning(*_COLUMNS)
        if open_only:
            statement = statement.where(Letter.state.in_([LetterState.RETRYING.value, LetterState.FAILED.value]))
        rows = self._db.statement(statement)
        return _letter(rows[0]) if rows else None

    def count_dead_letters(self) -> dict[LetterState, int]:
        """How many there are in each state, zeros included."""
        counts = dict.fromkeys(LetterState, 0)
        for state, count in self._db.statement(sa.select(Letter.state, sa.func.count()).group_by(Letter.state)):
            counts[LetterState(state)] = count
        return counts


def _letter(row: Sequence[Any]) -> DeadLetter:
    values = dict(zip((column.key for column in _COLUMNS), row, strict=True))
    values["state"] = LetterState(values["state"])
    values["payload"] = bytes(values["payload"])
    return DeadLetter(**values)


def _in(seconds: float | None) -> sa.ColumnElement[Any] | None:
    """That long from now by PostgreSQL's clock: workers' clocks differ."""
    return None if seconds is None else sa.func.now() + sa.literal(timedelta(seconds=seconds), sa.Interval())


def _printable(text: str, limit: int) -> str:
    """The text with NUL and lone surrogates written out, cut to what a column takes."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()[:limit]
