"""Dead letters: events that could not be posted, kept until a retry or a person settles them.

Written in a transaction of its own, after the posting that failed was rolled back. A
crash before it leaves the event in its outbox, from where it fails, and comes here, again.

Every change of a dead letter and the line of its history are one statement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final, Unpack
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from billing_tasks.ledger.dead_letter_search import carrying
from billing_tasks.ledger.models import DeadLetterRecord, HistoryRecord
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import (
    OPEN,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterState,
    HistoryEntry,
    HistoryKind,
    Mark,
    OpenReason,
)

COLUMNS: Final = tuple(DeadLetterRecord.__table__.columns)
_LINE: Final = (
    *(HistoryRecord.at, HistoryRecord.what, HistoryRecord.actor, HistoryRecord.comment),
    *(HistoryRecord.reason, HistoryRecord.error, HistoryRecord.attempt),
)
#: Far more than a uuid; an index row takes no more than 2,700 bytes.
_LONGEST_ID: Final = 200
_LONGEST_ERROR: Final = 4000
#: Of each payload in a list: enough to see what it is, little enough for ten thousand of them.
_PAYLOAD_IN_LISTS: Final = 4096
_HAPPENED: Final = {
    DeadLetterState.RESOLVED: HistoryKind.POSTED,
    DeadLetterState.DISCARDED: HistoryKind.DISCARDED,
    DeadLetterState.RETRYING: HistoryKind.REFUSED,
    DeadLetterState.FAILED: HistoryKind.REFUSED,
}


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
        state: DeadLetterState = DeadLetterState.RETRYING,
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
        kept = (
            insert(DeadLetterRecord)
            .values(values)
            .on_conflict_do_update(
                constraint="dead_letters_are_kept_once", set_={"last_seen": sa.func.clock_timestamp()}
            )
            # xmax is 0 for a row that this statement inserted, not updated.
            .returning(*COLUMNS, sa.literal_column("xmax = 0").label("new"))
            .cte("kept")
        )
        line = _line(HistoryKind.KEPT, reason=kept.c.reason, error=kept.c.error)
        row = self._db.statement(_with_history(kept, line, only=kept.c.new))[0]
        return dead_letter_of(row[:-1]), bool(row.new)

    def get_dead_letter(self, number: int) -> DeadLetter | None:
        """None if there is none."""
        rows = self._db.statement(sa.select(*COLUMNS).where(DeadLetterRecord.id == number))
        return dead_letter_of(rows[0]) if rows else None

    def dead_letters(
        self, *, before_id: int | None = None, limit: int = 100, **wanted: Unpack[DeadLetterFilter]
    ) -> list[DeadLetter]:
        """Newest first. Payloads are cut to their first 4,096 bytes; `get_dead_letter` has all of one."""
        shown = [sa.func.substring(c, 1, _PAYLOAD_IN_LISTS) if c.key == "payload" else c for c in COLUMNS]
        statement = sa.select(*shown).where(*self._matching(wanted)).order_by(DeadLetterRecord.id.desc()).limit(limit)
        if before_id is not None:
            statement = statement.where(DeadLetterRecord.id < before_id)
        return [dead_letter_of(row) for row in self._db.statement(statement)]

    def dead_letter_numbers(
        self, *, limit: int | None = None, excluded_reasons: Collection[str] = (), **wanted: Unpack[DeadLetterFilter]
    ) -> list[int]:
        """Only the numbers, oldest first, without dead letters whose reason is in `excluded_reasons`."""
        statement = (
            sa.select(DeadLetterRecord.id).where(*self._matching(wanted)).order_by(DeadLetterRecord.id).limit(limit)
        )
        if excluded_reasons:
            statement = statement.where(DeadLetterRecord.reason.not_in(list(excluded_reasons)))
        return [row.id for row in self._db.statement(statement)]

    def count_reasons(self, **wanted: Unpack[DeadLetterFilter]) -> dict[str, int]:
        """How many dead letters match, by reason."""
        statement = (
            sa.select(DeadLetterRecord.reason, sa.func.count())
            .where(*self._matching(wanted))
            .group_by(DeadLetterRecord.reason)
        )
        return {row[0]: row[1] for row in self._db.statement(statement.order_by(DeadLetterRecord.reason))}

    def open_reasons(self) -> list[OpenReason]:
        """The reasons of what is open, with how many there are of each and for how long the oldest waits."""
        age = sa.func.extract("epoch", sa.func.now() - sa.func.min(DeadLetterRecord.first_seen))
        statement = (
            sa.select(DeadLetterRecord.reason, sa.func.count(), sa.cast(sa.func.floor(age), sa.BigInteger))
            .where(DeadLetterRecord.state.in_([state.value for state in OPEN]))
            .group_by(DeadLetterRecord.reason)
        )
        return [OpenReason(*row) for row in self._db.statement(statement.order_by(DeadLetterRecord.reason))]

    def claim_dead_letters(
        self,
        *,
        limit: int,
        lease_seconds: float,
        due_only: bool = True,
        excluded_reasons: Collection[str] = (),
        actor: str = "",
        comment: str = "",
        **wanted: Unpack[DeadLetterFilter],
    ) -> list[DeadLetter]:
        """Take dead letters to attempt them: they become `retrying`, one attempt more. Without states: those retrying.

        Whose turn was longest ago comes first, so dead letters that fail again don't starve the rest.
        Two claims at once never return the same dead letter. The caller that claimed it has `lease_seconds` to mark it;
        after that (the worker died, say) it is due again. `due_only=False` does not wait for a dead letter's
        time, nor for another's lease. A failed dead letter has no time: it is due whenever failed ones are asked for.
        """
        wanted["states"] = wanted.get("states") or (DeadLetterState.RETRYING,)
        due = (
            sa.select(DeadLetterRecord.id)
            .where(*self._matching(wanted))
            .order_by(DeadLetterRecord.updated_at, DeadLetterRecord.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        if due_only:
            due = due.where(
                sa.func.coalesce(DeadLetterRecord.next_attempt_at, sa.literal_column("'-infinity'")) <= sa.func.now()
            )
        if excluded_reasons:
            due = due.where(DeadLetterRecord.reason.not_in(list(excluded_reasons)))
        # Materialized: planned as a join, the inner query could run, and lock, more than once.
        selected = due.cte("due").prefix_with("MATERIALIZED", dialect="postgresql")
        claimed = (
            sa.update(DeadLetterRecord)
            .where(DeadLetterRecord.id == selected.c.id)
            .values(
                state=DeadLetterState.RETRYING.value,
                attempts=DeadLetterRecord.attempts + 1,
                next_attempt_at=_in(lease_seconds),
                updated_at=sa.func.now(),
            )
            .returning(*COLUMNS)
            .cte("claimed")
        )
        line = _line(HistoryKind.ATTEMPTED, actor=actor, comment=comment, attempt=claimed.c.attempts)
        return sorted(
            map(dead_letter_of, self._db.statement(_with_history(claimed, line))),
            key=lambda dead_letter: dead_letter.id,
        )

    def give_up_lost_attempts(self, *, after_attempts: int) -> int:
        """Dead letters that were claimed that often and never marked wait for a person from now on; how many.

        A worker that attempts such a dead letter dies of it, or its messages are lost.
        """
        given_up = (
            sa.update(DeadLetterRecord)
            .where(
                DeadLetterRecord.state == DeadLetterState.RETRYING.value,
                DeadLetterRecord.attempts >= after_attempts,
                DeadLetterRecord.next_attempt_at <= sa.func.now(),
            )
            .values(state=DeadLetterState.FAILED.value, next_attempt_at=None, updated_at=sa.func.now())
            .returning(*COLUMNS)
            .cte("given_up")
        )
        error = "The last attempt was sent to a worker and never came back."
        line = _line(HistoryKind.REFUSED, reason="lost", error=error, attempt=given_up.c.attempts)
        return len(self._db.statement(_with_history(given_up, line)))

    def mark_dead_letter(
        self,
        number: int,
        state: DeadLetterState,
        *,
        what: HistoryKind | None = None,
        actor: str = "",
        comment: str = "",
        reason: str | None = None,
        error: str | None = None,
        next_attempt_seconds: float | None = None,
        attempts: int = 0,
        only_from: Collection[DeadLetterState] = (),
    ) -> DeadLetter | None:
        """Say how it went: the new state, actor and comment, which attempt it was. None: no such dead letter.

        `only_from`: leave a dead letter alone that is in another state meanwhile; None then, too.
        """
        mark = Mark(
            state=state,
            what=what or _HAPPENED[state],
            actor=actor,
            comment=comment,
            reason=reason,
            error=error,
            attempts=attempts,
            next_attempt_seconds=next_attempt_seconds,
        )
        rows = self._db.statement(marking(number, mark, only_from=only_from))
        return dead_letter_of(rows[0]) if rows else None

    def dead_letter_history(self, number: int) -> list[HistoryEntry]:
        """All that happened to one dead letter, in order."""
        statement = sa.select(*_LINE).where(HistoryRecord.letter_id == number).order_by(HistoryRecord.id)
        return [HistoryEntry(row.at, HistoryKind(row.what), *row[2:]) for row in self._db.statement(statement)]

    def count_dead_letters(self) -> dict[DeadLetterState, int]:
        """How many there are in each state, zeros included."""
        counts = dict.fromkeys(DeadLetterState, 0)
        for state, count in self._db.statement(
            sa.select(DeadLetterRecord.state, sa.func.count()).group_by(DeadLetterRecord.state)
        ):
            counts[DeadLetterState(state)] = count
        return counts

    def _matching(self, wanted: DeadLetterFilter) -> list[sa.ColumnElement[bool]]:
        conditions = _by_columns(wanted)
        if request_ids := wanted.get("request_ids"):
            conditions.append(self._about(request_ids, conditions))
        inside = {"refund_id": wanted.get("refund_ids"), "client_key": wanted.get("client_keys")}
        given = {name: set(values) for name, values in inside.items() if values}
        # Looked up once: a payload never changes, and a claim must not read through all of them under its locks.
        return [*conditions, DeadLetterRecord.id.in_(carrying(self._db, given, conditions))] if given else conditions

    def _about(
        self, request_ids: Collection[str], narrower: Sequence[sa.ColumnElement[bool]]
    ) -> sa.ColumnElement[bool]:
        """Of these requests. What came under an id that is no UUID is kept under its task's; the payload has it."""
        kept_as = DeadLetterRecord.request_id.in_([_printable(text, _LONGEST_ID) for text in request_ids])
        foreign = {text for text in request_ids if not _is_uuid(text)}
        if not foreign:
            return kept_as
        return sa.or_(kept_as, DeadLetterRecord.id.in_(carrying(self._db, {"request_id": foreign}, narrower)))


