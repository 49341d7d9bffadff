"""Imports: usage from a file, taken in once per request_id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec

from billing_tasks.broker.decode import consume_log_from
from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.requests.take_in import TakenIn, take_in
from billing_tasks.model import events
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.model.events import Event
from billing_tasks.model.ids import reserved_at_ms, shorten
from billing_tasks.runtime import Runtime

#: Lines in one transaction per shard.
AT_ONCE: Final = 500
#: No line of usage is longer; one that is, is no line.
LONGEST_LINE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ImportedLine:
    """What became of one line: `posted`, `duplicate` (booked before, the same), or the code of a refusal."""

    number: int  # of the line, from 1
    request_id: str  # empty if it can't be read
    outcome: str
    message: str = ""  # of a refusal: why, and what to do

    @property
    def refused(self) -> bool:
        """True if it is not in the books."""
        return self.outcome not in ("posted", "duplicate")


class Imports:
    """Takes in what was logged elsewhere. All methods raise Unavailable if PostgreSQL is away; repeating is safe."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def usage(self, lines: Iterable[bytes | str], *, dry_run: bool = False) -> Iterator[ImportedLine]:
        """Book usage, one JSON object of ConsumeLog's fields per line, and answer for each line in its order.

        Once per request_id: the same again is `duplicate`, another body is `conflict` and changes nothing. Without
        `used_at_ms` the time of use is that of the request_id. Empty lines have no answer. A line that can't be booked
        is answered with the reason, and is kept nowhere but where it came from.
        """
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        while chunk := list(islice(numbered, AT_ONCE)):
            yield from self._chunk(chunk, dry_run)

    def _chunk(self, chunk: list[tuple[int, bytes | str]], dry_run: bool) -> Iterator[ImportedLine]:
        read: list[tuple[int, Event | ImportedLine]] = [(number, _read(number, line)) for number, line in chunk]
        usable = [event for _, event in read if isinstance(event, Event)]
        r = self._runtime
        answers = iter(r.run(take_in(usable, commands=r.commands, dry_run=dry_run)) if usable else ())
        for number, event in read:
            if isinstance(event, ImportedLine):
                yield event
            else:
                answer: TakenIn = next(answers)
                yield ImportedLine(number, event.request_id, answer.outcome, answer.message)


def _read(number: int, line: bytes | str) -> Event | ImportedLine:
    request_id = ""
    try:
        fields = _fields(line)
        request_id = str(fields.get("request_id") or "")[:200]
        log = consume_log_from(fields)
        return events.of_log(_dated(log))
    except InvalidRequest as exc:
        return ImportedLine(number, request_id, exc.code, exc.message)
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError) as exc:
        return ImportedLine(number, request_id, "malformed", f"The line is no JSON: {exc}")


def _fields(line: bytes | str) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise InvalidRequest(f"The line has {len(line):,} characters, more than {LONGEST_LINE:,}.")
    fields = msgspec.json.decode(line)
    if not isinstance(fields, dict):
        raise InvalidRequest(f"The line is no JSON object: {shorten(fields)}")
    return fields


def _dated(log: ConsumeLog) -> ConsumeLog:
    """Usage that does not say when it was used was used when its id was minted, and not now."""
    if log.used_at_ms is not None:
        return log
    return log.model_copy(update={"used_at_ms": reserved_at_ms(log.request_id)})
