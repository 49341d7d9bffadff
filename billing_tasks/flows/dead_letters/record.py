"""Dead letters: what could not be booked, as it came, with the reason and whether time may heal it.

Kept before the event leaves the outbox or the message is acknowledged; a crash
in between keeps it twice, which the table's unique key folds into one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from billing_tasks.broker import decode
from billing_tasks.broker.names import CONSUME, REFUND
from billing_tasks.errors import BillingError, InvalidRequest
from billing_tasks.flows.dead_letters.answers import ARCHIVED, FOR_EVER, MALFORMED, UNREAD_USAGE, WHY, WHY_ARCHIVED
from billing_tasks.flows.dead_letters.telling import shown
from billing_tasks.flows.effects import Enqueue, InLedger
from billing_tasks.holds.replies import OutboxEntry, parse_entry
from billing_tasks.ledger.failures import NO_PARTITION, LedgerRefusedData
from billing_tasks.ledger.rows import DeadLetter, DeadLetterState
from billing_tasks.ledger.store import Ledger
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.fingerprint import fingerprint
from billing_tasks.model.ids import check_request_id
from billing_tasks.model.posting import PostOutcome

#: What is said of an event whose month is archived, too.
BY_MONTH = frozenset({NO_PARTITION, str(PostOutcome.NO_CHARGE)})

#: First and longest wait before an automatic retry; it doubles in between.
FIRST_WAIT_SECONDS = 10
LONGEST_WAIT_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class NewDeadLetter:
    """A dead letter to be kept."""

    kind: str
    request_id: str
    user_id: int | None
    fingerprint: str
    payload: bytes
    reason: str  # a code
    error: str  # a sentence
    event: Event | None = None  # what can be read of it

    @property
    def transient(self) -> bool:
        """True if it is tried again by itself."""
        return self.reason not in FOR_EVER


def of_event(event: Event, reason: str, error: str = "") -> NewDeadLetter:
    """The dead letter of an event that the ledger refused."""
    kind, payload = str(event.kind), events.encode(event)
    return NewDeadLetter(kind, event.request_id, event.user_id, event.fingerprint, payload, str(reason), error, event)


def of_unread(event: Event) -> NewDeadLetter | None:
    """The dead letter of what an upstream said and nobody could read: the event is booked, perhaps at a wrong amount.

    None: it was read.
    """
    unread = (event.details or {}).get("unread")
    if not unread:
        return None
    payload = events.encode(event)
    error = f"{unread.get('problem', '')} {event.quota} quota are charged."
    return NewDeadLetter(
        "usage", event.request_id, event.user_id, event.fingerprint, payload, UNREAD_USAGE, error, event
    )


def of_outcome(event: Event, outcome: PostOutcome) -> NewDeadLetter:
    """The dead letter of an event that the ledger answered with anything but booked."""
    return of_event(event, outcome, WHY[outcome])


def of_refused_data(event: Event, error: LedgerRefusedData) -> NewDeadLetter:
    """The dead letter of an event that the ledger can't store."""
    return of_event(event, reason_of(error), error.message)


async def of_refusal(event: Event, refusal: PostOutcome | LedgerRefusedData) -> NewDeadLetter:
    """The dead letter of an event that the ledger did not book, with the reason that a look at its month gives."""
    if isinstance(refusal, LedgerRefusedData):
        new = of_refused_data(event, refusal)
    else:
        new = of_outcome(event, refusal)
    if new.reason in BY_MONTH and await InLedger(Ledger.is_archived, event.request_id):
        return of_event(event, ARCHIVED, WHY_ARCHIVED)
    return new


def of_message(kind: str, message: dict[str, Any], error: BillingError, *, task_id: str) -> NewDeadLetter:
    """The dead letter of a Celery message that can't be used, as it came; without a usable id the task's serves."""
    # ASCII, because JSON from elsewhere may hold lone surrogates that UTF-8 has no bytes for.
    try:
        payload = json.dumps(message, ensure_ascii=True, default=str).encode()
    except (RecursionError, ValueError, TypeError):  # nested without end, or keys that are no text
        payload = repr(message)[:65536].encode("utf-8", "backslashreplace")
    try:
        request_id = check_request_id(message.get("request_id"))
    except BillingError:
        request_id = task_id
    user_id = message.get("user_id")
    known_user = user_id if type(user_id) is int else None
    return NewDeadLetter(kind, request_id, known_user, _of_message(payload), payload, error.code, error.message)