def marking(number: int, mark: Mark, *, only_from: Collection[DeadLetterState] = ()) -> sa.Select[Any]:
    """The statement that marks a dead letter and notes it in its history; its row is the dead letter."""
    changes: dict[str, Any] = {
        "state": mark.state.value,
        "next_attempt_at": _in(mark.next_attempt_seconds),
        "handled_by": _printable(mark.actor, _LONGEST_ID),
        "handled_comment": _printable(mark.comment, _LONGEST_ERROR),
        "attempts": sa.func.greatest(DeadLetterRecord.attempts, mark.attempts),
        "updated_at": sa.func.now(),
    }
    if mark.reason is not None:
        changes["reason"] = _printable(mark.reason, _LONGEST_ID)
    if mark.error is not None:
        changes["error"] = _printable(mark.error, _LONGEST_ERROR)
    update = sa.update(DeadLetterRecord).where(DeadLetterRecord.id == number).values(changes).returning(*COLUMNS)
    if only_from:
        update = update.where(DeadLetterRecord.state.in_([state.value for state in only_from]))
    marked = update.cte("marked")
    refused = mark.what is HistoryKind.REFUSED
    line = _line(
        mark.what,
        actor=mark.actor,
        comment=mark.comment,
        reason=marked.c.reason if refused else "",
        error=marked.c.error if refused else "",
        attempt=mark.attempts or None,
    )
    return _with_history(marked, line)


