"""What a person must know of an event that was not booked, where only an error's text is seen: in Flower, in a log."""

from __future__ import annotations

from billing_tasks.errors import Unavailable
from billing_tasks.flows.effects import InLedger
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event, Kind


async def details(event: Event) -> str:
    """Whose it is, under which ids, and how much: a sentence; for a refund with what is left of its charge."""
    amount = "all that is left" if event.whole else f"{event.quota:,}"
    words = [f"Request {event.request_id}", f"user {event.user_id}"]
    if event.kind is not Kind.REFUND:
        return f"{', '.join(words)}, quota {amount}{_own_key(event.client_key)}."
    words.append(f"refund {event.refund_id}")
    return f"{', '.join(words)}: {amount} asked for{await _left(event)}{_own_key(event.client_key)}."


async def _left(event: Event) -> str:
    try:
        entries = await InLedger(Ledger.entries_of, event.request_id)
    except Unavailable:
        return ""
    charge = next((entry for entry in entries if entry.kind == Kind.CONSUME), None)
    if charge is None:
        return ", nothing charged"
    left = charge.quota - sum(entry.quota for entry in entries if entry.kind == Kind.REFUND)
    return f", {left:,} left of a charge of {charge.quota:,}{_own_key(charge.client_key)}"


def _own_key(key: str) -> str:
    return f", key {key}" if key else ""


def what_to_type(number: int) -> str:
    """How a person goes on."""
    return f"billing-tasks dead-letters show {number}"


def shown(event: Event | None) -> dict[str, object]:
    """The same as arguments of a task, by which Flower finds it. They change nothing of what the task does."""
    if event is None:
        return {}
    amount = "all" if event.whole else event.quota
    found = {
        "user_id": event.user_id,
        "quota": amount,
        "refund_id": event.refund_id,
        "client_key": event.client_key,
    }
    return {name: value for name, value in found.items() if value}
