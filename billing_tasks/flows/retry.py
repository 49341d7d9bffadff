"""Retry: dead letters, once more. Each attempt posts straight into PostgreSQL under the event's own key.

So an attempt that was interrupted, or made twice, books nothing twice: it finds
"duplicate", which counts as booked.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from billing_tasks import events, intake
from billing_tasks.errors import (
    BillingError,
    ChargeNotFound,
    IdempotencyConflict,
    InvalidRequest,
    RefundAboveCharge,
    TokenRefused,
    UserNotFound,
)
from billing_tasks.events import Event, Kind, Posted
from billing_tasks.flows.copies import clock_of, push_copies
from billing_tasks.flows.effects import Flow, InLedger, ask
from billing_tasks.flows.letters import TRANSIENT, WHY, slow_lane, wait_before
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.rows import DeadLetter, LetterState
from billing_tasks.settings import Settings

#: A letter that was sent and not marked (its task was lost with the broker, say) is due again after this.
CLAIM_SECONDS = 300

_ERRORS: dict[str, type[BillingError]] = {
    Posted.CONFLICT: IdempotencyConflict,
    Posted.UNKNOWN_USER: UserNotFound,
    Posted.UNKNOWN_TOKEN: TokenRefused,
    Posted.NO_CHARGE: ChargeNotFound,
    Posted.ABOVE_CHARGE: RefundAboveCharge,
}


@dataclass(frozen=True, slots=True)
class Attempted:
    """What an attempt found: `posted`, `duplicate`, or that the letter was settled before."""

    dead_letter: int
    request_id: str
    outcome: str

    def as_dict(self) -> dict[str, object]:
        """What Flower and --json show."""
        return {"dead_letter": self.dead_letter, "request_id": self.request_id, "outcome": self.outcome}


def attempt(
    number: int, *, who: str, commands: Commands, settings: Settings, count: int | None = None
) -> Flow[Attempted]:
    """Try to book one dead letter. Raises the error that says why not; the row says it too.

    `count`: the how-manieth attempt this is, if it was sent as a task; one more than the row says otherwise.
    """
    letter = yield from ask(InLedger(lambda ledger: ledger.get_dead_letter(number)))
    if letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")
    if letter.state in (LetterState.RESOLVED, LetterState.DISCARDED):
        return Attempted(number, letter.request_id, f"already {letter.state}")
    count = letter.attempts + 1 if count is None else count
    try:
        event = event_of(letter)
        outcome = yield from _post(event, commands)
    except InvalidRequest as exc:
        yield from _failed(letter, count, reason="malformed", error=exc.message, who=who, settings=settings)
        raise
    if not outcome.booked:
        yield from _failed(letter, count, reason=outcome, error=WHY[outcome], who=who, settings=settings)
        raise _ERRORS[outcome](f"{WHY[outcome]} (dead letter {number})", request_id=letter.request_id)
    why = "booked by this attempt" if outcome is Posted.POSTED else "had been booked before"
    yield from ask(
        InLedger(lambda ledger: ledger.mark_dead_letter(number, LetterState.RESOLVED, who=who, why=why, attempts=count))
    )
    return Attempted(number, letter.request_id, outcome)


def event_of(letter: DeadLetter) -> Event:
    """The event inside a dead letter, whether it came from an outbox or as a message. Raises InvalidRequest."""
    if letter.kind == Kind.CONFLICT:
        raise InvalidRequest(WHY[Posted.CONFLICT], request_id=letter.request_id)
    try:
        event = events.decode(letter.payload)
    except (msgspec.DecodeError, RecursionError):
        return intake.event_from_message(letter.kind, letter.payload)
    if event.fingerprint != letter.fingerprint:
        # It only looks like an event of ours: a message from outside, which has to pass the checks.
        return intake.event_from_message(letter.kind, letter.payload)
    return event


def _post(event: Event, commands: Commands) -> Flow[Posted]:
    shard = commands.keys.shard_of(event.user_id)
    clock = yield from clock_of(event.user_id, commands)

    if event.kind is Kind.REFUND:
        batch = yield from ask(InLedger(lambda ledger: ledger.post_refund(shard, event)))
    else:
        batch = yield from ask(InLedger(lambda ledger: ledger.post_batch(shard, [event])))
    yield from push_copies(clock, users=batch.users, tokens=batch.tokens, commands=commands)
    return batch.outcomes[0]


def _failed(letter: DeadLetter, count: int, *, reason: str, error: str, who: str, settings: Settings) -> Flow[None]:
    again = reason in TRANSIENT and count < settings.max_attempts
    state = LetterState.RETRYING if again else LetterState.FAILED
    wait = wait_before(count) if again else None
    yield from ask(
        InLedger(
            lambda ledger: ledger.mark_dead_letter(
                letter.id,
                state,
                who=who,
                why="attempted",
                error=error,
                next_attempt_seconds=wait,
                attempts=count,
                open_only=True,
            )
        )
    )


def send_again(*, kind: str | None, limit: int, due_only: bool) -> Flow[list[str]]:
    """Send dead letters to the workers, each as a task of its own; returns their request ids.

    `due_only`: those whose own time has come; else also those that wait for a person.
    """
    states = [LetterState.RETRYING] if due_only else [LetterState.RETRYING, LetterState.FAILED]
    letters = yield from ask(
        InLedger(
            lambda ledger: ledger.claim_dead_letters(limit=limit, lease_seconds=CLAIM_SECONDS, kind=kind, states=states)
        )
    )
    for letter in letters:
        yield slow_lane(kind=letter.kind, request_id=letter.request_id, number=letter.id, attempt=letter.attempts)
    return [letter.request_id for letter in letters]
