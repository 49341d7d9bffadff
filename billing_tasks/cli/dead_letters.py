"""dead-letters: what could not be booked. Find it, understand it, retry it or decide that it stays unbooked."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from billing_tasks.admin.types import OPEN, DeadLetterFilter, DeadLetterState, Selected
from billing_tasks.cli import dead_letter_text as words
from billing_tasks.cli.bulk import DISCARD, PREVIEW, REOPEN, RETRY, done, summary
from billing_tasks.cli.dead_letter_text import say
from billing_tasks.cli.options import AsJson, Cursor, Limit, Who, me
from billing_tasks.cli.process import admin, runtime
from billing_tasks.cli.show import console, print_json, tell_of_next
from billing_tasks.errors import InvalidRequest
from billing_tasks.model.validation import check_moment

app = typer.Typer(help="What could not be booked: list, show, retry, discard, reopen.", no_args_is_help=True)

Numbers = Annotated[list[int] | None, typer.Argument(help="Numbers of dead letters.", show_default=False)]
State = Annotated[list[DeadLetterState] | None, typer.Option(help="May be given several times.", show_default=False)]
Kind = Annotated[str | None, typer.Option(help="consume, refund, release or conflict.")]
User = Annotated[int | None, typer.Option("--user", help="Only this user's.")]
Requests = Annotated[list[str] | None, typer.Option("--request", help="Only this request's; may be repeated.")]
Refunds = Annotated[list[str] | None, typer.Option("--refund-id", help="Only the refund with this id; repeatable.")]
Keys = Annotated[list[str] | None, typer.Option("--client-key", help="Only with this key of the app; repeatable.")]
Reason = Annotated[str | None, typer.Option(help="Only with this reason, no_charge say.")]
Since = Annotated[str | None, typer.Option(help="Kept since then: 2h ago (s, m, h, d), or 2026-11-23T10:00 (UTC).")]
Before = Annotated[str | None, typer.Option(help="Kept before then; as --since.")]
Everything = Annotated[bool, typer.Option("--all", help="All open ones.")]
AtMost = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many, oldest first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


def _wanted(
    state: list[DeadLetterState] | None,
    kind: str | None,
    user_id: int | None,
    request_ids: list[str] | None,
    refund_ids: list[str] | None,
    client_keys: list[str] | None,
    reason: str | None,
    since: str | None,
    before: str | None,
) -> DeadLetterFilter:
    """The filter that the options are; empty if none was given."""
    now = datetime.now(UTC)
    wanted = DeadLetterFilter()
    if state:
        wanted["states"] = state
    if kind is not None:
        wanted["kind"] = kind
    if user_id is not None:
        wanted["user_id"] = user_id
    if request_ids:
        wanted["request_ids"] = request_ids
    if refund_ids:
        wanted["refund_ids"] = refund_ids
    if client_keys:
        wanted["client_keys"] = client_keys
    if reason is not None:
        wanted["reason"] = reason
    if since is not None:
        wanted["since"] = check_moment("--since", since, now=now)
    if before is not None:
        wanted["before"] = check_moment("--before", before, now=now)
    return wanted


@app.command("list")
def list_dead_letters(
    state: State = None,
    kind: Kind = None,
    user_id: User = None,
    request_ids: Requests = None,
    refund_ids: Refunds = None,
    client_keys: Keys = None,
    reason: Reason = None,
    since: Since = None,
    before: Before = None,
    everything: Annotated[bool, typer.Option("--all", help="Booked and discarded ones, too.")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first; without --state or --all those that are open (retrying, failed)."""
    wanted = _wanted(state, kind, user_id, request_ids, refund_ids, client_keys, reason, since, before)
    if not everything:
        wanted["states"] = wanted.get("states") or OPEN
    page = admin().dead_letters.find(cursor=cursor, limit=limit, **wanted)
    if as_json:
        print_json([row.as_dict() for row in page.rows])
    elif page.rows:
        words.print_dead_letters(page.rows, runtime().settings.max_attempts)
    else:
        console.print("No dead letters.")
    if page.next and not as_json:
        console.print(f"Only {'the newest ' if cursor is None else ''}{limit} are shown; --limit shows more.")
    tell_of_next(page)


@app.command()
def show(number: Annotated[int, typer.Argument(show_default=False)], as_json: AsJson = False) -> None:
    """Everything about one: what it is, what happened, what a retry would do now, and what you can do."""
    shown = admin().dead_letters.show(number)
    if as_json:
        print_json(shown.as_dict())
        return
    dead_letter, would = shown.dead_letter, shown.retry_now
    say(f"Dead letter {number}: {words.headline(dead_letter)}")
    say(words.sentence(dead_letter, runtime().settings.max_attempts))
    say("\nWhat happened", style="bold")
    console.print(words.history_table(shown.history))
    if dead_letter.open:
        say("\nA retry now", style="bold")
        say(would.message if would else f"could not be told: {shown.unknown}")
    say("\nWhat you can do", style="bold")
    lines = words.next_commands(dead_letter, would)
    wide = max(len(line) for line, _ in lines)
    for line, meaning in lines:
        say(f"  {line:{wide}}  # {meaning}")
    say(f"\nPayload ({len(dead_letter.payload):,} bytes)", style="bold")
    say(words.payload_words(dead_letter))


