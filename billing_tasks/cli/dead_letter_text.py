"""How dead letters are told: what it is, where it stands, what happened, what can be done.

What came from outside is printed with control characters written out, so that no
payload can move the cursor or hide a line.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from billing_tasks.cli.show import command, console, table
from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.dead_letters.preview import Rehearsed
from billing_tasks.flows.dead_letters.record import FOR_EVER, event_of
from billing_tasks.ledger.rows import DeadLetter, Happened, LetterEvent, LetterState
from billing_tasks.model.events import Kind
from billing_tasks.model.posting import Posted

#: Of a payload; `--json` has all of it.
_SHOWN_OF_A_PAYLOAD = 1000
#: What the table of letters needs.
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


def as_dict(letter: DeadLetter) -> dict[str, object]:
    """A letter for --json."""
    return {**asdict(letter), "payload": letter.payload.decode("utf-8", "backslashreplace")}


def event_as_dict(event: LetterEvent) -> dict[str, object]:
    """A line of history for --json."""
    return asdict(event)


def stands(letter: DeadLetter, max_attempts: int) -> str:
    """Where it stands: who or what comes next."""
    by = f" by {letter.handled_by}" if letter.handled_by else ""
    match letter.state:
        case LetterState.RETRYING:
            tries = f"{letter.attempts} of {max_attempts}"
            return f"next attempt {_until(letter.next_attempt_at)}, {tries}"
        case LetterState.FAILED:
            return "waits for a person"
        case LetterState.RESOLVED:
            return f"booked{by}"
        case LetterState.DISCARDED:
            return f"discarded{by}"


def sentence(letter: DeadLetter, max_attempts: int) -> str:
    """Where it stands and why."""
    where = stands(letter, max_attempts)
    if letter.open:
        return f"{letter.state.capitalize()}, {where}. {letter.reason}: {letter.error}"
    return f"{where.capitalize()}: {letter.handled_why}"


def _until(at: datetime | None) -> str:
    seconds = 0 if at is None else round((at - datetime.now(UTC)).total_seconds())
    if seconds <= 0:
        return "is due"
    return f"in {seconds} s" if seconds < 120 else f"in {seconds // 60} min"


def headline(letter: DeadLetter) -> str:
    """What it is, in one sentence."""
    user = "" if letter.user_id is None else f" of user {letter.user_id}"
    try:
        event = event_of(letter)
    except InvalidRequest:
        return f"{letter.kind} for request {letter.request_id}{user}"
    amount = "all that is left" if event.whole else f"{event.quota:,} quota"
    match event.kind:
        case Kind.REFUND:
            return f"a refund of {amount} for request {event.request_id}{user}, refund_id {event.refund_id}"
        case Kind.RELEASE:
            return f"the release of a hold of {amount}, request {event.request_id}{user}"
        case _:
            token = f", token {event.token_id}"
            return f"usage of {amount}, request {event.request_id}{user}{token}"


def print_letters(letters: Sequence[DeadLetter], max_attempts: int) -> None:
    """Many letters: a table, or two lines for each where a table would tear the ids apart."""
    if console.width < _WIDE:
        for letter in letters:
            user = "" if letter.user_id is None else f"  user {letter.user_id}"
            say(f"{letter.id:>5}  {letter.kind}  {letter.request_id}{user}")
            say(f"{'':>5}  {letter.reason}, {stands(letter, max_attempts)}")
        return
    rows = []
    for letter in letters:
        # Ids as text: nobody types a thousands separator.
        user = "–" if letter.user_id is None else str(letter.user_id)
        cells = (letter.kind, letter.request_id, user, letter.reason, stands(letter, max_attempts))
        rows.append((str(letter.id), moment(letter.first_seen), *map(safe, cells)))
    columns = ("no", "kept (UTC)", "kind", "request", "user", "reason", "stands")
    console.print(table(*columns, rows=rows, right="no user"))


def history_table(events: Sequence[LetterEvent]) -> Table:
    """What happened to one letter."""
    rows = [(moment(e.at), str(e.what), safe(e.who) or "–", safe(_said(e))) for e in events]
    return table("UTC", "what", "who", "why", rows=rows)


def _said(event: LetterEvent) -> str:
    parts = []
    if event.attempt is not None:
        parts.append(f"attempt {event.attempt}")
    if event.what is Happened.ATTEMPTED:
        parts.append("sent to a worker")
    if event.reason:
        parts.append(event.reason)
    said = ": ".join(words for words in (", ".join(parts), event.error) if words)
    if not said:
        return event.why
    return f"{said} (why: {event.why})" if event.why else said


def payload_words(letter: DeadLetter) -> str:
    """The payload as text, cut to what a person reads."""
    text = safe(letter.payload[:_SHOWN_OF_A_PAYLOAD].decode("utf-8", "backslashreplace"))
    left = len(letter.payload) - _SHOWN_OF_A_PAYLOAD
    return text if left <= 0 else f"{text}… and {left:,} bytes more (--json has them)"


def next_commands(letter: DeadLetter, would: Rehearsed | None) -> list[tuple[str, str]]:
    """What can be done now: exact commands, and what each does."""
    own = f"{command()} dead-letters"
    number = letter.id
    # Quoted: whoever wrote the id may have thought of the shell that it is pasted into.
    look = (f"{command()} log --request {shlex.quote(letter.request_id)}", "what is booked under this request")
    if letter.state is LetterState.RESOLVED:
        return [look]
    if letter.state is LetterState.DISCARDED:
        return [(f"{own} reopen {number} --why '…'", "take the decision back; then it can be retried")]
    retry = (f"{own} retry {number} --why '…'", "try to book it now")
    discard = (f"{own} discard {number} --why '…'", "decide that it stays unbooked")
    outcome = letter.reason if would is None else would.would
    if would is not None and would.books:
        return [retry]
    create = _create(letter, outcome)
    if create:
        return [*create, retry, discard]
    if outcome == Posted.ABOVE_CHARGE and would is not None and would.left:
        return [look, _refund_less(letter, would.left), discard]
    if outcome in FOR_EVER:
        return [look, discard]
    return [look, retry, discard]


def _refund_less(letter: DeadLetter, left: int) -> tuple[str, str]:
    """How to refund what is left of the charge instead."""
    event = event_of(letter)
    own_id = shlex.quote(f"{event.refund_id}-less")
    less = f"{command()} refund {event.user_id} {event.request_id} --id {own_id} --quota {left} --why '…'"
    return less, f"if what is left, {left:,}, is to go back instead"


def _create(letter: DeadLetter, outcome: str) -> list[tuple[str, str]]:
    """How to make the account that is missing."""
    try:
        event = event_of(letter)
    except InvalidRequest:
        return []
    if outcome == Posted.UNKNOWN_USER:
        return [(f"{command()} users create --id {event.user_id}", "if the user should exist")]
    if outcome == Posted.UNKNOWN_TOKEN:
        create = f"{command()} tokens create {event.user_id} --id {event.token_id}"
        return [(create, "if the token should exist and is nobody else's")]
    return []
