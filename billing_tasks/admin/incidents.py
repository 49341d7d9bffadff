"""Incidents: signs that events of an outbox were lost or came back, and which of them have one cause.

One restart of Redis is an incident per shard; `grouped` makes one cause of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from billing_tasks.admin.paging import Listing, Page, RowNumber
from billing_tasks.errors import InvalidRequest
from billing_tasks.ledger.rows import Incident
from billing_tasks.model.validation import check_int, check_text

if TYPE_CHECKING:
    from billing_tasks.runtime import Runtime

#: Incidents of one kind that were noticed within this time are of one cause.
TOGETHER: Final = timedelta(seconds=60)

_INCIDENTS: Final = Listing[Incident, tuple[int]]("incidents", tuple[RowNumber], lambda row: (row.id,))


@dataclass(frozen=True, slots=True)
class Cause:
    """What happened once, with the incidents it left, newest first."""

    incidents: list[Incident]

    @property
    def kind(self) -> str:
        """gap, rewind or new_epoch."""
        return self.incidents[0].kind

    @property
    def note(self) -> str:
        """What is known of it, in words."""
        return _note(self.incidents[0])

    @property
    def noticed_at(self) -> datetime:
        """When the last of its incidents was noticed."""
        return self.incidents[0].noticed_at

    @property
    def shards(self) -> list[int]:
        """Whose outboxes it concerns."""
        return sorted({incident.shard for incident in self.incidents})

    @property
    def events(self) -> int:
        """How many events it concerns, at least."""
        return sum(incident.events_bound or 0 for incident in self.incidents)

    @property
    def unseen(self) -> tuple[datetime, datetime] | None:
        """Between which moments the events that no look saw were filed; None: all were seen."""
        if self.incidents[0].unseen_from is None:
            return None
        begin = min(incident.unseen_from or incident.noticed_at for incident in self.incidents)
        return begin, max(incident.unseen_to or incident.noticed_at for incident in self.incidents)

    def as_dict(self) -> dict[str, object]:
        """For machines."""
        begin, end = self.unseen or (None, None)
        return {
            "kind": self.kind,
            "note": self.note,
            "noticed_at": self.noticed_at,
            "shards": self.shards,
            "events": self.events,
            "unseen_from": begin,
            "unseen_to": end,
            "incidents": [asdict(incident) for incident in self.incidents],
        }


def worth_a_look(incident: Incident) -> bool:
    """True if events may be missing and nobody has seen to it; a restart of Redis that lost nothing is noted too."""
    return incident.closed_at is None and bool(incident.kind != "new_epoch" or incident.events_bound)


def grouped(incidents: Iterable[Incident]) -> list[Cause]:
    """The causes of these incidents, which are newest first; so are the causes."""
    causes: list[Cause] = []
    for incident in incidents:
        mine = next((cause for cause in causes if _same_cause(cause.incidents[-1], incident)), None)
        if mine is None:
            causes.append(Cause([incident]))
        else:
            mine.incidents.append(incident)
    return causes


def _same_cause(later: Incident, incident: Incident) -> bool:
    return (
        later.kind == incident.kind
        and _note(later) == _note(incident)
        and later.noticed_at - incident.noticed_at < TOGETHER
    )


def _note(incident: Incident) -> str:
    return incident.note.split(";")[0]


class Incidents:
    """Reads and closes incidents; they are never removed. All methods raise Unavailable if PostgreSQL is away."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def find(self, *, shard: int | None = None, cursor: str | None = None, limit: int = 100) -> Page[Incident]:
        """Incidents of one shard or of all, newest first. Raises InvalidRequest."""
        if shard is not None:
            check_int("shard", shard, 0, 2**31 - 1)
        ledger = self._runtime.ledger
        return _INCIDENTS.page(
            cursor,
            limit,
            lambda after, most: ledger.incidents(shard=shard, before_id=after[0] if after else None, limit=most),
        )

    def close(self, ids: Sequence[int], *, actor: str, comment: str) -> list[int]:
        """Note that a person has seen to these: what they say is missing is no longer told. Returns those that were
        open. Raises InvalidRequest."""
        numbers = [check_int("id", number, 1) for number in ids]
        actor, comment = check_text("actor", actor, 200), check_text("comment", comment, 2000)
        if not comment:
            raise InvalidRequest("comment must say what was done about it.")
        return self._runtime.ledger.close_incidents(numbers, closed_by=actor, comment=comment)

    def causes(self, *, limit: int = 200) -> list[Cause]:
        """The causes of the last `limit` incidents, newest first."""
        return grouped(self.find(limit=limit).rows)