def _line(
    what: HistoryKind, *, actor: str = "", comment: str = "", reason: Any = "", error: Any = "", attempt: Any = None
) -> dict[str, Any]:
    return {
        "what": what.value,
        "actor": _printable(actor, _LONGEST_ID),
        "comment": _printable(comment, _LONGEST_ERROR),
        "reason": reason,
        "error": error,
        "attempt": attempt,
    }


def _with_history(
    changed: sa.CTE, line: dict[str, Any], *, only: sa.ColumnElement[bool] | None = None
) -> sa.Select[Any]:
    """The changed dead letters; for each of them a line of history is added."""
    columns = HistoryRecord.__table__.c
    values = [
        (value if isinstance(value, sa.ColumnElement) else sa.literal(value, columns[name].type)).label(name)
        for name, value in line.items()
    ]
    lines = sa.select(changed.c.id, *values)
    if only is not None:
        lines = lines.where(only)
    noted = sa.insert(HistoryRecord).from_select(["letter_id", *line], lines, include_defaults=False)
    return sa.select(changed).add_cte(noted.returning(HistoryRecord.id).cte("noted"))


def _by_columns(wanted: DeadLetterFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if numbers := wanted.get("numbers"):
        conditions.append(DeadLetterRecord.id.in_(list(numbers)))
    if states := wanted.get("states"):
        conditions.append(DeadLetterRecord.state.in_([state.value for state in states]))
    if (kind := wanted.get("kind")) is not None:
        conditions.append(DeadLetterRecord.kind == _printable(kind, _LONGEST_ID))
    if (user_id := wanted.get("user_id")) is not None:
        conditions.append(DeadLetterRecord.user_id == user_id)
    if (reason := wanted.get("reason")) is not None:
        conditions.append(DeadLetterRecord.reason == _printable(reason, _LONGEST_ID))
    if (since := wanted.get("since")) is not None:
        conditions.append(DeadLetterRecord.first_seen >= since)
    if (before := wanted.get("before")) is not None:
        conditions.append(DeadLetterRecord.first_seen < before)
    return conditions


def dead_letter_of(row: Sequence[Any]) -> DeadLetter:
    """The dead letter that COLUMNS were selected of."""
    values = dict(zip((column.key for column in COLUMNS), row, strict=True))
    values["state"] = DeadLetterState(values["state"])
    values["payload"] = bytes(values["payload"])
    return DeadLetter(**values)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _in(seconds: float | None) -> sa.ColumnElement[Any] | None:
    """That long from now by PostgreSQL's clock: workers' clocks differ."""
    return None if seconds is None else sa.func.now() + sa.literal(timedelta(seconds=seconds), sa.Interval())


def _printable(text: str, limit: int) -> str:
    """The text with NUL and lone surrogates written out, cut to what a column takes."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()[:limit]