def of_entry(entry: OutboxEntry, error: str) -> NewDeadLetter:
    """The dead letter of an outbox entry that is no event: its header, if a script wrote one, and its payload."""
    payload = entry.event + b" " + entry.payload if entry.event else entry.payload
    return NewDeadLetter(
        entry.kind or "unknown",
        entry.request_id or entry.entry_id,
        entry.user_id,
        _of_entry(payload),
        payload,
        MALFORMED,
        error,
    )


def reason_of(error: InvalidRequest) -> str:
    """The code of a refusal by rule: of the ledger, which can't store it, or of the checks on messages."""
    if not isinstance(error, LedgerRefusedData):
        return error.code
    return error.reason if error.reason in (NO_PARTITION, ARCHIVED) else MALFORMED


def event_of(dead_letter: DeadLetter) -> Event:
    """The event inside a dead letter, whether it came from an outbox or as a message. Raises InvalidRequest.

    A message has to pass the checks of a message, whatever it looks like; and what was filed in an outbox
    and is no event of ours is never booked. What an older release could not read this one may.
    """
    if dead_letter.kind not in (Kind.CONSUME, Kind.REFUND, Kind.RELEASE):
        raise InvalidRequest(f"Nothing of kind {dead_letter.kind} can be booked.", request_id=dead_letter.request_id)
    try:
        if dead_letter.fingerprint == _of_message(dead_letter.payload):
            return decode.event_from_message(dead_letter.kind, dead_letter.payload)
        if dead_letter.fingerprint == _of_entry(dead_letter.payload):
            header, space, payload = dead_letter.payload.partition(b" {")
            return parse_entry((b"0-0", [b"event", header, b"payload", space[1:] + payload])).read()
        event = events.decode(dead_letter.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidRequest(f"The payload is no event: {exc}", request_id=dead_letter.request_id) from None
    if (event.fingerprint, event.kind) != (dead_letter.fingerprint, dead_letter.kind):
        raise InvalidRequest("The payload is no event of ours.", request_id=dead_letter.request_id)
    return event


def _of_message(payload: bytes) -> str:
    return fingerprint("message", payload.hex())


def _of_entry(payload: bytes) -> str:
    return fingerprint(MALFORMED, payload.hex())


def wait_before(attempt: int) -> int:
    """How many seconds an automatic retry waits after this many attempts."""
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS << min(attempt, 12))


async def keep(dead_letters: list[NewDeadLetter]) -> list[int]:
    """Keep them; returns their numbers. Raises Unavailable."""
    numbers = []
    for new in dead_letters:
        kept, _ = await InLedger(
            Ledger.add_dead_letter,
            kind=new.kind,
            request_id=new.request_id,
            user_id=new.user_id,
            payload=new.payload,
            reason=new.reason,
            error=new.error,
            fingerprint=new.fingerprint,
            state=DeadLetterState.RETRYING if new.transient else DeadLetterState.FAILED,
            next_attempt_seconds=wait_before(0) if new.transient else None,
        )
        numbers.append(kept.id)
    return numbers


def slow_lane(
    *, kind: str, request_id: str, number: int, attempt: int, event: Event | None = None, **asked: str
) -> Enqueue:
    """The dead letter as a Celery task of its own, so that Flower has the request under its own id.

    `asked`: actor and comment, if a person asked for it. `event`: what it is about, for people to find it by. The id
    ends with the dead letter's number and the attempt's: one request may have several refunds.
    """
    return Enqueue(
        REFUND if kind in (Kind.REFUND, Kind.RELEASE) else CONSUME,
        f"{kind}:{request_id}:{number}.{attempt}",
        {"dead_letter": number, "request_id": request_id, "attempt": attempt, **shown(event), **asked},
    )
