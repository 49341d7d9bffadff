"""Posting: events of an outbox become entries, and balances follow, in one transaction per call.

All of it happens inside PostgreSQL (`post_batch_v2`, `post_refund_v2`). A
crash before the commit leaves nothing, a crash after it leaves events that answer
`duplicate` when they come again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from billing_tasks.ledger import columns
from billing_tasks.ledger.columns import SERVER_RUN
from billing_tasks.ledger.database import Record
from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.part import Part
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import OutboxPart, PostedBatch, PostOutcome, ServerRun

#: A repetition changes nothing, so its commit would not wait for the standby that the first one's may still be
#: waiting for; a word in the log makes it wait.
_CONFIRM: Final = (
    "case when {} and current_setting('synchronous_standby_names') <> ''"
    " then pg_logical_emit_message(true, 'billing_tasks', '') end"
)
_POST_BATCH: Final = sa.text(
    f"select outcomes, users, tokens, {SERVER_RUN}, " + _CONFIRM.format("outcomes like '%\"duplicate\"%'") + " from"
    " billing.post_batch_v2(cast(:outboxes as text), cast(:events as text))"
)
_POST_REFUND: Final = sa.text(
    f"select outcome, users, tokens, {SERVER_RUN}, " + _CONFIRM.format("outcome = 'duplicate'") + " from"
    " billing.post_refund_v2(cast(:shard as integer), cast(:event as text))"
)


_outcomes = msgspec.json.Decoder(list[PostOutcome])


class Posting(Part):
    """Books events, each at most once."""

    def post_batch(self, shard: int, batch: list[Event]) -> PostedBatch:
        """Book consumes and releases that come from no outbox, all or none, and answer for each of them.

        `shard`: where the usage of their channels is counted. Raises as `post_outboxes`.
        """
        return self.post_outboxes(batch, [OutboxPart(shard)])

    def post_outboxes(self, batch: list[Event], parts: Sequence[OutboxPart]) -> PostedBatch:
        """Book consumes and releases of outboxes, all or none, and answer for each of them.

        `parts` say what this call covers, and move the outboxes' cursors if all events are booked. An event set aside
        as a dead letter still has to be covered by a call, with an empty batch, once it is kept, or the next call
        reports a gap. The events are the first part's.

        Raises LedgerRefusedData if one of the events can't be stored: nothing was booked;
        halve the batch to find it. Raises Unavailable if PostgreSQL did not confirm:
        perhaps booked; repeating is safe.
        """
        row = self._db.statement(_POST_BATCH, _arguments(batch, parts))[0]
        outcomes = [PostOutcome.POSTED] * len(batch) if row.outcomes is None else _outcomes.decode(row.outcomes)
        return _answer(outcomes, row)

    def post_refund(self, shard: int, event: Event) -> PostedBatch:
        """Book one refund of a charge; the outcome says whether it was, or why not.

        Raises LedgerRefusedData and Unavailable like `post_batch`.
        """
        row = self._db.statement(
            _POST_REFUND, {"shard": shard, "event": _encoded(lambda: events.encode(event).decode())}
        )[0]
        return _answer([PostOutcome(row.outcome)], row)


def post_one(connection: sa.Connection, shard: int, event: Event) -> PostedBatch:
    """Book one event, of whatever kind, inside a transaction of the caller's. Raises LedgerRefusedData."""
    if event.kind is Kind.REFUND:
        values: dict[str, object] = {"shard": shard, "event": _encoded(lambda: events.encode(event).decode())}
        row = connection.execute(_POST_REFUND, values).one()
        return _answer([PostOutcome(row.outcome)], row)
    row = connection.execute(_POST_BATCH, _arguments([event], [OutboxPart(shard)])).one()
    return _answer([PostOutcome.POSTED] if row.outcomes is None else _outcomes.decode(row.outcomes), row)


def _arguments(batch: list[Event], parts: Sequence[OutboxPart]) -> dict[str, str]:
    return {
        "outboxes": msgspec.json.encode(parts).decode(),
        "events": _encoded(lambda: events.encode_all(batch)),
    }


def _encoded(encode: Callable[[], str]) -> str:
    try:
        return encode()
    except (UnicodeEncodeError, OverflowError, RecursionError) as exc:
        raise LedgerRefusedData(f"An event can't be written as JSON: {exc}") from None


def _answer(outcomes: list[PostOutcome], row: Record) -> PostedBatch:
    users, tokens = columns.users_from_json(row.users), columns.tokens_from_json(row.tokens)
    return PostedBatch(outcomes, users, tokens, ServerRun(row.server_run, row.last_version))
