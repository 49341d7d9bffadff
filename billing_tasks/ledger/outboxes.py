"""How far each outbox was read, and the incidents that reading uncovered. Detects loss; decides nothing."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from billing_tasks.ledger.models import Cursor, IncidentRecord
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import Incident, OutboxCursor

_OBSERVE: Final = sa.text(
    "select billing.move_cursor(cast(:shard as integer), cast(:epoch as bigint), null, null, cast(:seen as bigint), 0)"
)


class Outboxes(Part):
    """Cursors and incidents."""

    def observe_outbox(self, shard: int, epoch: int, seen: int) -> None:
        """Note that the shard's outbox has reached this epoch and sequence number, posted or not.

        Called now and then, it makes the bound of a later loss tight, and it records an
        epoch that begins anew even if no event follows.
        """
        self._db.statement(_OBSERVE, {"shard": shard, "epoch": epoch, "seen": seen})

    def outbox_cursors(self, shard: int | None = None) -> list[OutboxCursor]:
        """By shard and epoch, of one shard or of all."""
        statement = sa.select(*Cursor.__table__.columns).order_by(Cursor.shard, Cursor.epoch)
        if shard is not None:
            statement = statement.where(Cursor.shard == shard)
        return [OutboxCursor(**row._asdict()) for row in self._db.statement(statement)]

    def incidents(self, *, shard: int | None = None, limit: int = 100) -> list[Incident]:
        """Newest first."""
        statement = sa.select(*IncidentRecord.__table__.columns).order_by(IncidentRecord.id.desc()).limit(limit)
        if shard is not None:
            statement = statement.where(IncidentRecord.shard == shard)
        return [Incident(**row._asdict()) for row in self._db.statement(statement)]
