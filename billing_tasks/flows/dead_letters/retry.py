"""Retry: dead letters, once more. Each attempt posts straight into PostgreSQL under the event's own key.

So an attempt that was interrupted, or made twice, books nothing twice: it finds
"duplicate", which counts as booked. A dead letter and its booking are one transaction:
the second to come, a worker or a person, finds the dead letter settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from billing_tasks.errors import (
    BillingError,
    ChargeNotFound,
    IdempotencyConflict,
    InvalidRequest,
    RefundAboveCharge,
    TokenRefused,
    UserNotFound,
)
from billing_tasks.flows.account_cache import clock_of, push_accounts
from billing_tasks.flows.dead_letters.answers import ARCHIVED, FOR_EVER, WHY, WHY_ARCHIVED, Attempted, Sent
from billing_tasks.flows.dead_letters.record import event_of, keep, of_refusal, reason_of, slow_lane, wait_before
from billing_tasks.flows.dead_letters.select import count_left_out, excluded_reasons
from billing_tasks.flows.dead_letters.telling import details, what_to_type
from billing_tasks.flows.effects import InLedger
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.rows import OPEN, DeadLetter, DeadLetterFilter, DeadLetterState, HistoryKind, Mark
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import PostOutcome
from billing_tasks.settings import Settings

#: A dead letter that was sent and not marked (its task was lost with the broker, say) is due again after this.
CLAIM_SECONDS = 300
#: The actor of what beat repeats.
BY_ITSELF = "beat"

_ERRORS: dict[str, type[BillingError]] = {
    PostOutcome.CONFLICT: IdempotencyConflict,
    PostOutcome.UNKNOWN_USER: UserNotFound,
    PostOutcome.UNKNOWN_TOKEN: TokenRefused,
    PostOutcome.NO_CHARGE: ChargeNotFound,
    PostOutcome.ABOVE_CHARGE: RefundAboveCharge,
}
_HOLD_RELEASED = "its hold was released, and nothing was charged"
_SAYS = {
    PostOutcome.POSTED: "booked now",
    PostOutcome.DUPLICATE: "had been booked before, nothing charged again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """One attempt: its actor and comment, and which one it is."""

    actor: str
    comment: str
    count: int | None  # None: one more than the row says
    max_attempts: int

    def booked(self, dead_letter: DeadLetter, outcome: PostOutcome, *, comment: str = "") -> Mark:
        what = HistoryKind.POSTED if outcome is PostOutcome.POSTED else HistoryKind.DUPLICATE
        return Mark(
            state=DeadLetterState.RESOLVED,
            what=what,
            actor=self.actor,
            comment=self.comment or comment or _SAYS[outcome],
            attempts=self._count(dead_letter),
        )

    def refused(self, dead_letter: DeadLetter, *, reason: str, error: str) -> Mark:
        count = self._count(dead_letter)
        again = reason not in FOR_EVER and count < self.max_attempts
        return Mark(
            state=DeadLetterState.RETRYING if again else DeadLetterState.FAILED,
            what=HistoryKind.REFUSED,
            actor=self.actor,
            comment=self.comment,
            reason=reason,
            error=error,
            attempts=count,
            next_attempt_seconds=wait_before(count) if again else None,
        )

    def verdict(self, dead_letter: DeadLetter, outcome: PostOutcome) -> Mark:
        if outcome.booked:
            return self.booked(dead_letter, outcome)
        return self.refused(dead_letter, reason=str(outcome), error=WHY[outcome])

    def is_last(self, dead_letter: DeadLetter) -> bool:
        return self._count(dead_letter) >= self.max_attempts

    def _count(self, dead_letter: DeadLetter) -> int:
        return dead_letter.attempts + 1 if self.count is None else self.count


async def attempt(
    number: int, *, actor: str, commands: Commands, settings: Settings, count: int | None = None, comment: str = ""
) -> Attempted:
    """Try to book one dead letter. Raises the error that says why not; the row says it too.

    `actor` and `comment` are kept with the dead letter. `count`: the number of the attempt, if it was
    sent as a task.
    """
    dead_letter = await InLedger(Ledger.get_dead_letter, number)
    if dead_letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")
    if not dead_letter.open:
        return _settled_before(dead_letter)
    this = _Try(actor=actor, comment=comment, count=count, max_attempts=settings.max_attempts)
    if dead_letter.kind == Kind.CONFLICT:
        mark = this.verdict(dead_letter, PostOutcome.CONFLICT)
        await _mark(dead_letter, mark)
        raise _refusal(dead_letter, PostOutcome.CONFLICT, mark, "")
    try:
        event = event_of(dead_letter)
        if this.is_last(dead_letter) and (await _released_its_hold(event)):
            await _mark(dead_letter, this.booked(dead_letter, PostOutcome.DUPLICATE, comment=_HOLD_RELEASED))
            return Attempted(dead_letter.id, dead_letter.request_id, str(PostOutcome.DUPLICATE), _HOLD_RELEASED)
        await _check_month(event)
        return await _book(dead_letter, event, this, commands)
    except InvalidRequest as exc:
        await _mark(dead_letter, this.refused(dead_letter, reason=reason_of(exc), error=exc.message))
        raise


async def _check_month(event: Event) -> None:
    if await InLedger(Ledger.is_archived, event.request_id):
        raise LedgerRefusedData(WHY_ARCHIVED, reason=ARCHIVED, request_id=event.request_id)


async def _released_its_hold(event: Event) -> bool:
    """True for a request's default refund that found Redis away, whose hold ended unused since.

    Asked only before giving up: until then its usage may still be on its way, and the refund waits for it.
    """
    if event.kind is not Kind.REFUND or not event.whole or event.refund_id != f"refund:{event.request_id}":
        return False
    kinds = {entry.kind for entry in (await InLedger(Ledger.entries_of, event.request_id))}
    return Kind.RELEASE in kinds and Kind.CONSUME not in kinds


async def _book(dead_letter: DeadLetter, event: Event, this: _Try, commands: Commands) -> Attempted:
    shard = commands.keys.shard_of(event.user_id)
    clock = await clock_of(event.user_id, commands)
    found, batch = await InLedger(Ledger.book_dead_letter, dead_letter.id, shard, event, this.verdict)
    if found is None or batch is None:
        return _settled_before(found or dead_letter)
    await push_accounts(clock, users=batch.users, tokens=batch.tokens, commands=commands)
    outcome = batch.outcomes[0]
    if not outcome.booked:
        raise _refusal(dead_letter, outcome, this.verdict(found, outcome), await details(event))
    return Attempted(dead_letter.id, dead_letter.request_id, str(outcome), _SAYS[outcome])


def _settled_before(dead_letter: DeadLetter) -> Attempted:
    if dead_letter.state is DeadLetterState.RESOLVED:
        message = _SAYS[PostOutcome.DUPLICATE]
    else:
        message = f"discarded by {dead_letter.handled_by or 'an operator'}, nothing done; to book it, reopen it first"
    return Attempted(dead_letter.id, dead_letter.request_id, f"already {dead_letter.state}", message)


def _refusal(dead_letter: DeadLetter, outcome: PostOutcome, mark: Mark, about: str) -> BillingError:
    """The error that Flower shows: what it is about, what comes next, and what to type."""
    comes_next = f"it waits for a person: {what_to_type(dead_letter.id)}"
    if mark.next_attempt_seconds is not None:
        comes_next = f"attempt {mark.attempts} failed, the next in {mark.next_attempt_seconds:.0f} s"
    error = _ERRORS[outcome](
        f"{WHY[outcome]} {about and about + ' '}(dead letter {dead_letter.id}: {comes_next})",
        request_id=dead_letter.request_id,
    )
    error.again_in_seconds = mark.next_attempt_seconds
    return error


async def kept_refusal(event: Event, refusal: PostOutcome | LedgerRefusedData) -> BillingError:
    """Keep an event that the ledger did not book as a dead letter; the error that says so, what next, and what to
    type."""
    new = await of_refusal(event, refusal)
    (number,) = await keep([new])
    wait = wait_before(0) if new.transient else None
    next_step = (
        f"the next attempt in {wait} s" if wait is not None else f"it waits for a person: {what_to_type(number)}"
    )
    message = f"{new.error} {await details(event)} (dead letter {number}: {next_step})"
    kind: type[BillingError] = InvalidRequest
    if isinstance(refusal, PostOutcome):
        kind = _ERRORS[refusal]
    error = kind(message, request_id=event.request_id)
    error.again_in_seconds = wait
    return error


async def _mark(dead_letter: DeadLetter, mark: Mark) -> None:
    await InLedger(
        Ledger.mark_dead_letter,
        dead_letter.id,
        mark.state,
        what=mark.what,
        actor=mark.actor,
        comment=mark.comment,
        reason=mark.reason,
        error=mark.error,
        next_attempt_seconds=mark.next_attempt_seconds,
        attempts=mark.attempts,
        only_from=OPEN,
    )


async def broke(number: int, error: str, *, actor: str, settings: Settings, count: int | None = None) -> None:
    """Note that an attempt met a bug; after `max_attempts` of them the dead letter waits for a person."""
    dead_letter = await InLedger(Ledger.get_dead_letter, number)
    if dead_letter is not None:
        this = _Try(actor=actor, comment="", count=count, max_attempts=settings.max_attempts)
        await _mark(dead_letter, this.refused(dead_letter, reason="unexpected", error=error))


def _readable(dead_letter: DeadLetter) -> Event | None:
    try:
        return event_of(dead_letter)
    except InvalidRequest:
        return None


async def send_again(
    *,
    limit: int,
    due_only: bool,
    settings: Settings,
    actor: str = BY_ITSELF,
    comment: str = "",
    **wanted: Unpack[DeadLetterFilter],
) -> Sent:
    """Send dead letters to the workers, each as a task of its own.

    `due_only`: those whose own time has come; else also those that wait for a person, or for their time. What is
    refused for ever is left out unless it was asked for by number or reason.
    """
    leave_out = () if due_only else excluded_reasons(wanted)
    limit = max(limit, len(wanted.get("numbers", ())))
    if due_only:
        wanted["states"] = (DeadLetterState.RETRYING,)
        await InLedger(Ledger.give_up_lost_attempts, after_attempts=settings.max_attempts)
    else:
        wanted["states"] = wanted.get("states") or OPEN
    asked_for: list[int] = []
    if not due_only:  # a person is told what the claim passes by
        asked_for = await InLedger(Ledger.dead_letter_numbers, excluded_reasons=leave_out, **wanted)
    dead_letters = await InLedger(
        Ledger.claim_dead_letters,
        limit=limit,
        lease_seconds=CLAIM_SECONDS,
        due_only=due_only,
        excluded_reasons=leave_out,
        actor=actor,
        comment=comment,
        **wanted,
    )
    # In messages they have the names of release 0.1.0, whose workers may take them.
    asked = {} if due_only else {"who": actor, "why": comment}
    for dead_letter in dead_letters:
        await slow_lane(
            kind=dead_letter.kind,
            request_id=dead_letter.request_id,
            number=dead_letter.id,
            attempt=dead_letter.attempts,
            event=_readable(dead_letter),
            **asked,
        )
    left_out = await count_left_out(wanted, leave_out)
    sent = [dead_letter.id for dead_letter in dead_letters]
    not_sent = sorted({*asked_for, *wanted.get("numbers", ())}.difference(sent))
    return Sent(sent, [dead_letter.request_id for dead_letter in dead_letters], left_out, not_sent)
