"""dead-letters: what could not be booked. Find it, understand it, retry it or decide that it stays unbooked."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from billing_tasks.cli import dead_letter_text as words
from billing_tasks.cli.bulk import DISCARD, PREVIEW, REOPEN, RETRY, Bulk, Result, summary
from billing_tasks.cli.dead_letter_text import say
from billing_tasks.cli.options import AsJson, Limit, Who, me
from billing_tasks.cli.process import runtime
from billing_tasks.cli.show import command, console, print_json
from billing_tasks.errors import InvalidRequest, Unavailable
from billing_tasks.ledger.rows import OPEN, DeadLetter, DeadLetterFilter, DeadLetterState

if TYPE_CHECKING:
    from billing_tasks.flows.dead_letters import select

app = typer.Typer(help="What could not be booked: list, show, retry, discard, reopen.", no_args_is_help=True)

Numbers = Annotated[list[int] | None, typer.Argument(help="Numbers of dead letters.", show_default=False)]
State = Annotated[list[DeadLetterState] | None, typer.Option(help="May be given several times.", show_default=False)]
Kind = Annotated[str | None, typer.Option(help="consume, refund, release or conflict.")]
User = Annotated[int | None, typer.Option("--user", help="Only this user's.")]
Requests = Annotated[list[str] | None, typer.Option("--request", help="Only this request's; may be repeated.")]
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
    reason: str | None,
    since: str | None,
    before: str | None,
) -> DeadLetterFilter:
    """The filter that the options are; empty if none was given."""
    from billing_tasks.model.validation import check_moment

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
    reason: Reason = None,
    since: Since = None,
    before: Before = None,
    everything: Annotated[bool, typer.Option("--all", help="Booked and discarded ones, too.")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first; without --state or --all those that are open (retrying, failed)."""
    wanted = _wanted(state, kind, user_id, request_ids, reason, since, before)
    if not everything:
        wanted["states"] = wanted.get("states") or OPEN
    rows = runtime().ledger.dead_letters(limit=limit + 1, **wanted)
    more, rows = len(rows) > limit, rows[:limit]
    if as_json:
        print_json([words.as_dict(row) for row in rows])
        return
    if not rows:
        console.print("No dead letters.")
        return
    words.print_dead_letters(rows, runtime().settings.max_attempts)
    if more:
        console.print(f"Only the newest {limit} are shown; --limit shows more.")


@app.command()
def show(number: Annotated[int, typer.Argument(show_default=False)], as_json: AsJson = False) -> None:
    """Everything about one: what it is, what happened, what a retry would do now, and what you can do."""
    from billing_tasks.flows.dead_letters import preview

    r = runtime()
    dead_letter = _get(number)
    history = r.ledger.dead_letter_history(number)
    would, unknown = None, ""
    try:
        would = r.run(preview.preview(number, commands=r.commands))
    except Unavailable as exc:
        unknown = exc.message
    if as_json:
        retry_now = {"would": "unknown", "message": unknown} if would is None else would.as_dict()
        print_json(
            {**words.as_dict(dead_letter), "history": [words.event_as_dict(e) for e in history], "retry_now": retry_now}
        )
        return
    say(f"Dead letter {number}: {words.headline(dead_letter)}")
    say(words.sentence(dead_letter, r.settings.max_attempts))
    say("\nWhat happened", style="bold")
    console.print(words.history_table(history))
    if dead_letter.open:
        say("\nA retry now", style="bold")
        say(would.message if would else f"could not be told: {unknown}")
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
    from billing_tasks.flows.dead_letters import retry as retrying

    r, actor = runtime(), me(actor)
    wanted = _wanted(state, kind, user_id, request_ids, reason, since, before)
    selected = _select(numbers, wanted, everything, limit, for_retry=True)

    def one(number: int) -> Result:
        flow = retrying.attempt(number, actor=actor, comment=comment, commands=r.commands, settings=r.settings)
        return Result.attempted(r.run(flow))

    def broke(number: int, error: str) -> None:
        r.run(retrying.broke(number, error, actor=actor, settings=r.settings))

    if dry_run:
        _preview(selected, as_json)
    else:
        summary(Bulk(selected, wording=RETRY, get=_get, broke=broke).run(one), selected, RETRY, as_json=as_json)


