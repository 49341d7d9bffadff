"""Verify: the guarantees as code, over Redis and PostgreSQL. Reads only.

Redis is read before PostgreSQL, so that whatever Redis knew must be in
PostgreSQL by the time that is read; under running traffic nothing is reported
that is merely on its way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from billing_tasks.flows.audit.answers import Finding, Report
from billing_tasks.holds.audit import CachedAccount, Snapshot, audit
from billing_tasks.holds.commands import together
from billing_tasks.holds.store import HoldStore
from billing_tasks.ledger.store import Ledger

#: Which guarantee a broken invariant of the ledger belongs to, by words of its name; 3 otherwise.
_BY_INVARIANT = {"below zero": 1, "a hold": 5}


def check(*, holds: HoldStore, ledger: Ledger, sums: bool = True) -> Report:
    """Look at everything. Raises Unavailable if either server is away.

    `sums=False` leaves out what reads the whole ledger (guarantees 1, 3 and 5), which takes its time once it is large.
    """
    seen = audit(holds)
    report = Report(open_holds=seen.open_holds, backlog=seen.events)
    report.findings += [Finding(4, off.what, off.id, off.expected, off.actual, off.repair) for off in seen.off]
    _compare_accounts(seen, ledger, report)
    _compare_outboxes(seen, ledger, report)
    _compare_cursors(holds, ledger, report)
    missing = ledger.count_missing()
    report.incidents, report.events_missing = missing.incidents, missing.events
    report.unjudged = seen.unjudged
    of_redis = {
        2: f"{sum(seq for _, seq in seen.epochs.values())} events of {len(seen.epochs)} outboxes",
        4: f"{len(seen.accounts)} cached accounts, {seen.open_holds} open holds, {seen.events} events waiting"
        + (f"; {seen.unjudged} not judged, their shard has too much waiting" if seen.unjudged else ""),
        6: f"{missing.incidents} incident{'s'[: missing.incidents != 1]}, {missing.events} events known to be missing",
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
    """Every number that an outbox gave out is still in it, or a posting or an incident accounts for it."""
    told: dict[tuple[int, int], int] = {(shard, epoch): seq for shard, (epoch, seq) in seen.epochs.items() if epoch}
    cursors = {(cursor.shard, cursor.epoch): cursor for cursor in ledger.outbox_cursors()}
    for key, cursor in cursors.items():
        told[key] = max(told.get(key, 0), cursor.seen)
        highest = max((last for _, last in cursor.accounted), default=0)
        if not highest == cursor.posted <= cursor.seen:
            of = f"shard {cursor.shard}, epoch {cursor.epoch}"
            report.findings.append(Finding(2, "cursor of outbox", of, highest, cursor.posted))
    lost = ledger.lost_numbers()
    for (shard, epoch), seq in told.items():
        known = cursors.get((shard, epoch))
        numbers = [*(known.accounted if known else ()), *lost.get((shard, epoch), ()), *seen.in_outbox[shard, epoch]]
        accounted = _count(numbers, seq)
        if accounted < seq:
            report.findings.append(Finding(2, "events of outbox", f"shard {shard}, epoch {epoch}", seq, accounted))


def _compare_cursors(holds: HoldStore, ledger: Ledger, report: Report) -> None:
    """No cursor knows of numbers that its outbox has not given out: later events would count as booked already."""
    highest = {(cursor.shard, cursor.epoch): cursor.seen for cursor in ledger.outbox_cursors()}
    # After the cursors, which may have moved on since the first look at Redis.
    commands = holds.commands
    shards = range(commands.keys.shards)
    for shard, state in zip(shards, holds.send_all(together([commands.epoch(s) for s in shards])), strict=True):
        seen = highest.get((shard, state.epoch), 0)
        if (
            seen > state.seq
            and not _went_back(ledger, shard, state.epoch)
            and not _restarted(holds, shard, state.epoch)
        ):
            of = f"shard {shard}, epoch {state.epoch}"
            report.findings.append(Finding(2, "cursor of outbox", of, state.seq, seen))


def _went_back(ledger: Ledger, shard: int, epoch: int) -> bool:
    """True if an incident says that the outbox's numbers began again below what was posted."""
    return any(one.kind == "rewind" and one.of_epoch == epoch for one in ledger.incidents(shard=shard))


def _restarted(holds: HoldStore, shard: int, epoch: int) -> bool:
    """True if the server came back older, and no script has run since: the next one numbers from 1 in a new epoch."""
    holds.send(holds.commands.notice_restart(shard))
    return holds.send(holds.commands.epoch(shard)).epoch != epoch


def _count(numbers: Iterable[tuple[int, int]], up_to: int) -> int:
    """How many of the numbers from 1 to `up_to` lie in one of these ranges."""
    counted, done = 0, 0
    for first, last in sorted(numbers):
        last = min(last, up_to)  # noqa: PLW2901
        if last > done:
            counted += last - max(first - 1, done)
            done = last
    return counted
