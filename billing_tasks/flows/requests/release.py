"""The event that says a hold ended unused; refund and expire both file it."""

from __future__ import annotations

from billing_tasks.model.events import Event, Kind, fingerprint


def release_event(request_id: str, user_id: int, token_id: int, held: int, *, reason: str, expired: bool) -> Event:
    """A release of `held` quota."""
    return Event(
        kind=Kind.RELEASE,
        request_id=request_id,
        user_id=user_id,
        token_id=token_id,
        fingerprint=fingerprint("release", user_id, token_id, request_id, held),
        quota=held,
        content=reason,
        expired=expired,
    )
