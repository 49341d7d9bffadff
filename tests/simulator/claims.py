"""What a history may violate. The text of a claim is what a failure, and the table of mutants, prints."""

from __future__ import annotations

from enum import StrEnum


class Claim(StrEnum):
    """What must be true, in the words of a reader of the failure."""

    NO_OVERSPEND = "what is granted is within what is truly available"
    BOOKED_ONCE = "each request is booked at most once per kind, with the quota accepted"
    BOOKED_OR_KEPT = "what leaves an outbox is booked or kept as a dead letter"
    NOTHING_VANISHES = "what was accepted is booked, kept, or was destroyed by an accident"
    LOSS_IS_RECORDED = "destroyed events of a known outbox leave an incident"
    NO_FALSE_ALARM = "no incident without an accident"
    REFUNDS_WITHIN_CHARGE = "refunds never exceed their charge"
    BALANCES = "balances are what the entries make them"
    COUNTERS = "held is the sum of open holds, unposted the sum of weights"
    CACHE = "a cached account is a version that PostgreSQL had, and no older than what was settled"
    ANSWERS = "a server answers what its state calls for"
    HOLD_ENDS_ONCE = "a hold ends exactly once"
    ALL_RESERVABLE = "after the storm exactly what is available can be reserved"
    SETTLES = "after the storm everything drains"
    NO_CRASH = "no flow ends in an error that is not of the tree"


class Violation(AssertionError):
    """A claim that did not hold."""

    def __init__(self, claim: Claim, detail: str) -> None:
        super().__init__(f"{claim}: {detail}")
        self.claim = claim
        self.detail = detail


def demand(true: bool, claim: Claim, detail: str) -> None:
    """Raise unless it is true. Build costly details where it is called."""
    if not true:
        raise Violation(claim, detail)
