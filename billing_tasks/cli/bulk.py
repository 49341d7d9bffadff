"""Many dead letters on the command line: progress while it lasts, a summary by outcome, the exit status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import typer
from rich.progress import track

from billing_tasks.admin.types import NOT_FOUND, Result, Selected
from billing_tasks.cli.dead_letter_text import say
from billing_tasks.cli.show import command, err, print_json
from billing_tasks.errors import Unavailable

#: From so many on there is a progress bar, and only what did not go well has a line of its own.
MANY = 20
#: Lines of what did not go well; `--json` has all.
_LINES = 20
_LONGEST_LINE = 300


@dataclass(frozen=True, slots=True)
class Wording:
    """How a summary names the outcomes of one kind of work."""

    outcomes: Mapping[str, str]
    refused: str  # every other outcome
    asking: str  # beside the progress bar
    changes: bool = True


_BEFORE = {
    "duplicate": "had been booked before",
    "already resolved": "had been booked before",
    "already discarded": "discarded before",
    Unavailable.code: "without an answer",
    NOT_FOUND: "not found",
}
RETRY = Wording({**_BEFORE, "posted": "booked now"}, "still refused", "Retrying")
PREVIEW = Wording({**_BEFORE, "posted": "would be booked"}, "would be refused", "Previewing", changes=False)
DISCARD = Wording({**_BEFORE, "discarded": "discarded"}, "not discarded", "Discarding")
REOPEN = Wording({"reopened": "reopened, waits for a person again"}, "not reopened", "Reopening")


def done(results: Iterator[Result], selected: Selected, wording: Wording) -> list[Result]:
    """All results, in order, with a progress bar on a terminal; fewer than chosen if PostgreSQL went away."""
    many = len(selected.numbers)
    if many < MANY or not err.is_terminal:
        return list(results)
    return list(track(results, total=many, description=wording.asking, console=err, transient=True))


def summary(results: list[Result], selected: Selected, wording: Wording, *, as_json: bool) -> None:
    """Tell what became of them. Exit 1 if something did not go as asked; a dry run only answers."""
    not_tried = len(selected.numbers) - len(results)
    undone = sum(result.open for result in results) + not_tried + sum(selected.left_out.values())
    if as_json:
        print_json(
            {
                "dry_run": not wording.changes,
                "outcomes": dict(Counter(result.outcome for result in results)),
                "left_out": selected.left_out,
                "not_tried": not_tried,
                "more": selected.more,
                "results": [_as_dict(result, wording) for result in results],
            }
        )
    else:
        _tell(results, selected, wording, not_tried)
    if undone and wording.changes:
        raise typer.Exit(1)


def _tell(results: list[Result], selected: Selected, wording: Wording, not_tried: int) -> None:
    few = len(results) < MANY or not wording.changes
    lines = results if few else [result for result in results if result.open]
    for result in lines[:_LINES]:
        say(f"{result.dead_letter}: {_said(result, wording)[:_LONGEST_LINE]}")
    if len(lines) > _LINES:
        say(f"... and {len(lines) - _LINES:,} more; --json has all")
    if len(results) > 1:
        say(f"Together: {_counted(results, wording)}.")
    if not_tried:
        say(f"PostgreSQL does not answer: {not_tried:,} were not tried. Run it again when it is back.")
    if selected.left_out:
        kinds = ", ".join(f"{reason} {count:,}" for reason, count in selected.left_out.items())
        say(
            f"Left out {sum(selected.left_out.values()):,} that are refused for ever ({kinds}):"
            f" {command()} dead-letters list; retry them by number or --reason."
        )
    if not results and not selected.left_out:
        say("No open dead letters match.")
    if selected.more:
        say("More match than --limit takes; run it again.")
    if not wording.changes and results:
        say("Nothing was changed.")


def _said(result: Result, wording: Wording) -> str:
    if result.refused:
        return f"{wording.refused}, {result.outcome}: {result.message}"
    if result.outcome == "reopened":
        return f"reopened; {command()} dead-letters retry {result.dead_letter} tries it again"
    return result.message


def _as_dict(result: Result, wording: Wording) -> dict[str, object]:
    names = ("dead_letter", "request_id", "outcome", "says", "open")
    said = {**result.as_dict(), "says": _said(result, wording)}
    return {name: said[name] for name in names}


def _counted(results: list[Result], wording: Wording) -> str:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for result in results:
        counts[wording.outcomes.get(result.outcome, wording.refused)] += 1
        if result.outcome not in wording.outcomes:
            reasons[result.outcome] += 1
    because = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    named = [f"{phrase} {count:,}" for phrase, count in counts.items()]
    return ", ".join(f"{name} ({because})" if name.startswith(wording.refused) else name for name in named)
