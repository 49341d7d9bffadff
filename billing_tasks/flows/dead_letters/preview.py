"""Rehearse: what a retry of a dead letter would do now, in words. Nothing is changed.

The ledger books the event in a transaction and rolls it back, so the answer is its own;
what it knows about the request makes the sentence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.dead_letters.record import FOR_EVER, WHY, event_of, reason_of
from billing_tasks.flows.dead_letters.select import but_not, choose
from billing_tasks.flows.effects import Flow, InLedger, ask
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.rows import LetterFilter, LetterState, Standing
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import Posted


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a retry would find."""

    dead_letter: int
    request_id: str
    kind: str
    would: str  # posted, duplicate, the code of a refusal, or `already resolved`, `already discarded`
    says: str  # the same as a sentence
    left: int | None = None  # of the charge, what refunds have not given back; None: there is no charge

    @property
    def books(self) -> bool:
        """True if the letter would be settled by a retry now."""
        return self.would in (Posted.POSTED, Posted.DUPLICATE)

    @property
    def for_ever(self) -> bool:
        """True if it would be refused, and again the next time."""
        return self.would in FOR_EVER

    def as_dict(self) -> dict[str, object]:
        """What Flower and --json show."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rehearsals:
    """What a retry of many letters would find."""

    letters: list[Rehearsed]
    more: bool  # others match, too
    left_out: dict[str, int]  # refused for ever: how many, by reason

    def as_dict(self) -> dict[str, object]:
        """What Flower shows: how many of each outcome, and the first 20 letters."""
        return {
            "dry_run": True,
            "would": dict(Counter(letter.would for letter in self.letters)),
            "letters": [letter.as_dict() for letter in self.letters[:20]],
            "more": self.more,
            "left_out": self.left_out,
        }


def rehearse_all(*, limit: int, commands: Commands, wanted: LetterFilter) -> Flow[Rehearsals]:
    """What a retry of these letters would do now; the same letters are left out. Raises Unavailable."""
    chosen = yield from choose(wanted, limit=limit, leave_out=but_not(wanted))
    found = []
    for number in chosen.numbers:
        one = yield from rehearse(number, commands=commands)
        found.append(one)
    return Rehearsals(found, chosen.more, chosen.left_out)


def rehearse(number: int, *, commands: Commands) -> Flow[Rehearsed]:
    """What a retry of this letter would do now. Raises InvalidRequest if there is no such letter, Unavailable."""
    letter = yield from ask(InLedger(lambda ledger: ledger.get_dead_letter(number)))
    if letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")

    def found(would: str, says: str) -> Rehearsed:
        return Rehearsed(number, letter.request_id, letter.kind, would, says)

    if not letter.open:
        by = f" by {letter.handled_by}" if letter.handled_by else ""
        if letter.state is LetterState.RESOLVED:
            return found(f"already {letter.state}", "booked before: nothing would change")
        return found(f"already {letter.state}", f"discarded{by}: nothing would change")
    if letter.kind == Kind.CONFLICT:
        return found(str(Posted.CONFLICT), f"{WHY[Posted.CONFLICT]} Refused for ever.")
    try:
        event = event_of(letter)
        shard = commands.keys.shard_of(event.user_id)
        rehearsal = yield from ask(InLedger(lambda ledger: ledger.rehearse(shard, event)))
    except InvalidRequest as exc:
        return found(reason_of(exc), f"refused: {exc.message}")
    standing = rehearsal.standing
    words = _refund if event.kind is Kind.REFUND else _charge
    says = words(event, rehearsal.outcome, standing)
    left = None if standing.charged is None else standing.charged - standing.given_back
    return Rehearsed(number, letter.request_id, letter.kind, str(rehearsal.outcome), says, left)


def _charge(event: Event, outcome: Posted, standing: Standing) -> str:
    """About a consume or the release of a hold."""
    is_release = event.kind is Kind.RELEASE
    match outcome:
        case Posted.POSTED if is_release:
            return f"would note that a hold of {event.quota:,} ended unused; no balance changes"
        case Posted.POSTED:
            return f"would charge {event.quota:,} to user {event.user_id}"
        case Posted.DUPLICATE:
            return "already booked: nothing would change"
        case Posted.CONFLICT if is_release or standing.charged is None:
            return "refused: booked before with another body; that one stands"
        case Posted.CONFLICT:
            return (
                f"refused: booked before with another body, {standing.charged:,} quota of user"
                f" {standing.charged_user}; that one stands"
            )
        case _:
            return _unknown(event, outcome, standing)


def _refund(event: Event, outcome: Posted, standing: Standing) -> str:
    left = (standing.charged or 0) - standing.given_back
    charge = f"charge found, {left:,} of {standing.charged or 0:,} left"
    match outcome:
        case Posted.POSTED:
            return f"{charge}: would give back {left if event.whole else event.quota:,} to user {event.user_id}"
        case Posted.DUPLICATE if standing.refund_quota is None:
            return "already done: its hold was given back before the charge came late; nothing would change"
        case Posted.DUPLICATE:
            return f"already booked, {standing.refund_quota:,} given back: nothing would change"
        case Posted.NO_CHARGE if standing.released:
            ended = "expired" if standing.expired else "was given back"
            return f"no charge yet; its hold {ended}, so there is nothing to refund unless usage comes late"
        case Posted.NO_CHARGE:
            return "no charge yet"
        case Posted.ABOVE_CHARGE if left == 0:
            return f"refused: {charge}, everything was given back before"
        case Posted.ABOVE_CHARGE:
            return f"refused: {charge}, {event.quota:,} wanted"
        case Posted.CONFLICT if standing.charged_user != event.user_id:
            return f"refused: the charge is user {standing.charged_user}'s, not user {event.user_id}'s"
        case Posted.CONFLICT:
            return f"refused: refund_id {event.refund_id} was booked before with another body; that one stands"
        case _:
            return _unknown(event, outcome, standing)


def _unknown(event: Event, outcome: Posted, standing: Standing) -> str:
    if outcome is Posted.UNKNOWN_USER:
        return f"refused: user {event.user_id} does not exist"
    if standing.token_user is None:
        return f"refused: token {event.token_id} does not exist"
    return f"refused: token {event.token_id} is user {standing.token_user}'s, not user {event.user_id}'s"
