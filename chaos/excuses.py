"""Excuses: what is gone as it may be, because a server came back older, and the incidents say so."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.books import Loss
from chaos.findings import Finding, Wrong
from chaos.restore import Restored

#: The clocks of a gateway, Redis and PostgreSQL are one here, but a moment lies between a look and its note.
SLACK_MS = 1500
#: An event that waits is booked within that, or its servers were away for longer than any fault has them.
WAITS_MS = 60_000
Span = tuple[int, int]


def told_by_incidents(
    findings: list[Finding], losses: Sequence[Loss], gaps: Sequence[Span], restores: Sequence[Restored] = ()
) -> tuple[list[Finding], list[Finding]]:
    """What is wrong, and what is gone as it may be.

    Filed in a gap of Redis, or booked by a PostgreSQL that came back older; the incidents say so if it was filed while
    no look saw it, or is among the events they count. If more is gone than that, all of it is wrong. What a PostgreSQL
    that came back older was told past Redis, no incident can count.
    """
    by_redis = [one for one in findings if any(meet(one.filed_ms, gap) for gap in gaps)]
    others = [one for one in findings if one not in by_redis]
    straight = [one for one in others if _was_told_straight(one, restores)]
    by_postgres = [one for one in others if one not in straight and _was_booked(one, restores)]
    unseen = [(loss.from_ms, loss.to_ms) for loss in losses]
    counted = [one for one in by_redis if not any(meet(one.filed_ms, span) for span in unseen)]
    is_told = len(counted) + len(by_postgres) <= sum(loss.events for loss in losses)
    gone = straight + (by_redis + by_postgres if is_told else [])
    return [one for one in findings if one not in gone], gone


def _was_told_straight(one: Finding, restores: Sequence[Restored]) -> bool:
    told = (one.straight_ms, one.straight_ms)
    return one.wrong is Wrong.LOST and any(meet(told, (at.from_ms, at.to_ms)) for at in restores)


def _was_booked(one: Finding, restores: Sequence[Restored]) -> bool:
    return one.wrong is Wrong.LOST and any(meet(one.filed_ms, (at.from_ms - WAITS_MS, at.to_ms)) for at in restores)


def meet(filed: Span, span: Span) -> bool:
    """Whether something filed between two moments may be of that span; zeros are of none."""
    known = bool(filed[1] and span[1])
    return known and span[0] - SLACK_MS <= filed[1] and filed[0] <= span[1] + SLACK_MS
