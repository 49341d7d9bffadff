"""Usage summed up: what was used and given back, by model, user, token, channel or day, by the time of use."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, get_args

import sqlalchemy as sa

from billing_tasks.ledger.models import Entry
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import UsageRow

UsageBy: TypeAlias = Literal["model", "user", "token", "channel", "day"]
#: What usage can be summed up by.
USAGE_BY: Final[tuple[str, ...]] = get_args(UsageBy)

#: Reads as much as it is asked for; a server that is stopped meanwhile is noticed by then. In seconds.
_LONGEST_SECONDS: Final = 600.0
_NO_TIMEOUT: Final = sa.text(f"set local statement_timeout = {round(_LONGEST_SECONDS * 1000)}")
#: How much later than its id's date something may have been used: an id is minted when quota is reserved, at most 31
#: days before; partitions of before that are not read. Usage is never dated by its booking, which may be much later.
_ID_BEFORE_USE: Final = timedelta(days=32)

_TIME: Final = sa.func.coalesce(Entry.used_at, Entry.created_at)
_KEYS: Final[dict[str, Any]] = {
    "model": Entry.model_name,
    "user": sa.cast(Entry.user_id, sa.Text),
    "token": sa.cast(Entry.token_id, sa.Text),
    "channel": sa.cast(Entry.channel_id, sa.Text),
    "day": sa.func.to_char(sa.func.timezone("UTC", _TIME), "YYYY-MM-DD"),
}
_CONSUME: Final = Entry.kind == "consume"
_REFUND: Final = Entry.kind == "refund"
_CORRECTION: Final = Entry.kind == "correction"


class Usage(Part):
    """Sums for reports; changes nothing."""

    def usage(
        self,
        by: UsageBy,
        *,
        since: datetime | None = None,
        before: datetime | None = None,
        user_id: int | None = None,
        limit: int | None = None,
    ) -> list[UsageRow]:
        """One row per key: days in their order, all else by what was charged, largest first. Raises Unavailable."""
        key = sa.func.coalesce(_KEYS[by], "").label("key")
        charged = sa.func.coalesce(sa.func.sum(Entry.quota).filter(_CONSUME), 0)
        statement = (
            sa.select(
                key,
                sa.func.count().filter(_CONSUME),
                sa.func.coalesce(sa.func.sum(Entry.prompt_tokens).filter(_CONSUME), 0),
                sa.func.coalesce(sa.func.sum(Entry.completion_tokens).filter(_CONSUME), 0),
                charged,
                sa.func.coalesce(sa.func.sum(Entry.quota).filter(_REFUND), 0),
                sa.func.coalesce(sa.func.sum(Entry.used_quota).filter(_CORRECTION), 0),
                sa.func.coalesce(sa.func.sum(Entry.cost).filter(_CONSUME), 0),
                sa.func.count(Entry.cost).filter(_CONSUME),
            )
            .where(Entry.kind.in_(["consume", "refund", "correction"]))
            .group_by(key)
            .order_by(key if by == "day" else charged.desc(), key)
            .limit(limit)
        )
        if since is not None:
            first_id = sa.func.billing.first_entry_id(since - _ID_BEFORE_USE)
            statement = statement.where(since <= _TIME, Entry.entry_id >= first_id)
        if before is not None:
            statement = statement.where(before > _TIME)
        if user_id is not None:
            statement = statement.where(Entry.user_id == user_id)

        def work(connection: sa.Connection) -> list[UsageRow]:
            connection.execute(_NO_TIMEOUT)
            return [UsageRow(row[0], *map(int, row[1:])) for row in connection.execute(statement)]

        return self._db.transaction(work, seconds=_LONGEST_SECONDS)
