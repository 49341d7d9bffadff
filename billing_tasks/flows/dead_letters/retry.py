"""Retry: dead letters, once more. Each attempt posts straight into PostgreSQL under the event's own key.

So an attempt that was interrupted, or made twice, books nothing twice: it finds
"duplicate", which counts as booked. A letter and its booking are one transaction:
whoever comes second, a worker or a person, finds the letter settled.
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
from billing_tasks.flows.account_cache import clock_of, push_copies
from billing_tasks.flows.dead_letters.record import FOR_EVER, WHY, event_of, reason_of, slow_lane, wait_before
from billing_tasks.flows.dead_letters.select import but_not, count_left_out
from billing_tasks.flows.effects import Flow, InLedger, ask
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.rows import OPEN, DeadLetter, Happened, LetterFilter, LetterState, Mark
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import Posted
from billing_tasks.settings import Settings

#: A letter that was sent and not marked (its task was lost with the broker, say) is due again after this.
CLAIM_SECONDS = 300
#: Who asks for what beat repeats.
BY_ITSELF = "beat"

_ERRORS: dict[str, type[BillingError]] = {
    Posted.CONFLICT: IdempotencyConflict,
    Posted.UNKNOWN_USER: UserNotFound,
    Posted.UNKNOWN_TOKEN: TokenRefused,
    Posted.NO_CHARGE: ChargeNotFound,
    Posted.ABOVE_CHARGE: RefundAboveCharge,
}
_HOLD_GIVEN_BACK = "its hold was given back, and nothing was charged"
_SAYS = {
    Posted.POSTED: "booked now",
    Posted.DUPLICATE: "had been booked before, nothing charged again",
}


@dataclass(frozen=True, slots=True)
class Attempted:
    """What an attempt found: `posted`, `duplicate`, `already resolved` or `already discarded`."""

    dead_letter: int
    request_id: str
    outcome: str
    says: str

    def as_dict(self) -> dict[str, object]:
        """What Flower and --json show."""
        return {
            "dead_letter": self.dead_letter,
            "request_id": self.request_id,
            "outcome": self.outcome,
            "says": self.says,
        }


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent to the workers, and what was not and why."""

    numbers: list[int]
    request_ids: list[str]
    left_out: dict[str, int]  # refused for ever: how many, by reason
    not_sent: list[int]  # asked for, but: attempted by somebody at this moment, above the limit, or not open

    def as_dict(self) -> dict[str, object]:
        """What Flower shows."""
        return {
            "sent": len(self.numbers),
            "numbers": self.numbers[:20],
            "request_ids": self.request_ids[:20],
            "left_out": self.left_out,
            "not_sent": self.not_sent[:20],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """One attempt: who makes it and why, and which one it is."""

    who: str
    why: str
    count: int | None  # None: one more than the row says
    max_attempts: int

    def booked(self, letter: DeadLetter, outcome: Posted, *, why: str = "") -> Mark:
        what = Happened.POSTED if outcome is Posted.POSTED else Happened.DUPLICATE
        return Mark(
            state=LetterState.RESOLVED,
            what=what,
            who=self.who,
            why=self.why or why or _SAYS[outcome],
            attempts=self._count(letter),
        )

    def refused(self, letter: DeadLetter, *, reason: str, error: str) -> Mark:
        count = self._count(letter)
        again = reason not in FOR_EVER and count < self.max_attempts
        return Mark(
            state=LetterState.RETRYING if again else LetterState.FAILED,
            what=Happened.REFUSED,
            who=self.who,
            why=self.why,
            reason=reason,
            error=error,
            attempts=count,
            next_attempt_seconds=wait_before(count) if again else None,
        )

    def verdict(self, letter: DeadLetter, outcome: Posted) -> Mark:
        if outcome.booked:
            return self.booked(letter, outcome)
        return self.refused(letter, reason=str(outcome), error=WHY[outcome])

    def is_last(self, letter: DeadLetter) -> bool:
        return self._count(letter) >= self.max_attempts

    def _count(self, letter: DeadLetter) -> int:
        return letter.attempts + 1 if self.count is None else self.count


def attempt(
    number: int, *, who: str, commands: Commands, settings: Settings, count: int | None = None, why: str = ""
) -> Flow[Attempted]:
    """Try to book one dead letter. Raises the error that says why not; the row says it too.

    `who` and `why` are kept with the letter. `count`: the how-manieth attempt this is, if it was sent as a task.
    """
    letter = yield from ask(InLedger(lambda ledger: ledger.get_dead_letter(number)))
    if letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")
    if not letter.open:
        return _settled_before(letter)
    this = _Try(who=who, why=why, count=count, max_attempts=settings.max_attempts)
    if letter.kind == Kind.CONFLICT:
        mark = this.verdict(letter, Posted.CONFLICT)
        yield from _mark(letter, mark)
        raise _refusal(letter, Posted.CONFLICT, mark)
    try:
        event = event_of(letter)
        if this.is_last(letter) and (yield from _gave_its_hold_back(event)):
            yield from _mark(letter, this.booked(letter, Posted.DUPLICATE, why=_HOLD_GIVEN_BACK))
            return Attempted(letter.id, letter.request_id, str(Posted.DUPLICATE), _HOLD_GIVEN_BACK)
        return (yield from _book(letter, event, this, commands))
    except InvalidRequest as exc:
        yield from _mark(letter, this.refused(letter, reason=reason_of(exc), error=exc.message))
        raise


def _gave_its_hold_back(event: Event) -> Flow[bool]:
    """True for a request's default refund that found Redis away, whose hold ended unused since.

    Asked only before giving up: until then its usage may still be on its way, and the refund waits for it.
    """
    if event.kind is not Kind.REFUND or not event.whole or event.refund_id != f"refund:{event.request_id}":
        return False
    kinds = {entry.kind for entry in (yield from ask(InLedger(lambda ledger: ledger.entries_of(event.request_id))))}
    return Kind.RELEASE in kinds and Kind.CONSUME not in kinds


def _book(letter: DeadLetter, event: Event, this: _Try, commands: Commands) -> Flow[Attempted]:
    shard = commands.keys.shard_of(event.user_id)
    clock = yield from clock_of(event.user_id, commands)
    found, batch = yield from ask(
        InLedger(lambda ledger: ledger.book_dead_letter(letter.id, shard, event, this.verdict))
    )
    if found is None or batch is None:
        return _settled_before(found or letter)
    yield from push_copies(clock, users=batch.users, tokens=batch.tokens, commands=commands)
    outcome = batch.outcomes[0]
    if not outcome.booked:
        raise _refusal(letter, outcome, this.verdict(found, outcome))
    return Attempted(letter.id, letter.request_id, str(outcome), _SAYS[outcome])


def _settled_before(letter: DeadLetter) -> Attempted:
    if letter.state is LetterState.RESOLVED:
        says = _SAYS[Posted.DUPLICATE]
    else:
        says = f"discarded by {letter.handled_by or 'somebody'}, nothing done; to book it, reopen it first"
    return Attempted(letter.id, letter.request_id, f"already {letter.state}", says)


def _refusal(letter: DeadLetter, outcome: Posted, mark: Mark) -> BillingError:
    """The error that Flower shows, with what comes next."""
    comes_next = "it waits for a person"
    if mark.next_attempt_seconds is not None:
        comes_next = f"attempt {mark.attempts} failed, the next in {mark.next_attempt_seconds:.0f} s"
    return _ERRORS[outcome](f"{WHY[outcome]} (dead letter {letter.id}: {comes_next})", request_id=letter.request_id)


def _mark(letter: DeadLetter, mark: Mark) -> Flow[None]:
    yield from ask(
        InLedger(
            lambda ledger: ledger.mark_dead_letter(
                letter.id,
                mark.state,
                what=mark.what,
                who=mark.who,
                why=mark.why,
                reason=mark.reason,
                error=mark.error,
                next_attempt_seconds=mark.next_attempt_seconds,
                attempts=mark.attempts,
                only_from=OPEN,
            )
        )
    )


def broke(number: int, error: str, *, who: str, settings: Settings, count: int | None = None) -> Flow[None]:
    """Note that an attempt met a bug; after `max_attempts` of them the letter waits for a person."""
    letter = yield from ask(InLedger(lambda ledger: ledger.get_dead_letter(number)))
    if letter is not None:
        this = _Try(who=who, why="", count=count, max_attempts=settings.max_attempts)
        yield from _mark(letter, this.refused(letter, reason="unexpected", error=error))


def send_again(
    *,
    limit: int,
    due_only: bool,
    settings: Settings,
    who: str = BY_ITSELF,
    why: str = "",
    **wanted: Unpack[LetterFilter],
) -> Flow[Sent]:
    """Send dead letters to the workers, each as a task of its own.

    `due_only`: those whose own time has come; else also those that wait for a person, or for their time. What is
    refused for ever is left out unless it was asked for by number or reason.
    """
    leave_out = () if due_only else but_not(wanted)
    limit = max(limit, len(wanted.get("numbers", ())))
    if due_only:
        wanted["states"] = (LetterState.RETRYING,)
        yield from ask(InLedger(lambda ledger: ledger.give_up_lost_attempts(after_attempts=settings.max_attempts)))
    else:
        wanted["states"] = wanted.get("states") or OPEN
    asked_for: list[int] = []
    if not due_only:  # a person is told what the claim passes by
        asked_for = yield from ask(InLedger(lambda ledger: ledger.dead_letter_numbers(but_not=leave_out, **wanted)))
    letters = yield from ask(
        InLedger(
            lambda ledger: ledger.claim_dead_letters(
                limit=limit,
                lease_seconds=CLAIM_SECONDS,
                due_only=due_only,
                but_not=leave_out,
                who=who,
                why=why,
                **wanted,
            )
        )
    )
    asked = {} if due_only else {"who": who, "why": why}
    for letter in letters:
        yield slow_lane(
            kind=letter.kind, request_id=letter.request_id, number=letter.id, attempt=letter.attempts, **asked
        )
    left_out = yield from count_left_out(wanted, leave_out)
    sent = [letter.id for letter in letters]
    not_sent = sorted({*asked_for, *wanted.get("numbers", ())}.difference(sent))
    return Sent(sent, [letter.request_id for letter in letters], left_out, not_sent)
