"""Verify: the guarantees as code, over Redis and PostgreSQL. Reads only.

Redis is read before PostgreSQL, so that whatever Redis knew must be in
PostgreSQL by the time that is read; under running traffic nothing is reported
that is merely on its way.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from billing_tasks.holds.audit import CachedAccount, Snapshot, audit
from billing_tasks.holds.repairs import Repair
from billing_tasks.holds.store import HoldStore
from billing_tasks.ledger.store import Ledger

GUARANTEES = {
    1: "No overspend: nothing is granted beyond a quota",
    2: "Each consume accepted is booked once or kept",
    3: "Balances equal the sums of their entries",
    4: "Redis: counters equal their holds and events, copies equal PostgreSQL's rows",
    5: "A hold ends exactly once",
    6: "Loss is never silent: what may be missing is an incident",
}

#: Which guarantee a broken invariant of the ledger belongs to, by words of its name; 3 otherwise.
_BY_INVARIANT = {"below zero": 1, "a hold": 5}


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
        }


def check(*, holds: HoldStore, ledger: Ledger, sums: bool = True) -> Report:
    """Look at everything. Raises Unavailable if either server is away.

    `sums=False` leaves out what reads the whole ledger (guarantees 1, 3 and 5), which takes its time once it is large.
    """
    seen = audit(holds)
    report = Report(open_holds=seen.open_holds, backlog=seen.events)
    report.findings += [Finding(4, off.what, off.id, off.expected, off.actual, off.repair) for off in seen.off]
    _compare_accounts(seen, ledger, report)
    _compare_outboxes(seen, ledger, report)
    missing = ledger.count_missing()
    report.incidents, report.events_missing = missing.incidents, missing.events
    report.unjudged = seen.unjudged
    of_redis = {
        2: f"{sum(seq for _, seq in seen.epochs.values())} events of {len(seen.epochs)} outboxes",
        4: f"{len(seen.accounts)} account copies, {seen.open_holds} open holds, {seen.events} events waiting"
        + (f"; {seen.unjudged} not judged, their shard has too much waiting" if seen.unjudged else ""),
        6: f"{missing.incidents} incidents, {missing.events} events known to be missing",
    }
    report.checked = {**of_redis, **(_sums(ledger, report, seen) if sums else {})}
    return report


def _sums(ledger: Ledger, report: Report, seen: Snapshot) -> dict[int, str]:
    for broken in ledger.broken_invariants():
        report.findings.append(
            Finding(_guarantee_of(broken.what), broken.what, broken.id, broken.expected, broken.actual)
        )
    totals = ledger.totals()
    return {
        1: f"{totals.users} users, {totals.tokens} tokens",
        3: f"{totals.entries} ledger entries",
        5: f"{totals.entries} ledger entries, {seen.open_holds} open holds",
    }


def _guarantee_of(what: str) -> int:
    return next((number for word, number in _BY_INVARIANT.items() if word in what), 3)


def _compare_accounts(seen: Snapshot, ledger: Ledger, report: Report) -> None:
    """A cached account is a version that PostgreSQL had: never newer, and equal if the version is."""
    by_kind: dict[str, list[CachedAccount]] = defaultdict(list)
    for account in seen.accounts:
        if account.version is not None:
            by_kind[account.which].append(account)
    for which, accounts in by_kind.items():
        rows = ledger.balances(which, [account.id for account in accounts])
        for account in accounts:
            balance, version = rows.get(account.id, (0, -1))
            if account.version is not None and account.version > version:
                what = f"{which}.version in Redis"
                report.findings.append(Finding(4, what, str(account.id), version, account.version, account.forget))
            elif account.version == version and account.balance not in (None, balance):
                what = f"{which}.balance in Redis"
                report.findings.append(Finding(4, what, str(account.id), balance, account.balance or 0, account.forget))


def _compare_outboxes(seen: Snapshot, ledger: Ledger, report: Report) -> None:
    """Every number the outbox gave out is still in it or is covered by the ledger's cursor."""
    posted = {(cursor.shard, cursor.epoch): cursor.posted for cursor in ledger.outbox_cursors()}
    for shard, (epoch, seq) in seen.epochs.items():
        accounted = posted.get((shard, epoch), 0) + seen.in_outbox[shard, epoch]
        if accounted < seq:
            report.findings.append(Finding(2, "events of outbox", f"shard {shard}", seq, accounted))
