"""Dead letters: found, shown, previewed, retried, discarded, reopened; one of them or many.

Retrying is safe at any time and from anywhere: an attempt posts under the event's own key. A
crash in the middle of many leaves the rest as they were; the same call again does what is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Unpack

from billing_tasks.admin.one_by_one import Result, attempted, one_by_one, previewed
from billing_tasks.admin.paging import MOST_ROWS, Listing, Page, RowNumber, check_filters, check_times
from billing_tasks.errors import BillingError, InvalidRequest, Unavailable
from billing_tasks.flows.dead_letters import preview as previewing
from billing_tasks.flows.dead_letters import resolve, select
from billing_tasks.flows.dead_letters import retry as retrying
from billing_tasks.flows.dead_letters.answers import Attempted, Preview, Previews, Selected, Sent
from billing_tasks.ledger.rows import OPEN, DeadLetter, DeadLetterFilter, DeadLetterState, HistoryEntry
from billing_tasks.model.ids import shorten
from billing_tasks.model.validation import check_int, check_text
from billing_tasks.runtime import Runtime

_DEAD_LETTERS: Final = Listing[DeadLetter, tuple[int]]("dead letters", tuple[RowNumber], lambda row: (row.id,))
#: How many values each list of a filter takes: what is read from payloads is looked for value by value.
_LISTS: Final = {
    **dict.fromkeys(("numbers", "states", "request_ids"), MOST_ROWS),
    **dict.fromkeys(("refund_ids", "client_keys"), select.MOST_INSIDE),
}
_TEXTS: Final = ("request_ids", "refund_ids", "client_keys")


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything about one dead letter."""

    dead_letter: DeadLetter
    history: list[HistoryEntry]
    retry_now: Preview | None  # None: it could not be told; `unknown` says why
    unknown: str = ""

    def as_dict(self) -> dict[str, object]:
        """For machines: the dead letter's own fields, its history, and what a retry would do."""
        unknown = {"would": "unknown", "says": self.unknown}
        would = unknown if self.retry_now is None else self.retry_now.as_dict()
        return {
            **self.dead_letter.as_dict(),
            "history": [event.as_dict() for event in self.history],
            "retry_now": would,
        }


