"""How dead letters are told: what it is, where it stands, what happened, what can be done.

What came from outside is printed with control characters written out, so that no
payload can move the cursor or hide a line.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from billing_tasks.admin.types import (
    FOR_EVER,
    DeadLetter,
    DeadLetterState,
    HistoryEntry,
    HistoryKind,
    Preview,
)
from billing_tasks.cli.show import command, console, table
from billing_tasks.errors import InvalidRequest
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.ids import check_request_id
from billing_tasks.model.posting import PostOutcome

#: Of a payload; `--json` has all of it.
_SHOWN_OF_A_PAYLOAD = 1000
#: What the table of dead letters needs.
_WIDE = 125


def safe(text: str) -> str:
    """The text with everything written out that a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def say(text: str, *, style: str = "") -> None:
    """A line as it is: no markup, not folded, so that a command can be copied."""
    console.print(Text(safe(text), style=style), soft_wrap=True)


def moment(at: datetime) -> str:
    """A moment in UTC, to the second."""
    return f"{at.astimezone(UTC):%m-%d %H:%M:%S}"


def stands(dead_letter: DeadLetter, max_attempts: int) -> str:
    """Where it stands: who or what comes next."""
    by = f" by {dead_letter.handled_by}" if dead_letter.handled_by else ""
    match dead_letter.state:
        case DeadLetterState.RETRYING:
            tries = f"{dead_letter.attempts} of {max_attempts}"
            return f"next attempt {_until(dead_letter.next_attempt_at)}, {tries}"
        case DeadLetterState.FAILED:
            return "waits for a person"
        case DeadLetterState.RESOLVED:
            return f"booked{by}"
        case DeadLetterState.DISCARDED:
            return f"discarded{by}"


def sentence(dead_letter: DeadLetter, max_attempts: int) -> str:
    """Where it stands and why."""
    where = stands(dead_letter, max_attempts)
    if dead_letter.open:
        return f"{dead_letter.state.capitalize()}, {where}. {dead_letter.reason}: {dead_letter.error}"
    return f"{where.capitalize()}: {dead_letter.handled_comment}"


def _until(at: datetime | None) -> str:
    seconds = 0 if at is None else round((at - datetime.now(UTC)).total_seconds())
    if seconds <= 0:
        return "is due"
    return f"in {seconds} s" if seconds < 120 else f"in {seconds // 60} min"


def _event_of(dead_letter: DeadLetter) -> Event:
    from billing_tasks.admin.reading import event_of

    return event_of(dead_letter)


def headline(dead_letter: DeadLetter) -> str:
    """What it is, in one sentence."""
    user = "" if dead_letter.user_id is None else f" of user {dead_letter.user_id}"
    try:
        event = _event_of(dead_letter)
    except InvalidRequest:
        return f"{dead_letter.kind} for request {dead_letter.request_id}{user}"
    amount = "all that is left" if event.whole else f"{event.quota:,} quota"
    match event.kind:
        case Kind.REFUND:
            return f"a refund of {amount} for request {event.request_id}{user}, refund_id {event.refund_id}"
        case Kind.RELEASE:
            return f"the release of a hold of {amount}, request {event.request_id}{user}"
        case _:
            token = f", token {event.token_id}"
            return f"usage of {amount}, request {event.request_id}{user}{token}"


def print_dead_letters(dead_letters: Sequence[DeadLetter], max_attempts: int) -> None:
    """Many dead letters: a table, or two lines for each where a table would tear the ids apart."""
    if console.width < _WIDE:
        for dead_letter in dead_letters:
            user = "" if dead_letter.user_id is None else f"  user {dead_letter.user_id}"
            say(f"{dead_letter.id:>5}  {dead_letter.kind}  {dead_letter.request_id}{user}")
            say(f"{'':>5}  {dead_letter.reason}, {stands(dead_letter, max_attempts)}")
        return
    rows = []
    for dead_letter in dead_letters:
        # Ids as text: a thousands separator could not be typed again.
        user = "–" if dead_letter.user_id is None else str(dead_letter.user_id)
        cells = (dead_letter.kind, dead_letter.request_id, user, dead_letter.reason, stands(dead_letter, max_attempts))
        rows.append((str(dead_letter.id), moment(dead_letter.first_seen), *map(safe, cells)))
    columns = ("no", "kept (UTC)", "kind", "request", "user", "reason", "stands")
    console.print(table(*columns, rows=rows, right="no user"))


