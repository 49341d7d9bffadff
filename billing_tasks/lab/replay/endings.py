"""Endings: how each request ended, as the ledger has it, beside what the gateway was told.

The ledger decides. A request ends once: consumed, refunded, expired, or refused
and never heard of again. Whatever differs is a finding, which names the request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from billing_tasks.admin.accounts import Accounts
from billing_tasks.lab.replay.requests import PlannedRequest, Tally, Told
from billing_tasks.ledger.rows import EntryRow


class Outcome(StrEnum):
    """How a request ended."""

    CONSUMED = "consumed"
    REFUNDED = "refunded"
    EXPIRED = "expired"
    REFUSED = "refused"
    OPEN = "open"  # not ended, as far as the ledger knows


@dataclass(frozen=True, slots=True)
class Ending:
    """One request's end. `quota` is what was charged."""

    outcome: Outcome
    quota: int


Booked = Mapping[str, Sequence[EntryRow]]
"""Ledger entries by request_id."""


def read_booked(requests: Sequence[PlannedRequest], accounts: Accounts) -> Booked:
    """All that is booked for the users of these requests, a few questions in all."""
    requests_of: dict[int, int] = defaultdict(int)
    for request in requests:
        requests_of[request.user_id] += 1
    booked: dict[str, list[EntryRow]] = defaultdict(list)
    for user_id, count in requests_of.items():
        # At most a release and a consume for each, and the opening balances.
        for entry in accounts.entries(user_id=user_id, limit=2 * count + 100):
            if entry.kind in ("consume", "release"):
                booked[entry.entry_id].append(entry)
    return booked


def ending_of(entries: Sequence[EntryRow], told: Told) -> Ending:
    """How a request ended by its entries; a late consume charges though its hold had expired."""
    for entry in entries:
        if entry.kind == "consume":
            return Ending(Outcome.CONSUMED, entry.quota)
    if entries:
        return Ending(Outcome.EXPIRED if entries[0].expired else Outcome.REFUNDED, 0)
    # Only asked when no hold is open any more: a reservation without an answer then never was one.
    return Ending(Outcome.REFUSED if told in (Told.REFUSED, Told.UNANSWERED) else Outcome.OPEN, 0)


def endings_of(requests: Sequence[PlannedRequest], tally: Tally, booked: Booked) -> list[Ending]:
    """The ending of each request, in order."""
    return [
        ending_of(booked.get(tally.request_ids[index], ()), Told(tally.told[index])) for index in range(len(requests))
    ]


def differences(requests: Sequence[PlannedRequest], tally: Tally, booked: Booked) -> Iterator[str]:
    """A sentence for each request whose ledger entries are not what the gateway was told."""
    for index, request in enumerate(requests):
        request_id = tally.request_ids[index]
        entries = booked.get(request_id, ())
        told = Told(tally.told[index])
        wrong = _difference(request, told, tally.quota[index], bool(tally.late[index]), entries)
        if wrong:
            reason = f" ({tally.reason_of(index)})" if tally.reason[index] else ""
            yield f"row {request.row + 1}, request {request_id}: told {told.name.lower()}{reason}, but {wrong}"


def _difference(request: PlannedRequest, told: Told, quota: int, late: bool, entries: Sequence[EntryRow]) -> str | None:
    consumes = [entry for entry in entries if entry.kind == "consume"]
    releases = [entry for entry in entries if entry.kind == "release"]
    if len(consumes) > 1 or len(releases) > 1 or (consumes and releases and not late):
        return f"it ended {len(entries)} times"
    if any((entry.user_id, entry.token_id) != (request.user_id, request.token_id) for entry in entries):
        return "another account paid"
    match told:
        case Told.CONSUMED:
            return _not_charged_as_told(request, quota, consumes)
        case Told.REFUNDED | Told.HELD:
            if not releases or consumes:
                return "it was charged" if consumes else "nothing is booked"
            if releases[0].expired != (told is Told.HELD) and not late:
                return f"its hold was {'expired' if releases[0].expired else 'released'}"
        case Told.REFUSED:
            return "something is booked" if entries else None
        case Told.NOTHING:
            return "it was never sent"
        case Told.UNANSWERED:
            return "it was charged" if consumes else None
        case Told.UNCLEAR:
            return None if entries else "nothing is booked"
    return None


def _not_charged_as_told(request: PlannedRequest, quota: int, consumes: Sequence[EntryRow]) -> str | None:
    if not consumes:
        return "nothing is charged"
    entry = consumes[0]
    if entry.quota != quota:
        return f"{entry.quota} quota is charged instead of {quota}"
    booked = (entry.channel_id, entry.model_name, entry.prompt_tokens, entry.completion_tokens)
    meant = (request.channel_id, request.model, request.prompt_tokens, request.completion_tokens)
    return None if booked == meant else f"the ledger has {booked} instead of {meant}"
