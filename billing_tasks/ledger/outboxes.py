"""How far each outbox was read, and the incidents that reading uncovered. Detects loss; changes no balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from billing_tasks.ledger.database import Record
from billing_tasks.ledger.models import Cursor, IncidentRecord
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import Incident, Numbers, OutboxCursor

_OBSERVE: Final = sa.text("select billing.observe_outboxes(cast(:looks as text), cast(:backlog_limit as bigint))")

_MEET: Final = sa.text("select billing.meet_redis(cast(:looks as text))")


@dataclass(frozen=True, slots=True)
class OutboxLook:
    """What Redis says of a shard's outbox. `before_*`: what it still knew of the epoch before the last restart."""

    shard: int
    epoch: int
    seq: int
    before_epoch: int | None = None
    before_seq: int | None = None
    open_holds: int = 0
    oldest: tuple[int, int] | tuple[()] | None = None  # epoch and seq of its first event; (): none; None: not looked


@dataclass(frozen=True, slots=True)
class SeenBooked:
    """What Redis knows to be booked: the events of this epoch up to number `settled`, and accounts up to `version`."""

    shard: int
    epoch: int
    settled: int
    version: int


class Outboxes(Part):
    """Cursors and incidents."""

    def observe_outboxes(self, looks: Sequence[OutboxLook], *, backlog_limit: int) -> None:
        """Note how far the outboxes have come, posted or not.

        Called now and then, it makes the bounds of a later loss tight. It records an epoch that
        begins anew even if no event follows, and says how much of the old outbox is missing.
        """
        self._db.statement(
            _OBSERVE, {"looks": msgspec.json.encode(list(looks)).decode(), "backlog_limit": backlog_limit}
        )

    def meet_redis(self, looks: Sequence[SeenBooked]) -> bool:
        """True if the books are older than Redis knows them: they were restored, or a standby took over that lagged.

        What they lack becomes an incident, and the versions to come are above all that Redis has seen.
        """
        return bool(self._db.statement(_MEET, {"looks": msgspec.json.encode(list(looks)).decode()})[0][0])

    def outbox_cursors(self, shard: int | None = None) -> list[OutboxCursor]:
        """By shard and epoch, of one shard or of all."""
        statement = sa.select(*Cursor.__table__.columns).order_by(Cursor.shard, Cursor.epoch)
        if shard is not None:
            statement = statement.where(Cursor.shard == shard)
        return [OutboxCursor(**_with_numbers(row, "accounted")) for row in self._db.statement(statement)]

    def lost_numbers(self) -> dict[tuple[int, int], Numbers]:
        """By shard and epoch: the numbers that incidents, open or closed, say are gone."""
        epoch = sa.func.coalesce(IncidentRecord.of_epoch, IncidentRecord.epoch).label("of_epoch")
        statement = sa.select(IncidentRecord.shard, epoch, IncidentRecord.lost).where(IncidentRecord.lost != [])
        found: dict[tuple[int, int], Numbers] = {}
        for row in self._db.statement(statement):
            key = row.shard, row.of_epoch
            found[key] = (*found.get(key, ()), *_with_numbers(row, "lost")["lost"])
        return found

    def close_incidents(self, ids: Sequence[int], *, closed_by: str, comment: str) -> list[int]:
        """Note that a person has seen to these incidents; returns those that were open. The closed stay as they are."""
        statement = (
            sa.update(IncidentRecord)
            .where(IncidentRecord.id.in_(ids), IncidentRecord.closed_at.is_(None))
            .values(closed_at=sa.func.now(), closed_by=closed_by, comment=comment)
            .returning(IncidentRecord.id)
        )
        return sorted(self._db.transaction(lambda connection: connection.scalars(statement).all()))

    def incidents(self, *, shard: int | None = None, before_id: int | None = None, limit: int = 100) -> list[Incident]:
        """Newest first. `before_id`: the last of the page before."""
        statement = sa.select(*IncidentRecord.__table__.columns).order_by(IncidentRecord.id.desc()).limit(limit)
        if shard is not None:
            statement = statement.where(IncidentRecord.shard == shard)
        if before_id is not None:
            statement = statement.where(IncidentRecord.id < before_id)
        return [Incident(**_with_numbers(row, "lost")) for row in self._db.statement(statement)]


def _with_numbers(row: Record, name: str) -> dict[str, Any]:
    """A row's columns; the multirange `name` as first and last of each range."""
    values = row._asdict()
    return {**values, name: tuple((part.lower, part.upper - 1) for part in values[name])}
