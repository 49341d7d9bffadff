"""dead-letters: what could not be booked. Find it, understand it, retry it or decide that it stays unbooked."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import Annotated

import typer

from billing_tasks.cli.options import AsJson, Limit
from billing_tasks.cli.show import command, console, err, facts, print_json, table
from billing_tasks.errors import BillingError, InvalidRequest
from billing_tasks.flows import retry as retrying
from billing_tasks.ledger.rows import DeadLetter, LetterState
from billing_tasks.runtime import runtime

app = typer.Typer(help="What could not be booked: list, show, retry, discard.", no_args_is_help=True)

Numbers = Annotated[list[int], typer.Argument(help="Numbers of dead letters.", show_default=False)]
Who = Annotated[str | None, typer.Option(help="Who decides; kept with the row. Default: the user logged in.")]


def _me(who: str | None) -> str:
    try:
        return who or getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "command line"


def _as_dict(letter: DeadLetter) -> dict[str, object]:
    return {**asdict(letter), "payload": letter.payload.decode("utf-8", "backslashreplace")}


@app.command("list")
def list_letters(
    state: Annotated[list[LetterState] | None, typer.Option(help="May be given several times.")] = None,
    kind: Annotated[str | None, typer.Option(help="consume, refund, release or conflict.")] = None,
    user_id: Annotated[int | None, typer.Option("--user", help="Only this user's.")] = None,
    request_id: Annotated[str | None, typer.Option("--request", help="Only this request's.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first; without --state those that are open (retrying, failed)."""
    states = state or [LetterState.RETRYING, LetterState.FAILED]
    rows = runtime().ledger.dead_letters(states=states, kind=kind, user_id=user_id, request_id=request_id, limit=limit)
    if as_json:
        print_json([_as_dict(row) for row in rows])
        return
    if not rows:
        console.print("No dead letters.")
        return
    console.print(
        table(
            *("no", "kind", "request", "user", "state", "tries", "reason", "error"),
            rows=[(r.id, r.kind, r.request_id, r.user_id, r.state, r.attempts, r.reason, r.error) for r in rows],
            right="no user tries",
        )
    )


@app.command()
def show(number: Annotated[int, typer.Argument(show_default=False)], as_json: AsJson = False) -> None:
    """Everything known about one dead letter, its payload included."""
    letter = _get(number)
    if as_json:
        print_json(_as_dict(letter))
        return
    console.print(facts([(name.replace("_", " "), value) for name, value in _as_dict(letter).items()]))
    if letter.state in (LetterState.FAILED, LetterState.RETRYING):
        console.print(f"\n{command()} dead-letters retry {number}     try to book it now")
        console.print(f"{command()} dead-letters discard {number} --why '…'   decide that it stays unbooked")


@app.command()
def retry(
    numbers: Annotated[list[int] | None, typer.Argument(help="Numbers of dead letters.", show_default=False)] = None,
    kind: Annotated[str | None, typer.Option(help="All open ones of this kind.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All open ones.")] = False,
    limit: Limit = 100,
    who: Who = None,
    as_json: AsJson = False,
) -> None:
    """Try to book dead letters now, in this process. Booking twice is impossible: the ledger's keys see to that."""
    if not numbers and not kind and not everything:
        raise typer.BadParameter("Give numbers, or --kind, or --all.")
    r = runtime()
    chosen = numbers or [
        row.id
        for row in r.ledger.dead_letters(states=[LetterState.RETRYING, LetterState.FAILED], kind=kind, limit=limit)
    ]
    results: list[dict[str, object]] = []
    for number in chosen:
        try:
            done = r.run(retrying.attempt(number, who=_me(who), commands=r.commands, settings=r.settings))
            results.append(done.as_dict())
        except BillingError as exc:
            results.append(
                {"dead_letter": number, "request_id": exc.request_id, "outcome": exc.code, "error": exc.message}
            )
    if as_json:
        print_json(results)
    else:
        for result in results:
            console.print(f"{result['dead_letter']}: {result['outcome']}  {result.get('error', '')}".rstrip())
        if not results:
            console.print("No open dead letters.")
    if any("error" in result for result in results):
        raise typer.Exit(1)


@app.command()
def discard(
    numbers: Numbers,
    why: Annotated[str, typer.Option(help="Kept with the row; somebody will ask.", show_default=False)],
    who: Who = None,
    as_json: AsJson = False,
) -> None:
    """Decide that dead letters stay unbooked. The rows are kept."""
    for number in numbers:
        letter = _get(number)
        if letter.state == LetterState.RESOLVED:
            raise InvalidRequest(
                f"Dead letter {number} was booked by {letter.handled_by or 'a retry'}; it can't be discarded."
            )
        done = runtime().ledger.mark_dead_letter(
            number, LetterState.DISCARDED, who=_me(who), why=why, open_only=letter.state != LetterState.DISCARDED
        )
        if done is None:
            raise InvalidRequest(f"Dead letter {number} was booked in this very moment; it can't be discarded.")
    if as_json:
        print_json({"discarded": numbers})
    else:
        err.print(f"Discarded: {', '.join(map(str, numbers))}.")


def _get(number: int) -> DeadLetter:
    letter = runtime().ledger.get_dead_letter(number)
    if letter is None:
        raise InvalidRequest(f"There is no dead letter {number}.")
    return letter
