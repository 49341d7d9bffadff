"""What these stories answer with, and the guarantees they look at. Data: loads no server's library."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from billing_tasks.holds.repairs import Repair

GUARANTEES = {
    1: "No overspend: nothing is granted beyond a quota",
    2: "Each consume accepted is booked once or kept",
    3: "Balances equal the sums of their entries",
    4: "Redis: counters equal holds and events, cached rows equal PostgreSQL's",
    5: "A hold ends exactly once",
    6: "Loss is never silent: what may be missing is an incident",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is off."""

    guarantee: int
    what: str
    id: str
    expected: int
    actual: int
    repair: Repair | None = None  # what `reconcile` may do about it; None: a person has to look

    def __str__(self) -> str:
        return (
            f"guarantee {self.guarantee} is broken: {self.what} of {self.id} is {self.actual}, expected {self.expected}"
        )


@dataclass(frozen=True, slots=True)
class SetupWarning:
    """A setting of a server under which the guarantees don't hold."""

    code: str  # as metrics and BILLING_ACCEPTED_WARNINGS name it
    what: str  # what is set, and what it may cost
    do: str  # what cures it

    def __str__(self) -> str:
        return f"{self.what} {self.do}. ({self.code})"


@dataclass(slots=True)
class Report:
    """What was looked at and what was found."""

    checked: dict[int, str] = field(default_factory=dict)  # guarantee -> what was looked at
    findings: list[Finding] = field(default_factory=list)
    incidents: int = 0
    unjudged: int = 0  # accounts that could not be judged while their shard has a long backlog
    events_missing: int = 0  # at least; over all incidents
    open_holds: int = 0
    backlog: int = 0
    warnings: list[SetupWarning] = field(default_factory=list)  # settings of the servers; no guarantee is broken yet

    @property
    def ok(self) -> bool:
        """True if every guarantee holds."""
        return not self.findings

    def as_dict(self) -> dict[str, object]:
        """For --json and for Flower."""
        return {
            "ok": self.ok,
            "checked": {str(number): text for number, text in self.checked.items()},
            "findings": [
                {"guarantee": f.guarantee, "what": f.what, "id": f.id, "expected": f.expected, "actual": f.actual}
                for f in self.findings
            ],
            "incidents": self.incidents,
            "events_missing": self.events_missing,
            "unjudged": self.unjudged,
            "open_holds": self.open_holds,
            "backlog": self.backlog,
            "warnings": [asdict(warning) for warning in self.warnings],
        }


@dataclass(frozen=True, slots=True)
class Watched:
    """All shards together; `oldest_ms` is how long the oldest event has waited."""

    backlog: int
    open_holds: int
    oldest_ms: int
    longest_shard: int  # the shard with most events
    unanswered_rings: int = 0  # the most calls for one shard that no worker has taken
    next_try_ms: int | None = None  # until the first drainer that failed tries again; None: none waits


@dataclass(frozen=True, slots=True)
class Behind:
    """Whose events a backlog is made of."""

    user_id: int
    events: int
    quota: int  # that they wait to charge
    oldest_ms: int  # how long the first of them has waited
