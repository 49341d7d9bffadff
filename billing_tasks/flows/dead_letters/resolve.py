"""Decide: a person says that a dead letter stays unbooked, or takes that back. Who and why is kept with it.

Nothing is booked and nothing removed: a discarded letter can be reopened, and a
letter that was booked meanwhile can't be discarded any more.
"""

from __future__ import annotations

from collections.abc import Collection

from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.effects import Flow, InLedger, ask
from billing_tasks.ledger.rows import OPEN, DeadLetter, Happened, LetterState


def discard(number: int, *, who: str, why: str) -> Flow[bool]:
    """It stays unbooked. False: somebody discarded it before. Raises InvalidRequest if it was booked."""
    letter = yield from _decide(number, LetterState.DISCARDED, Happened.DISCARDED, OPEN, who, why)
    if letter is None:
        return True
    if letter.state is LetterState.DISCARDED:
        return False
    by = letter.handled_by or "a retry"
    raise InvalidRequest(f"Dead letter {number} was booked by {by}; it can't be discarded.")


def reopen(number: int, *, who: str, why: str) -> Flow[None]:
    """A discarded letter waits for a person again. Raises InvalidRequest if it was not discarded."""
    letter = yield from _decide(number, LetterState.FAILED, Happened.REOPENED, [LetterState.DISCARDED], who, why)
    if letter is not None:
        raise InvalidRequest(f"Dead letter {number} is {letter.state}; only what was discarded can be reopened.")


def _decide(
    number: int, state: LetterState, what: Happened, only_from: Collection[LetterState], who: str, why: str
) -> Flow[DeadLetter | None]:
    """None: decided. Else the letter, whose state does not allow it. Raises InvalidRequest if there is none."""
    if not why.strip():
        raise InvalidRequest("Say why: somebody will ask.")
    marked = yield from ask(
        InLedger(
            lambda ledger: ledger.mark_dead_letter(number, state, what=what, who=who, why=why, only_from=only_from)
        )
    )
    if marked is not None:
        return None
    letter = yield from ask(InLedger(lambda ledger: ledger.get_dead_letter(number)))
    if letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")
    return letter