class DeadLetters:
    """What could not be booked. Numbers are dead letters' own; all methods raise Unavailable if PostgreSQL is away.

    But those named `..._many` raise nothing for one of them: what is refused, not found or not answered is its result,
    and after three without an answer in a row they end. The rest was not touched then; call again with it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    # -- looking ------------------------------------------------------------------------------------------

    def find(
        self, *, cursor: str | None = None, limit: int = 100, **wanted: Unpack[DeadLetterFilter]
    ) -> Page[DeadLetter]:
        """Those that match, newest first; payloads are cut to 4,096 bytes. Without `states`: of every state.

        Give the same filter with each cursor. Raises InvalidRequest.
        """
        _check(wanted)
        ledger = self._runtime.ledger
        return _DEAD_LETTERS.page(
            cursor,
            limit,
            lambda after, most: ledger.dead_letters(before_id=after[0] if after else None, limit=most, **wanted),
        )

    def get(self, number: int) -> DeadLetter:
        """The dead letter with its whole payload. Raises InvalidRequest if there is none."""
        dead_letter = self._runtime.ledger.get_dead_letter(check_int("number", number, 1))
        if dead_letter is None:
            raise InvalidRequest(f"There is no dead letter {number}.")
        return dead_letter

    def show(self, number: int) -> Shown:
        """The dead letter, what happened to it, and what a retry would do now. Raises InvalidRequest."""
        dead_letter = self.get(number)
        history = self._runtime.ledger.dead_letter_history(number)
        try:
            return Shown(dead_letter, history, self.preview(number))
        except Unavailable as exc:
            return Shown(dead_letter, history, None, exc.message)

    def choose(self, *, limit: int | None = None, for_retry: bool, **wanted: Unpack[DeadLetterFilter]) -> Selected:
        """The numbers of the open ones that match, oldest first, for what is done with many; numbers as they are.

        `for_retry` leaves out what is refused for ever, and counts it, unless it was asked for by reason. Raises
        InvalidRequest for numbers beside a filter, for no filter at all and for states that are not open.
        """
        _check(wanted)
        given = {name for name, value in wanted.items() if value is not None}
        if given == {"numbers"}:
            return Selected(list(dict.fromkeys(wanted["numbers"])), more=False, left_out={})
        if not given or "numbers" in given:
            raise InvalidRequest("Give numbers, or a filter (states=OPEN: all open ones), not both.")
        closed = set(wanted.get("states") or ()) - set(OPEN)
        if closed:
            raise InvalidRequest(f"Nothing to do for dead letters that are {' or '.join(sorted(closed))}.")
        wanted["states"] = wanted.get("states") or OPEN
        leave_out = select.excluded_reasons(wanted) if for_retry else ()
        return self._runtime.run(select.select_dead_letters(wanted, limit=limit, leave_out=leave_out))

    def count_reasons(self, numbers: Collection[int]) -> dict[str, int]:
        """How many of these there are for each reason."""
        return self._runtime.ledger.count_reasons(numbers=numbers) if numbers else {}

    # -- retrying -----------------------------------------------------------------------------------------

    def preview(self, number: int) -> Preview:
        """What a retry would do now; nothing is changed. Raises InvalidRequest if there is no such dead letter."""
        check_int("number", number, 1)
        return self._runtime.run(previewing.preview(number, commands=self._runtime.commands))

    def preview_many(self, numbers: Iterable[int]) -> Iterator[Result]:
        """What a retry of each would do now, one by one."""
        return one_by_one(numbers, lambda number: previewed(self.preview(number)), self.get)

    def preview_matching(self, *, limit: int = 100, **wanted: Unpack[DeadLetterFilter]) -> Previews:
        """What `send` with the same filter would lead to, of at most `limit`. Raises InvalidRequest."""
        _check(wanted)
        check_int("limit", limit, 1, MOST_ROWS)
        if not wanted.get("numbers"):
            wanted["states"] = wanted.get("states") or OPEN
        return self._runtime.run(previewing.preview_all(limit=limit, commands=self._runtime.commands, wanted=wanted))

    def retry(self, number: int, *, actor: str, comment: str = "", attempt: int | None = None) -> Attempted:
        """Try to book it now, in this process. `attempt`: which one it is, if it was sent as a task.

        Raises the error that says why not; the dead letter's row says it too. An error of another kind is
        noted in the row before it is raised again: else the dead letter would be due, and meet it, for ever.
        """
        r = self._runtime
        check_int("number", number, 1)
        actor, comment = _actor(actor), check_text("comment", comment, 2000)
        flow = retrying.attempt(
            number, actor=actor, comment=comment, commands=r.commands, settings=r.settings, count=attempt
        )
        try:
            return r.run(flow)
        except BillingError:
            raise
        except Exception as exc:
            r.run(retrying.broke(number, repr(exc), actor=actor, settings=r.settings, count=attempt))
            raise

    def retry_many(self, numbers: Iterable[int], *, actor: str, comment: str = "") -> Iterator[Result]:
        """Try to book each now, in this process, when its result is asked for."""
        _actor(actor)
        check_text("comment", comment, 2000)
        return one_by_one(numbers, lambda number: attempted(self.retry(number, actor=actor, comment=comment)), self.get)

    def send(self, *, actor: str, comment: str = "", limit: int = 100, **wanted: Unpack[DeadLetterFilter]) -> Sent:
        """Send those that match to the workers, each as a task of its own; without `states` the open ones.

        At most `limit`, those first whose turn was longest ago; numbers are all sent. Raises InvalidRequest, and
        Unavailable if the broker is away: what was sent until then is attempted.
        """
        _check(wanted)
        check_int("limit", limit, 1, MOST_ROWS)
        flow = retrying.send_again(
            limit=limit,
            due_only=False,
            settings=self._runtime.settings,
            actor=_actor(actor),
            comment=check_text("comment", comment, 2000),
            **wanted,
        )
        return self._runtime.run(flow)

    def send_due(self, *, limit: int = 100) -> Sent:
        """Send those whose own time has come. What beat does. Raises as `send` does."""
        return self._runtime.run(retrying.send_again(limit=limit, due_only=True, settings=self._runtime.settings))

    # -- resolving ----------------------------------------------------------------------------------------

    def discard(self, number: int, *, actor: str, comment: str) -> Result:
        """Decide that it stays unbooked. Raises InvalidRequest if it was booked, or without a comment."""
        dead_letter = self.get(number)
        now = self._runtime.run(resolve.discard(number, actor=_actor(actor), comment=_comment(comment)))
        outcome, message = ("discarded", "discarded, stays unbooked")
        if not now:
            outcome, message = ("already discarded", "had been discarded before")
        return Result(number, dead_letter.request_id, outcome, message, open=False)

    def discard_many(self, numbers: Iterable[int], *, actor: str, comment: str) -> Iterator[Result]:
        """Discard each when its result is asked for."""
        _actor(actor)
        _comment(comment)
        return one_by_one(numbers, lambda number: self.discard(number, actor=actor, comment=comment), self.get)

    def reopen(self, number: int, *, actor: str, comment: str) -> Result:
        """A discarded one waits for a person again. Raises InvalidRequest if it was not discarded."""
        dead_letter = self.get(number)
        self._runtime.run(resolve.reopen(number, actor=_actor(actor), comment=_comment(comment)))
        return Result(number, dead_letter.request_id, "reopened", "reopened, waits for a person again", open=False)

    def reopen_many(self, numbers: Iterable[int], *, actor: str, comment: str) -> Iterator[Result]:
        """Reopen each when its result is asked for."""
        _actor(actor)
        _comment(comment)
        return one_by_one(numbers, lambda number: self.reopen(number, actor=actor, comment=comment), self.get)


def _actor(actor: str) -> str:
    if not check_text("actor", actor, 200).strip():
        raise InvalidRequest("Say who decides: actor is kept with the dead letter.")
    return actor


def _comment(comment: str) -> str:
    if not check_text("comment", comment, 2000).strip():
        raise InvalidRequest("Say why: comment is kept with the dead letter.")
    return comment


def _check(wanted: DeadLetterFilter) -> None:
    """Raises InvalidRequest. An empty list would match all, where the caller meant those in it."""
    check_filters(wanted, DeadLetterFilter.__annotations__)
    given: dict[str, Any] = dict(wanted)
    for name, most in _LISTS.items():
        values = given.get(name)
        if values is None:
            continue
        if isinstance(values, str | bytes) or not isinstance(values, Collection) or not 1 <= len(values) <= most:
            raise InvalidRequest(f"{name} must be a list of 1 to {most:,} things, got {shorten(values)}.")
    for value in [*(given.get("numbers") or ()), *([given["user_id"]] if given.get("user_id") is not None else [])]:
        check_int("a number or user_id", value, 1)
    texts = [given[name] for name in ("kind", "reason") if given.get(name) is not None]
    for value in [*texts, *(value for name in _TEXTS for value in given.get(name) or ())]:
        check_text("a kind, reason or id", value, 200)
    unknown = {str(state) for state in given.get("states") or ()} - {str(state) for state in DeadLetterState}
    if unknown:
        raise InvalidRequest(
            f"There is no state {', '.join(sorted(unknown))}; states are {', '.join(DeadLetterState)}."
        )
    check_times(given.get("since"), given.get("before"))
