"""Attempts: a dead letter is booked and marked in one transaction, or only previewed in one that is rolled back.

In one transaction, because a person may discard the dead letter at the same moment, or retry
it, too: the second one waits for the dead letter's row and then finds what the first one did.
A crash before the commit leaves neither the booking nor the mark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import sqlalchemy as sa

from billing_tasks.ledger.dead_letters import COLUMNS, dead_letter_of, marking
from billing_tasks.ledger.models import DeadLetterRecord
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.posting import post_one
from billing_tasks.ledger.rows import DeadLetter, Mark, PostPreview, RequestState
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import PostedBatch, PostOutcome

_REQUEST_STATE: Final = sa.text("""
    select (select user_id from billing.tokens where id = :token_id) as token_user,
           charge.quota + (select coalesce(sum(quota), 0)::bigint from billing.corrections
                           where request_id = asked.request_id) as charged, charge.user_id as charged_user,
           (select coalesce(sum(quota), 0)::bigint from billing.refunds where request_id = asked.request_id)
               as refunded,
           (select quota from billing.refunds where refund_id = :refund_id) as refund_quota,
           release.entry_id is not null as released, coalesce(release.expired, false) as expired
    from (select cast(:request_id as uuid) as request_id) as asked
    left join billing.ledger_entries as charge on charge.entry_id = asked.request_id and charge.kind = 'consume'
    left join billing.ledger_entries as release on release.entry_id = asked.request_id and release.kind = 'release'
""")


class Attempts(Part):
    """Books dead letters."""

    def book_dead_letter(
        self, number: int, shard: int, event: Event, verdict: Callable[[DeadLetter, PostOutcome], Mark]
    ) -> tuple[DeadLetter | None, PostedBatch | None]:
        """Book a dead letter's event and mark the dead letter by `verdict`, both or neither.

        Returns the dead letter as it was and the ledger's answer. No answer: it is not open (any more), and nothing was
        done. Raises LedgerRefusedData if the event can't be stored, Unavailable if
        PostgreSQL did not confirm; repeating is safe.
        """

        def work(connection: sa.Connection) -> tuple[DeadLetter | None, PostedBatch | None]:
            row = connection.execute(
                sa.select(*COLUMNS).where(DeadLetterRecord.id == number).with_for_update()
            ).one_or_none()
            dead_letter = None if row is None else dead_letter_of(row)
            if dead_letter is None or not dead_letter.open:
                return dead_letter, None
            # Its quota was not set aside any more since it left the outbox, so it was used like usage without a hold;
            # `verify` takes that as the reason if others used the same quota meanwhile.
            late = msgspec.structs.replace(event, held_quota=0) if event.kind is Kind.CONSUME else event
            batch = post_one(connection, shard, late)
            connection.execute(marking(number, verdict(dead_letter, batch.outcomes[0])))
            return dead_letter, batch

        return self._db.transaction(work)

    def preview(self, shard: int, event: Event) -> PostPreview:
        """What the ledger would answer to this event now. It is booked, asked about, and rolled back.

        So the answer is the ledger's own, and its rules are written once. While it lasts, a few
        milliseconds, the user's row is locked. Raises as `book_dead_letter` does.
        """

        def work(connection: sa.Connection) -> PostPreview:
            values = {
                "token_id": event.token_id,
                "refund_id": event.refund_id,
                "request_id": event.request_id,
            }
            state = RequestState(*connection.execute(_REQUEST_STATE, values).one())
            with connection.begin_nested() as savepoint:
                outcome = post_one(connection, shard, event).outcomes[0]
                savepoint.rollback()
            return PostPreview(outcome, state)

        return self._db.transaction(work)
