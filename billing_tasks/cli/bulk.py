"""Many dead letters, one after the other: progress while it lasts, a summary by outcome, the exit status.

One dead letter never keeps the others from their turn. If PostgreSQL does not confirm
three in a row, the rest is left for later: they would all wait for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer
from rich.progress import track

from billing_tasks.cli.dead_letter_text import say
from billing_tasks.cli.show import command, err, print_json
from billing_tasks.errors import BillingError, Unavailable

if TYPE_CHECKING:
    from billing_tasks.flows.dead_letters.preview import Preview
    from billing_tasks.flows.dead_letters.retry import Attempted
    from billing_tasks.flows.dead_letters.select import Selected
    from billing_tasks.ledger.rows import DeadLetter

#: From so many on there is a progress bar, and only what did not go well has a line of its own.
MANY = 20
#: Lines of what did not go well; `--json` has all.
_LINES = 20
_LONGEST_LINE = 300
_AWAY_IN_A_ROW = 3
#: The outcome of a number that no dead letter has.
NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one dead letter."""

    dead_letter: int
    request_id: str | None
    outcome: str
    message: str
    open: bool  # not what was asked for: it still waits, for its time or for a person

    @classmethod
    def attempted(cls, found: Attempted) -> Result:
        """Of an attempt that raised nothing. A discarded dead letter did not get what was asked for."""
        undone = found.outcome == "already discarded"
        return cls(found.dead_letter, found.request_id, found.outcome, found.message, open=undone)

    @classmethod
    def previewed(cls, found: Preview) -> Result:
        """Of a dry run, which leaves nothing undone."""
        return cls(found.dead_letter, found.request_id, found.would, found.message, open=False)


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


class Bulk:
    """Does one thing to each of the chosen dead letters."""

    def __init__(
        self,
        selected: Selected,
        *,
        wording: Wording,
        get: Callable[[int], DeadLetter],
        broke: Callable[[int, str], None] | None = None,
    ) -> None:
        """`get` reads a dead letter, `broke` notes that we met a bug."""
        self._selected, self._wording, self._get, self._broke = selected, wording, get, broke

    def run(self, do: Callable[[int], Result]) -> list[Result]:
        """The results, in order; fewer than chosen if PostgreSQL went away."""
        results: list[Result] = []
        away = 0
        for number in self._numbers():
            result = self._one(number, do)
            results.append(result)
            away = away + 1 if result.outcome == Unavailable.code else 0
            if away == _AWAY_IN_A_ROW:
                break
        return results

    def _numbers(self) -> Iterator[int]:
        numbers = self._selected.numbers
        if len(numbers) < MANY or not err.is_terminal:
            yield from numbers
        else:
            yield from track(numbers, description=self._wording.asking, console=err, transient=True)

    def _one(self, number: int, do: Callable[[int], Result]) -> Result:
        try:
            return do(number)
        except Unavailable as exc:
            return Result(number, exc.request_id, Unavailable.code, exc.message, open=True)
        except BillingError as exc:
            return self._refused(number, exc)
        except Exception as exc:
            # A bug of ours: this dead letter's, not the others'.
            if self._broke is None:
                raise
            self._broke(number, repr(exc))
            return Result(number, None, "unexpected", repr(exc), open=True)

    def _refused(self, number: int, error: BillingError) -> Result:
        try:
            dead_letter = self._get(number)
        except BillingError:
            return Result(number, None, NOT_FOUND, error.message, open=True)
        if not dead_letter.open:
            return Result(number, dead_letter.request_id, f"already {dead_letter.state}", error.message, open=True)
        message = f"{self._wording.refused}, {dead_letter.reason}: {error.message}"
        return Result(number, dead_letter.request_id, dead_letter.reason, message, open=True)


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
                "results": [asdict(result) for result in results],
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
        say(f"{result.dead_letter}: {result.message[:_LONGEST_LINE]}")
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