@app.command()
def retry(
    numbers: Numbers = None,
    state: State = None,
    kind: Kind = None,
    user_id: User = None,
    request_ids: Requests = None,
    refund_ids: Refunds = None,
    client_keys: Keys = None,
    reason: Reason = None,
    since: Since = None,
    before: Before = None,
    everything: Everything = False,
    limit: AtMost = None,
    dry_run: DryRun = False,
    actor: Who = None,
    comment: Annotated[str, typer.Option(help="Kept with it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Try to book dead letters now, in this process. Booking twice is impossible: the ledger's keys see to that.

    What is refused for ever (a conflict, an unknown user ...) is left out, unless you ask by number or --reason.
    Exit 1 if something is still open.
    """
    wanted = _wanted(state, kind, user_id, request_ids, refund_ids, client_keys, reason, since, before)
    selected = _select(numbers, wanted, everything, limit, for_retry=True)
    if dry_run:
        _preview(selected, as_json)
        return
    results = admin().dead_letters.retry_many(selected.numbers, actor=me(actor), comment=comment)
    summary(done(results, selected, RETRY), selected, RETRY, as_json=as_json)


@app.command()
def discard(
    comment: Annotated[str, typer.Option(help="Kept with it.", show_default=False)],
    numbers: Numbers = None,
    state: State = None,
    kind: Kind = None,
    user_id: User = None,
    request_ids: Requests = None,
    refund_ids: Refunds = None,
    client_keys: Keys = None,
    reason: Reason = None,
    since: Since = None,
    before: Before = None,
    everything: Everything = False,
    limit: AtMost = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    actor: Who = None,
    as_json: AsJson = False,
) -> None:
    """Decide that dead letters stay unbooked. They are kept, and can be reopened. Exit 1 if one was not discarded.

    By filter or --all it asks first. --dry-run says which, and what a retry would do with them instead.
    """
    wanted = _wanted(state, kind, user_id, request_ids, refund_ids, client_keys, reason, since, before)
    selected = _select(numbers, wanted, everything, limit, for_retry=False)
    if not comment.strip():
        raise typer.BadParameter("--comment is empty. It is kept with the dead letter and tells the next operator why.")
    if dry_run:
        _preview(selected, as_json)
        return
    if not numbers and selected.numbers and not yes:
        _confirm(selected)
    results = admin().dead_letters.discard_many(selected.numbers, actor=me(actor), comment=comment)
    summary(done(results, selected, DISCARD), selected, DISCARD, as_json=as_json)


@app.command()
def reopen(
    numbers: Annotated[list[int], typer.Argument(help="Numbers of dead letters.", show_default=False)],
    comment: Annotated[str, typer.Option(help="Kept with it.", show_default=False)],
    actor: Who = None,
    as_json: AsJson = False,
) -> None:
    """Take the decision to discard back: the dead letter waits for a person again, and can be retried."""
    selected = Selected(numbers, more=False, left_out={})
    results = admin().dead_letters.reopen_many(numbers, actor=me(actor), comment=comment)
    summary(done(results, selected, REOPEN), selected, REOPEN, as_json=as_json)


def _select(
    numbers: list[int] | None, wanted: DeadLetterFilter, everything: bool, limit: int | None, *, for_retry: bool
) -> Selected:
    """What the arguments name: numbers as they are, else the open dead letters that match."""
    if numbers and (wanted or everything):
        raise typer.BadParameter("Give numbers, or filters, not both.")
    if numbers:
        return Selected(list(dict.fromkeys(numbers)), more=False, left_out={})
    if everything:
        wanted["states"] = wanted.get("states") or OPEN
    if not wanted:
        raise typer.BadParameter("Say which: numbers, filters like --kind or --reason, or --all.")
    try:
        return admin().dead_letters.choose(limit=limit, for_retry=for_retry, **wanted)
    except InvalidRequest as exc:
        raise typer.BadParameter(exc.message) from None


def _preview(selected: Selected, as_json: bool) -> None:
    results = admin().dead_letters.preview_many(selected.numbers)
    summary(done(results, selected, PREVIEW), selected, PREVIEW, as_json=as_json)


def _confirm(selected: Selected) -> None:
    """Ask on a terminal; anywhere else --yes is the answer."""
    numbers = selected.numbers
    reasons = admin().dead_letters.count_reasons(numbers[:10_000])
    named = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"This discards {len(numbers):,} dead letters ({named}); say --yes.")
    typer.confirm(f"Discard {len(numbers):,} dead letters ({named})?", abort=True, err=True)
