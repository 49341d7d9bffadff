"""Resolve: a person says that a dead letter stays unbooked, or takes that back. Actor and comment are kept with it.

Nothing is booked and nothing removed: a discarded dead letter can be reopened, and a
dead letter that was booked meanwhile can't be discarded any more.
"""

from __future__ import annotations

from collections.abc import Collection

from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.effects import InLedger
from billing_tasks.ledger.rows import OPEN, DeadLetter, DeadLetterState, HistoryKind
from billing_tasks.ledger.store import Ledger


async def discard(number: int, *, actor: str, comment: str) -> bool:
    """It stays unbooked. False: it was discarded before. Raises InvalidRequest if it was booked."""
    dead_letter = await _resolve(number, DeadLetterState.DISCARDED, HistoryKind.DISCARDED, OPEN, actor, comment)
    if dead_letter is None:
        return True
    if dead_letter.state is DeadLetterState.DISCARDED:
        return False
    by = dead_letter.handled_by or "a retry"
    raise InvalidRequest(f"Dead letter {number} was booked by {by}; it can't be discarded.")


async def reopen(number: int, *, actor: str, comment: str) -> None:
    """A discarded dead letter waits for a person again. Raises InvalidRequest if it was not discarded."""
    dead_letter = await _resolve(
        number, DeadLetterState.FAILED, HistoryKind.REOPENED, [DeadLetterState.DISCARDED], actor, comment
    )
    if dead_letter is not None:
        raise InvalidRequest(f"Dead letter {number} is {dead_letter.state}; only what was discarded can be reopened.")


async def _resolve(
    number: int,
    state: DeadLetterState,
    what: HistoryKind,
    only_from: Collection[DeadLetterState],
    actor: str,
    comment: str,
) -> DeadLetter | None:
    """None: done. Else the dead letter, whose state does not allow it. Raises InvalidRequest if there is none."""
    if not comment.strip():
        raise InvalidRequest("Say why: comment is kept with the dead letter.")
    marked = await InLedger(
        Ledger.mark_dead_letter, number, state, what=what, actor=actor, comment=comment, only_from=only_from
    )
    if marked is not None:
        return None
    dead_letter = await InLedger(Ledger.get_dead_letter, number)
    if dead_letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")
    return dead_letter
