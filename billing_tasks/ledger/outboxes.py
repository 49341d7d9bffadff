"""How far each outbox was read, and the incidents that reading uncovered. Detects loss; changes no balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import sqlalchemy as sa

from billing_tasks.ledger.models import Cursor, IncidentRecord
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import Incident, OutboxCursor

_OBSERVE: Final = sa.text("select billing.observe_outboxes(cast(:looks as text), cast(:backlog_limit as bigint))")


@dataclass(frozen=True, slots=True)
class OutboxLook:
    """What Redis says of a shard's outbox. `before_*`: what it still knew of the epoch before the last restart."""

    shard: int
    epoch: int
    seq: int
    before_epoch: int | None = None
    before_seq: int | None = None
    open_holds: int = 0


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

    def outbox_cursors(self, shard: int | None = None) -> list[OutboxCursor]:
        """By shard and epoch, of one shard or of all."""
        statement = sa.select(*Cursor.__table__.columns).order_by(Cursor.shard, Cursor.epoch)
        if shard is not None:
            statement = statement.where(Cursor.shard == shard)
        return [OutboxCursor(**row._asdict()) for row in self._db.statement(statement)]

    def incidents(self, *, shard: int | None = None, before_id: int | None = None, limit: int = 100) -> list[Incident]:
        """Newest first. `before_id`: the last of the page before."""
        statement = sa.select(*IncidentRecord.__table__.columns).order_by(IncidentRecord.id.desc()).limit(limit)
        if shard is not None:
            statement = statement.where(IncidentRecord.shard == shard)
        if before_id is not None:
            statement = statement.where(IncidentRecord.id < before_id)
        return [Incident(**row._asdict()) for row in self._db.statement(statement)]
