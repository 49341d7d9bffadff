"""Judge: what the gateways were told beside what the books say. Whatever differs is a finding that names its ids.

    lost       told accepted, and not booked (an open dead letter is no loss: it is counted apart);
               or more on an account than its own entries explain
    twice      charged beyond what the gateways meant to charge, each request once
    leaked     quota that Redis still sets aside when nothing is open any more
    overspent  an account below zero although no usage exceeded its hold
    strange    an answer that no gateway should get

Pure: journals and books in, verdict out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.books import Books, CachedAccount, Entry, Row
from chaos.excuses import meet, told_by_incidents
from chaos.findings import Finding, Wrong
from chaos.restore import Restored
from chaos.running import late_requests, lowest_points
from chaos.stories import Refund, Request, Stories


@dataclass(frozen=True, slots=True)
class Unclear:
    """Calls without an answer, of one kind, and how many of them were booked all the same. Either is right."""

    calls: int = 0
    booked: int = 0


@dataclass(slots=True)
class Verdict:
    """What the judge found."""

    findings: list[Finding] = field(default_factory=list)
    unclear: dict[str, Unclear] = field(default_factory=dict)
    charged_requests: int = 0
    charged_quota: int = 0
    late_requests: int = 0
    late_quota: int = 0
    dead_letters_still_open: Counter[str] = field(default_factory=Counter)  # by kind and reason
    told_and_in_dead_letters: int = 0  # accepted, and kept as an open dead letter
    known_lost: list[Finding] = field(default_factory=list)  # gone, and an incident says so

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.findings

    def count(self, wrong: Wrong) -> int:
        """How many requests, or accounts, this is wrong with."""
        return len({one for finding in self.findings if finding.wrong is wrong for one in finding.ids})

    def quota(self, wrong: Wrong) -> int:
        """How much quota is wrong in this way."""
        return sum(finding.quota for finding in self.findings if finding.wrong is wrong)


@dataclass(slots=True)
class _Evidence:
    """The books, sorted for the judge."""

    stories: Stories
    books: Books
    consumed: dict[str, Entry] = field(default_factory=dict)
    released: dict[str, Entry] = field(default_factory=dict)
    kept_consumes: set[str] = field(default_factory=set)  # request_ids in open dead letters
    kept_refunds: set[str] = field(default_factory=set)  # refund_ids in open dead letters
    kept_releases: set[str] = field(default_factory=set)


def judge(
    stories: Stories, books: Books, *, gaps: Sequence[tuple[int, int]] = (), restores: Sequence[Restored] = ()
) -> Verdict:
    """Everything, in one go.

    `gaps`: from when to when, in milliseconds, Redis was written to and forgot it; `restores`: when PostgreSQL was.
    """
    evidence = _sort(stories, books)
    verdict = Verdict()
    verdict.dead_letters_still_open = Counter(
        f"{dead_letter.kind}: {dead_letter.reason}, {dead_letter.state}" for dead_letter in books.dead_letters
    )
    for judged in (
        *(_consumes(evidence, verdict), _releases(evidence, verdict), _refunds(evidence, verdict)),
        *(
            _top_ups(evidence),
            _strangers(evidence),
            _balances(evidence),
            _leaks(books),
            _overspent(evidence, verdict, [*gaps, *((one.from_ms, one.known_ms) for one in restores)]),
        ),
        (Finding(Wrong.STRANGE, 0, (where,), answer) for where, answer in stories.unexpected),
    ):
        verdict.findings += judged
    verdict.findings, verdict.known_lost = told_by_incidents(verdict.findings, books.losses, gaps, restores)
    _count_unclear(evidence, verdict)
    return verdict


def _sort(stories: Stories, books: Books) -> _Evidence:
    evidence = _Evidence(stories, books)
    for entry in books.entries:
        if entry.kind == "consume":
            evidence.consumed.setdefault(entry.entry_id, entry)
        elif entry.kind == "release":
            evidence.released.setdefault(entry.entry_id, entry)
    for dead_letter in books.dead_letters:
        if dead_letter.refund_id:
            evidence.kept_refunds.add(dead_letter.refund_id)
        elif dead_letter.kind == "release":
            evidence.kept_releases.add(dead_letter.request_id)
        else:
            evidence.kept_consumes.add(dead_letter.request_id)
    return evidence


def _consumes(evidence: _Evidence, verdict: Verdict) -> Iterator[Finding]:
    for request_id, request in evidence.stories.requests.items():
        entry = evidence.consumed.get(request_id)
        if entry is not None:
            verdict.charged_requests += 1
            verdict.charged_quota += entry.quota
            yield from _charge(request_id, request, entry)
        elif request.consumed and request_id in evidence.kept_consumes:
            verdict.told_and_in_dead_letters += 1
        elif request.consumed:
            sentence = "the usage was accepted and is not in the ledger"
            straight_ms = request.ended_ms if request.posted else 0
            yield Finding(Wrong.LOST, request.told_quota, (request_id,), sentence, request.filed_ms, straight_ms)


def _charge(request_id: str, request: Request, entry: Entry) -> Iterator[Finding]:
    """A charge must be the one that was meant: this user's and token's, this much."""
    if request.consume_quota is None:
        told = "released" if request.released else request.told or "nothing"
        yield Finding(Wrong.TWICE, entry.quota, (request_id,), f"charged, but its gateway was told {told}")
        return
    if (entry.user_id, entry.token_id) != (request.user_id, request.token_id):
        payers = f"user {entry.user_id}, token {entry.token_id}"
        yield Finding(Wrong.TWICE, entry.quota, (request_id,), f"charged to {payers}, which did not ask for it")
    more = entry.quota - request.consume_quota
    if more:
        sentence = f"{request.consume_quota:,} was used and {entry.quota:,} charged"
        yield Finding(Wrong.TWICE if more > 0 else Wrong.LOST, abs(more), (request_id,), sentence)


def _releases(evidence: _Evidence, verdict: Verdict) -> Iterator[Finding]:
    for request_id, request in evidence.stories.requests.items():
        if request.released and request_id not in evidence.released:
            if request_id in evidence.kept_releases:
                verdict.told_and_in_dead_letters += 1
                continue
            sentence = "the hold was told released and the ledger has no release"
            yield Finding(Wrong.LOST, request.held_quota, (request_id,), sentence, request.filed_ms)


def _refunds(evidence: _Evidence, verdict: Verdict) -> Iterator[Finding]:
    refunded: dict[str, int] = defaultdict(int)
    for booked in evidence.books.refunds.values():
        refunded[booked.request_id] += booked.quota
    for refund in evidence.stories.refunds.values():
        found = evidence.books.refunds.get(refund.refund_id)
        if found is not None:
            others = refunded[refund.request_id] - found.quota
            meant = refund.quota or _charged(evidence, refund) - others
            if found.quota != meant:
                sentence = f"{meant:,} was to be given back and {found.quota:,} was"
                wrong = Wrong.LOST if found.quota > meant else Wrong.TWICE
                yield Finding(wrong, abs(found.quota - meant), (refund.request_id,), sentence)
        elif refund.told and refund.refund_id in evidence.kept_refunds:
            verdict.told_and_in_dead_letters += 1
        elif refund.told:
            quota = refund.quota or _charged(evidence, refund)
            sentence = f"refund {refund.refund_id} was accepted and is not in the ledger"
            yield Finding(
                Wrong.LOST, quota, (refund.request_id,), sentence, (refund.told_ms, 2**62)
            )  # perhaps by way of a spool
    for request_id, quota in refunded.items():
        charged = evidence.consumed[request_id].quota if request_id in evidence.consumed else 0
        if quota > charged:
            yield Finding(Wrong.LOST, quota - charged, (request_id,), "more was refunded than charged")


def _charged(evidence: _Evidence, refund: Refund) -> int:
    entry = evidence.consumed.get(refund.request_id)
    return entry.quota if entry else 0


def _top_ups(evidence: _Evidence) -> Iterator[Finding]:
    for own_id, meant in evidence.stories.top_ups.items():
        found = evidence.books.top_ups.get(own_id)
        if found is None:
            if meant.told:
                sentence = "a top-up was told booked and is not in the ledger"
                yield Finding(Wrong.LOST, meant.quota, (own_id,), sentence, straight_ms=meant.told_ms)
        elif found.quota != meant.quota:
            sentence = f"a top-up of {meant.quota:,} was booked as {found.quota:,}"
            wrong = Wrong.TWICE if found.quota < meant.quota else Wrong.LOST
            yield Finding(wrong, abs(found.quota - meant.quota), (own_id,), sentence)


def _strangers(evidence: _Evidence) -> Iterator[Finding]:
    """Entries that no gateway meant."""
    stories = evidence.stories
    explained = {row.entry_id for rows in (evidence.books.refunds, evidence.books.top_ups) for row in rows.values()}
    for entry in evidence.books.entries:
        ids = (entry.request_id or entry.entry_id,)
        if entry.kind in ("consume", "release"):
            if entry.entry_id not in stories.requests:
                yield Finding(Wrong.TWICE, entry.quota, ids, f"a {entry.kind} that no gateway asked for")
        elif entry.kind != "opening" and entry.entry_id not in explained:
            change = entry.user_quota or entry.token_quota
            wrong = Wrong.TWICE if change < 0 else Wrong.LOST
            yield Finding(wrong, abs(change), ids, f"a {entry.kind} of {change:,} that no gateway asked for")
    for refund_id, refund in evidence.books.refunds.items():
        if refund_id not in stories.refunds:
            yield Finding(Wrong.LOST, refund.quota, (refund.request_id,), f"refund {refund_id} was never asked for")
    for own_id, top_up in evidence.books.top_ups.items():
        if own_id not in stories.top_ups:
            yield Finding(Wrong.LOST, top_up.quota, (own_id,), "a top-up that no gateway paid in")


def _balances(evidence: _Evidence) -> Iterator[Finding]:
    """Every account has what its own entries make, each entry counted once."""
    user_sums: Counter[int] = Counter()
    token_sums: Counter[int] = Counter()
    requests_of: dict[tuple[str, int], list[str]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for entry in evidence.books.entries:
        twice = (entry.entry_id, entry.kind) in seen
        seen.add((entry.entry_id, entry.kind))
        if not twice:
            user_sums[entry.user_id] += entry.user_quota
            token_sums[entry.token_id or 0] += entry.token_quota
        for account in (("user", entry.user_id), ("token", entry.token_id or 0)):
            if twice:
                requests_of[account].append(entry.request_id or entry.entry_id)
        yield from _change(entry)
    for which, rows, sums in (("user", evidence.books.users, user_sums), ("token", evidence.books.tokens, token_sums)):
        for number, row in rows.items():
            more = row.balance - sums[number]
            if more:
                ids = tuple(requests_of[which, number]) or (f"{which} {number}",)
                sentence = f"{which} {number} has {row.balance:,}, and its entries make {sums[number]:,}"
                yield Finding(Wrong.LOST if more > 0 else Wrong.TWICE, abs(more), ids, sentence)


def _change(entry: Entry) -> Iterator[Finding]:
    """A charge takes its quota from both accounts, a refund gives it back to both, a release changes nothing."""
    sign = {"consume": -1, "refund": 1, "release": 0}.get(entry.kind)
    if sign is not None and (entry.user_quota, entry.token_quota) != (sign * entry.quota, sign * entry.quota):
        more = max(abs(change - sign * entry.quota) for change in (entry.user_quota, entry.token_quota))
        sentence = f"a {entry.kind} of {entry.quota:,} changed its accounts by another amount"
        yield Finding(Wrong.TWICE, more, (entry.request_id or entry.entry_id,), sentence)


def _leaks(books: Books) -> Iterator[Finding]:
    explained: set[tuple[str, int]] = set()
    for request_id, (user_id, token_id, quota) in books.holds.items():
        explained |= {("user", user_id), ("token", token_id)}
        yield Finding(Wrong.LEAKED, quota, (request_id,), f"a hold of user {user_id} is still open")
    for which, rows, cached in (
        ("user", books.users, books.cached_users),
        ("token", books.tokens, books.cached_tokens),
    ):
        for account in rows.keys() & cached.keys():
            if (which, account) not in explained:
                yield from _leaked(which, account, rows[account], cached[account])


def _leaked(which: str, account: int, row: Row, cached: CachedAccount) -> Iterator[Finding]:
    ids = (f"{which} {account}",)
    for name, quota in (("held", cached.held), ("unposted", cached.unposted)):
        if quota:
            yield Finding(Wrong.LEAKED, abs(quota), ids, f"{name} is {quota:,} and nothing is open")
    if cached.version is None or cached.balance is None:
        return  # it is loaded before it is used
    if cached.version > row.version or (cached.version == row.version and cached.balance != row.balance):
        sentence = (
            f"Redis has {cached.balance:,} as version {cached.version}, PostgreSQL {row.balance:,} as {row.version}"
        )
        yield Finding(Wrong.LEAKED, abs(cached.balance - row.balance), ids, sentence)


def _overspent(evidence: _Evidence, verdict: Verdict, gaps: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    late = late_requests(evidence.stories, evidence.consumed, evidence.released)
    verdict.late_requests, verdict.late_quota = len(late), sum(evidence.consumed[one].quota for one in late)
    for point in lowest_points(evidence.books, late | _forgotten_holds(evidence, gaps)):
        sentence = f"{point.which} {point.account} was at {point.balance:,}, {point.excused:,} of it by late usage"
        yield Finding(Wrong.OVERSPENT, -point.balance - point.excused, point.request_ids, sentence)


def _forgotten_holds(evidence: _Evidence, gaps: Sequence[tuple[int, int]]) -> frozenset[str]:
    """Charged requests whose hold was made in a gap.

    The Redis of now knew of none, and may have granted it again; or it was granted by what PostgreSQL had before it
    came back older.
    """
    asked = evidence.stories.requests
    return frozenset(
        request_id
        for request_id in evidence.consumed
        if request_id in asked
        and any(meet((asked[request_id].told_ms, asked[request_id].told_ms), gap) for gap in gaps)
    )


def _count_unclear(evidence: _Evidence, verdict: Verdict) -> None:
    stories, books = evidence.stories, evidence.books
    calls: Mapping[str, list[bool]] = {
        "reserve": [
            r in evidence.consumed or r in evidence.released for r, q in stories.requests.items() if not q.told
        ],
        "consume": [
            r in evidence.consumed
            for r, q in stories.requests.items()
            if q.consume_quota is not None and not q.consumed
        ],
        "refund before the charge": [
            r in evidence.released
            for r, q in stories.requests.items()
            if q.release and not q.released and not q.by_message
        ],
        "the same, by message": [r in evidence.released for r, q in stories.requests.items() if q.by_message],
        "refund of a charge": [r in books.refunds for r, q in stories.refunds.items() if not q.told],
        "top-up": [t in books.top_ups for t, q in stories.top_ups.items() if not q.told],
    }
    verdict.unclear = {name: Unclear(len(booked), sum(booked)) for name, booked in calls.items()}
