"""Erasing what may name a person, without touching a sum."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from billing_tasks.ledger.accounts import unknown_user
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import Erased

_ERASE: Final = sa.text(
    "select user_known, entries, tokens, top_ups, dead_letters, open_dead_letters"
    " from billing.erase_person(cast(:user_id as bigint), cast(:actor as text), cast(:comment as text))"
)
#: Of a user with years of entries.
_LONGEST_SECONDS: Final = 600.0
_NO_TIMEOUT: Final = sa.text(f"set local statement_timeout = {round(_LONGEST_SECONDS * 1000)}")


class Erasure(Part):
    """One user at a time; noted in billing.erasures."""

    def erase_person(self, user_id: int, *, actor: str, comment: str) -> Erased:
        """Empty the texts of a user's entries, tokens, top-ups and settled dead letters. Raises UserNotFound."""

        def work(connection: sa.Connection) -> Erased:
            connection.execute(_NO_TIMEOUT)
            known, *counts = connection.execute(_ERASE, {"user_id": user_id, "actor": actor, "comment": comment}).one()
            if not known:
                raise unknown_user(user_id)
            return Erased(*counts)

        return self._db.transaction(work, seconds=_LONGEST_SECONDS)
