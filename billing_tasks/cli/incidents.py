"""Incidents in words: what may be missing, of which shards, and whose logs of which seconds know it.

One restart of Redis is an incident per shard; they are told as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from billing_tasks.ledger.rows import Incident

#: Incidents of one kind that were noticed within this time are of one cause.
TOGETHER = timedelta(seconds=60)
#: More shards than this are counted, not named.
MANY_SHARDS = 6


def counted(incidents: Sequence[Incident]) -> str:
    """One line for all of them."""
    if not incidents:
        return "none"
    lost = sum(map(worth_a_look, incidents))
    return f"{lost} with events that may be missing" if lost else "restarts of Redis, nothing missing"


def worth_a_look(incident: Incident) -> bool:
    """True if events may be missing; a restart of Redis that lost nothing is noted too."""
    return bool(incident.kind != "new_epoch" or incident.events_bound)


def told(incidents: Sequence[Incident]) -> list[str]:
    """A sentence for each cause, newest first."""
    causes: list[list[Incident]] = []
    for incident in incidents:  # newest first
        mine = next((cause for cause in causes if _same_cause(cause[-1], incident)), None)
        if mine is None:
            causes.append([incident])
        else:
            mine.append(incident)
    return [_in_words(cause) for cause in causes]


def _same_cause(later: Incident, incident: Incident) -> bool:
    return (
        later.kind == incident.kind
        and _note(later) == _note(incident)
        and later.noticed_at - incident.noticed_at < TOGETHER
    )


def _note(incident: Incident) -> str:
    return incident.note.split(";")[0]


def _in_words(cause: list[Incident]) -> str:
    events = sum(incident.events_bound or 0 for incident in cause)
    first, shards = cause[0], sorted({incident.shard for incident in cause})
    of = f"{len(shards)} shards" if len(shards) > MANY_SHARDS else f"shard {', '.join(map(str, shards))}"
    if first.kind == "rewind" and first.unseen_from is None:
        return f"{events} events of {of} came under numbers booked before, {first.noticed_at:%F %T}; they are booked"
    text = f"{events} events of {of} are missing"
    if first.unseen_from is None:
        return f"{text}, noticed {first.noticed_at:%F %T}"
    begin = min(incident.unseen_from or incident.noticed_at for incident in cause)
    end = max(incident.unseen_to or incident.noticed_at for incident in cause)
    return f"{text}, and what was filed from {begin:%F %T} to {end:%T} may be ({_note(first)})"