def history_table(events: Sequence[HistoryEntry]) -> Table:
    """What happened to one dead letter."""
    rows = [(moment(e.at), str(e.what), safe(e.actor) or "–", safe(_said(e))) for e in events]
    return table("UTC", "what", "actor", "comment", rows=rows)


def _said(event: HistoryEntry) -> str:
    parts = []
    if event.attempt is not None:
        parts.append(f"attempt {event.attempt}")
    if event.what is HistoryKind.ATTEMPTED:
        parts.append("sent to a worker")
    if event.reason:
        parts.append(event.reason)
    said = ": ".join(words for words in (", ".join(parts), event.error) if words)
    if not said:
        return event.comment
    return f"{said} (why: {event.comment})" if event.comment else said


def payload_words(dead_letter: DeadLetter) -> str:
    """The payload as text, cut to what a person reads."""
    text = safe(dead_letter.payload[:_SHOWN_OF_A_PAYLOAD].decode("utf-8", "backslashreplace"))
    left = len(dead_letter.payload) - _SHOWN_OF_A_PAYLOAD
    return text if left <= 0 else f"{text}… and {left:,} bytes more (--json has them)"


def next_commands(dead_letter: DeadLetter, would: Preview | None) -> list[tuple[str, str]]:
    """What can be done now: exact commands, and what each does."""
    own = f"{command()} dead-letters"
    number = dead_letter.id
    look = _look(dead_letter)
    if dead_letter.state is DeadLetterState.RESOLVED:
        return look
    if dead_letter.state is DeadLetterState.DISCARDED:
        return [(f"{own} reopen {number} --comment '…'", "take the decision back; then it can be retried")]
    retry = (f"{own} retry {number} --comment '…'", "try to book it now")
    discard = (f"{own} discard {number} --comment '…'", "decide that it stays unbooked")
    outcome = dead_letter.reason if would is None else would.would
    if would is not None and would.books:
        return [retry]
    create = _create(dead_letter, outcome)
    if create:
        return [*create, retry, discard]
    if outcome == PostOutcome.ABOVE_CHARGE and would is not None and would.left:
        return [*look, _refund_less(dead_letter, would.left), discard]
    if outcome in FOR_EVER:
        return [*look, discard]
    return [*look, retry, discard]


def _look(dead_letter: DeadLetter) -> list[tuple[str, str]]:
    """How to see what the ledger has of it: nothing, if it came under an id that no request of ours has."""
    try:
        check_request_id(dead_letter.request_id)
    except InvalidRequest:
        return []
    # Quoted: the program that wrote the id may have meant it for the shell that it is pasted into.
    return [(f"{command()} log --request {shlex.quote(dead_letter.request_id)}", "what is booked under this request")]


def _refund_less(dead_letter: DeadLetter, left: int) -> tuple[str, str]:
    """How to refund what is left of the charge instead."""
    event = _event_of(dead_letter)
    own_id = shlex.quote(f"{event.refund_id}-less")
    less = f"{command()} refund {event.user_id} {event.request_id} --id {own_id} --quota {left} --comment '…'"
    return less, f"if what is left, {left:,}, is to go back instead"


def _create(dead_letter: DeadLetter, outcome: str) -> list[tuple[str, str]]:
    """How to make the account that is missing."""
    try:
        event = _event_of(dead_letter)
    except InvalidRequest:
        return []
    if outcome == PostOutcome.UNKNOWN_USER:
        return [(f"{command()} users create --id {event.user_id}", "if the user should exist")]
    if outcome == PostOutcome.UNKNOWN_TOKEN:
        create = f"{command()} tokens create {event.user_id} --id {event.token_id}"
        return [(create, "if the token should exist and is no other user's")]
    return []
