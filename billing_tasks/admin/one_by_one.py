"""Many dead letters, one after the other, and what became of each.

One dead letter never keeps the others from their turn. If PostgreSQL does not confirm
three in a row, the rest is left for later: they would all wait for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

from billing_tasks.errors import BillingError, InvalidRequest, Unavailable
from billing_tasks.flows.dead_letters.answers import Attempted, Preview
from billing_tasks.ledger.rows import DeadLetter

log = logging.getLogger(__name__)

#: So many answers that PostgreSQL owes, one after the other, end the work.
AWAY_IN_A_ROW: Final = 3
#: The outcome of a number that no dead letter has.
NOT_FOUND: Final = "not_found"
#: The outcome of a dead letter that met a bug of ours.
UNEXPECTED: Final = "unexpected"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one dead letter."""

    dead_letter: int
    request_id: str | None
    outcome: str
    message: str
    open: bool  # not what was asked for: it still waits, for its time or for a person
    refused: bool = False  # by a rule; `outcome` is the dead letter's reason then, `message` the rule

    def as_dict(self) -> dict[str, object]:
        """For machines; `says` is the message, as in the results of previews and attempts."""
        return {("says" if name == "message" else name): value for name, value in asdict(self).items()}


def attempted(found: Attempted) -> Result:
    """Of an attempt that raised nothing. A discarded dead letter did not get what was asked for."""
    undone = found.outcome == "already discarded"
    return Result(found.dead_letter, found.request_id, found.outcome, found.message, open=undone)


def previewed(found: Preview) -> Result:
    """Of a dry run, which leaves nothing undone."""
    return Result(found.dead_letter, found.request_id, found.would, found.message, open=False)


def one_by_one(
    numbers: Iterable[int], do: Callable[[int], Result], get: Callable[[int], DeadLetter]
) -> Iterator[Result]:
    """Do it to each when its result is asked for; fewer results than numbers if PostgreSQL went away.

    `do` may raise what it likes; `get` reads a dead letter that was refused.
    """
    away = 0
    for number in numbers:
        result = _one(number, do, get)
        yield result
        away = away + 1 if result.outcome == Unavailable.code else 0
        if away == AWAY_IN_A_ROW:
            return


def _one(number: int, do: Callable[[int], Result], get: Callable[[int], DeadLetter]) -> Result:
    try:
        return do(number)
    except Unavailable as exc:
        return _away(number, exc)
    except BillingError as exc:
        return _refused(number, exc, get)
    except Exception as exc:
        # A bug of ours: this dead letter's, not the others'.
        log.exception("dead letter %s", number)
        return Result(number, None, UNEXPECTED, repr(exc), open=True)


def _away(number: int, error: Unavailable) -> Result:
    return Result(number, error.request_id, Unavailable.code, error.message, open=True)


def _refused(number: int, error: BillingError, get: Callable[[int], DeadLetter]) -> Result:
    try:
        dead_letter = get(number)
    except Unavailable as exc:
        return _away(number, exc)
    except InvalidRequest:
        return Result(number, None, NOT_FOUND, error.message, open=True)
    if not dead_letter.open:
        return Result(number, dead_letter.request_id, f"already {dead_letter.state}", error.message, open=True)
    return Result(number, dead_letter.request_id, dead_letter.reason, error.message, open=True, refused=True)
