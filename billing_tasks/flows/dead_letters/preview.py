"""Preview: what a retry of a dead letter would do now, in words. Nothing is changed.

The ledger books the event in a transaction and rolls it back, so the answer is its own;
what it knows about the request makes the sentence.
"""

from __future__ import annotations

from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.dead_letters.answers import ARCHIVED, WHY, WHY_ARCHIVED, Preview, Previews
from billing_tasks.flows.dead_letters.record import event_of, reason_of
from billing_tasks.flows.dead_letters.select import excluded_reasons, select_dead_letters
from billing_tasks.flows.effects import InLedger
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.rows import DeadLetterFilter, DeadLetterState, RequestState
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import PostOutcome


async def preview_all(*, limit: int, commands: Commands, wanted: DeadLetterFilter) -> Previews:
    """What a retry of these dead letters would do now; it leaves out the same ones. Raises Unavailable."""
    selected = await select_dead_letters(wanted, limit=limit, leave_out=excluded_reasons(wanted))
    found = []
    for number in selected.numbers:
        one = await preview(number, commands=commands)
        found.append(one)
    return Previews(found, selected.more, selected.left_out)


async def preview(number: int, *, commands: Commands) -> Preview:
    """What a retry of this dead letter would do now. Raises InvalidRequest if there is none, Unavailable."""
    dead_letter = await InLedger(Ledger.get_dead_letter, number)
    if dead_letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")

    def found(would: str, message: str) -> Preview:
        return Preview(number, dead_letter.request_id, dead_letter.kind, would, message)

    if not dead_letter.open:
        by = f" by {dead_letter.handled_by}" if dead_letter.handled_by else ""
        if dead_letter.state is DeadLetterState.RESOLVED:
            return found(f"already {dead_letter.state}", "booked before: nothing would change")
        return found(f"already {dead_letter.state}", f"discarded{by}: nothing would change")
    if dead_letter.kind == Kind.CONFLICT:
        return found(str(PostOutcome.CONFLICT), f"{WHY[PostOutcome.CONFLICT]} Refused for ever.")
    try:
        event = event_of(dead_letter)
        if await InLedger(Ledger.is_archived, event.request_id):
            return found(ARCHIVED, f"refused: {WHY_ARCHIVED}")
        shard = commands.keys.shard_of(event.user_id)
        post_preview = await InLedger(Ledger.preview, shard, event)
    except InvalidRequest as exc:
        return found(reason_of(exc), f"refused: {exc.message}")
    state = post_preview.state
    words = _refund if event.kind is Kind.REFUND else _charge
    message = words(event, post_preview.outcome, state)
    left = None if state.charged is None else state.charged - state.refunded
    return Preview(number, dead_letter.request_id, dead_letter.kind, str(post_preview.outcome), message, left)


def _charge(event: Event, outcome: PostOutcome, state: RequestState) -> str:
    """About a consume or the release of a hold."""
    is_release = event.kind is Kind.RELEASE
    match outcome:
        case PostOutcome.POSTED if is_release:
            return f"would note that a hold of {event.quota:,} ended unused; no balance changes"
        case PostOutcome.POSTED:
            return f"would charge {event.quota:,} to user {event.user_id}"
        case PostOutcome.DUPLICATE:
            return "already booked: nothing would change"
        case PostOutcome.CONFLICT if is_release or state.charged is None:
            return "refused: booked before with another body; that one stands"
        case PostOutcome.CONFLICT:
            return (
                f"refused: booked before with another body, {state.charged:,} quota of user"
                f" {state.charged_user}; that one stands"
            )
        case _:
            return _unknown(event, outcome, state)


def _refund(event: Event, outcome: PostOutcome, state: RequestState) -> str:
    left = (state.charged or 0) - state.refunded
    charge = f"charge found, {left:,} of {state.charged or 0:,} left"
    match outcome:
        case PostOutcome.POSTED:
            return f"{charge}: would give back {left if event.whole else event.quota:,} to user {event.user_id}"
        case PostOutcome.DUPLICATE if state.refund_quota is None:
            return "already done: its hold was released before the charge came late; nothing would change"
        case PostOutcome.DUPLICATE:
            return f"already booked, {state.refund_quota:,} refunded: nothing would change"
        case PostOutcome.NO_CHARGE if state.released:
            ended = "expired" if state.expired else "was released"
            return f"no charge yet; its hold {ended}, so there is nothing to refund unless usage comes late"
        case PostOutcome.NO_CHARGE:
            return "no charge yet"
        case PostOutcome.ABOVE_CHARGE if left == 0:
            return f"refused: {charge}, everything was refunded before"
        case PostOutcome.ABOVE_CHARGE:
            return f"refused: {charge}, {event.quota:,} wanted"
        case PostOutcome.CONFLICT if state.charged_user != event.user_id:
            return f"refused: the charge is user {state.charged_user}'s, not user {event.user_id}'s"
        case PostOutcome.CONFLICT:
            return f"refused: refund_id {event.refund_id} was booked before with another body; that one stands"
        case _:
            return _unknown(event, outcome, state)


def _unknown(event: Event, outcome: PostOutcome, state: RequestState) -> str:
    if outcome is PostOutcome.UNKNOWN_USER:
        return f"refused: user {event.user_id} does not exist"
    if state.token_user is None:
        return f"refused: token {event.token_id} does not exist"
    return f"refused: token {event.token_id} is user {state.token_user}'s, not user {event.user_id}'s"