@app.command()
def discard(
    comment: Annotated[str, typer.Option(help="Kept with it; somebody will ask.", show_default=False)],
    numbers: Numbers = None,
    state: State = None,
    kind: Kind = None,
    user_id: User = None,
    request_ids: Requests = None,
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
    from billing_tasks.flows.dead_letters import resolve

    r, actor = runtime(), me(actor)
    wanted = _wanted(state, kind, user_id, request_ids, reason, since, before)
    selected = _select(numbers, wanted, everything, limit, for_retry=False)
    if not comment.strip():
        raise typer.BadParameter("Say --comment: somebody will ask.")
    if dry_run:
        _preview(selected, as_json)
        return
    if not numbers and selected.numbers and not yes:
        _confirm(selected)

    def one(number: int) -> Result:
        dead_letter = _get(number)
        now = r.run(resolve.discard(number, actor=actor, comment=comment))
        if now:
            return Result(number, dead_letter.request_id, "discarded", "discarded, stays unbooked", open=False)
        return Result(number, dead_letter.request_id, "already discarded", "had been discarded before", open=False)

    summary(Bulk(selected, wording=DISCARD, get=_get).run(one), selected, DISCARD, as_json=as_json)


@app.command()
def reopen(
    numbers: Annotated[list[int], typer.Argument(help="Numbers of dead letters.", show_default=False)],
    comment: Annotated[str, typer.Option(help="Kept with it.", show_default=False)],
    actor: Who = None,
    as_json: AsJson = False,
) -> None:
    """Take the decision to discard back: the dead letter waits for a person again, and can be retried."""
    from billing_tasks.flows.dead_letters import resolve, select

    r, actor = runtime(), me(actor)
    selected = select.Selected(numbers, more=False, left_out={})

    def one(number: int) -> Result:
        dead_letter = _get(number)
        r.run(resolve.reopen(number, actor=actor, comment=comment))
        message = f"reopened; {command()} dead-letters retry {number} tries it again"
        return Result(number, dead_letter.request_id, "reopened", message, open=False)

    summary(Bulk(selected, wording=REOPEN, get=_get).run(one), selected, REOPEN, as_json=as_json)


def _select(
    numbers: list[int] | None, wanted: DeadLetterFilter, everything: bool, limit: int | None, *, for_retry: bool
) -> select.Selected:
    """What the arguments name: numbers as they are, else the open letters that match."""
    from billing_tasks.flows.dead_letters import select

    if numbers and (wanted or everything):
        raise typer.BadParameter("Give numbers, or filters, not both.")
    if numbers:
        return select.Selected(list(dict.fromkeys(numbers)), more=False, left_out={})
    if not wanted and not everything:
        raise typer.BadParameter("Say which: numbers, filters like --kind or --reason, or --all.")
    closed = set(wanted.get("states") or ()) - set(OPEN)
    if closed:
        raise typer.BadParameter(f"Nothing to do for dead letters that are {' or '.join(sorted(closed))}.")
    wanted["states"] = wanted.get("states") or OPEN
    leave_out = select.excluded_reasons(wanted) if for_retry else ()
    return runtime().run(select.select_dead_letters(wanted, limit=limit, leave_out=leave_out))


def _preview(selected: select.Selected, as_json: bool) -> None:
    from billing_tasks.flows.dead_letters import preview

    r = runtime()
    bulk = Bulk(selected, wording=PREVIEW, get=_get)
    found = bulk.run(lambda number: Result.previewed(r.run(preview.preview(number, commands=r.commands))))
    summary(found, selected, PREVIEW, as_json=as_json)


def _confirm(selected: select.Selected) -> None:
    """Ask on a terminal; anywhere else --yes is the answer."""
    ledger, numbers = runtime().ledger, selected.numbers
    reasons = ledger.count_reasons(numbers=numbers[:10_000])
    named = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"This discards {len(numbers):,} dead letters ({named}); say --yes.")
    typer.confirm(f"Discard {len(numbers):,} dead letters ({named})?", abort=True, err=True)


def _get(number: int) -> DeadLetter:
    dead_letter = runtime().ledger.get_dead_letter(number)
    if dead_letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")
    return dead_letter
