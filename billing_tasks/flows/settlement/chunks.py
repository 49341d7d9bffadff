"""Chunks: events of a batch as they leave the outbox together, a few at a time and a user's at once."""

from __future__ import annotations

from billing_tasks.holds.commands import SETTLED_AT_ONCE
from billing_tasks.holds.replies import OutboxEntry


def by_user(entries: list[OutboxEntry]) -> list[list[OutboxEntry]]:
    """Chunks of about SETTLED_AT_ONCE entries, a user's entries together.

    The user's new balance is written with the first of them and counts them all; while some of
    them are still in `unposted`, the user has less available than is true. Together, no reservation sees that.
    """
    of_user: dict[int, list[OutboxEntry]] = {}
    for entry in entries:
        of_user.setdefault(entry.user_id, []).append(entry)
    chunks: list[list[OutboxEntry]] = [[]]
    for own in of_user.values():
        if len(chunks[-1]) + len(own) > SETTLED_AT_ONCE and chunks[-1]:
            chunks.append([])
        for at in range(0, len(own), SETTLED_AT_ONCE):
            if at:
                chunks.append([])
            chunks[-1] += own[at : at + SETTLED_AT_ONCE]
    return chunks
