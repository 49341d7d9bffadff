"""What PostgreSQL must hold: accounts, what was booked under which id, dead letters. Plain Python, no locks.

Answers are predicted when a transaction runs; the books change when it commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import PostedBatch, PostOutcome
from tests.simulator.claims import Claim, demand

Apply = Callable[[], None]
#: ("user" | "token", id)
Key = tuple[str, int]


@dataclass(slots=True)
class Account:
    """A user, or a token if it has an owner."""

    quota: int
    used: int = 0
    requests: int = 0
    status: str = "enabled"
    owner: int | None = None
    unlimited: bool = False


@dataclass(frozen=True, slots=True)
class Charge:
    """A booked consume."""

    user: int
    token: int
    quota: int
    held: int
    fingerprint: str
    channel: int
    transaction: int


@dataclass(frozen=True, slots=True)
class Given:
    """A booked refund."""

    request: str
    quota: int
    fingerprint: str


class Listener(Protocol):
    """What must know about commits: the oracle."""

    def charged(self, request: str, charge: Charge, versions: dict[Key, int]) -> None: ...
    def corrected(self, key: Key, change: int, version: int) -> None: ...


@dataclass(slots=True)
class Books:
    """The ledger as committed."""

    listener: Listener
    users: dict[int, Account] = field(default_factory=dict)
    tokens: dict[int, Account] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)
    releases: dict[str, tuple[str, int, bool, int]] = field(default_factory=dict)  # fingerprint, held, expired, when
    refunds: dict[str, Given] = field(default_factory=dict)
    dead_letters: dict[tuple[str, str, str], DeadLetterState] = field(
        default_factory=dict
    )  # kind, request, fingerprint
    own_ids: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    channels: Counter[tuple[int, int]] = field(default_factory=Counter)
    #: (quota, status) of every version that was ever committed
    versions: dict[Key, dict[int, tuple[int, str]]] = field(default_factory=dict)
    transactions: int = 0

    def copy(self) -> Books:
        """As they are now."""
        users = {user: replace(account) for user, account in self.users.items()}
        tokens = {token: replace(account) for token, account in self.tokens.items()}
        versions = {key: dict(known) for key, known in self.versions.items()}
        rest = {name: getattr(self, name).copy() for name in _COPIED}
        return replace(self, users=users, tokens=tokens, versions=versions, **rest)

    def restore(self, saved: Books) -> None:
        """Everything but the count of transactions, which orders them, is as it was."""
        copy = saved.copy()
        for name in (*_COPIED, "users", "tokens", "versions"):
            setattr(self, name, getattr(copy, name))

    def account(self, key: Key) -> Account:
        return (self.users if key[0] == "user" else self.tokens)[key[1]]

    def booked(self, event: Event) -> bool:
        """Whether the ledger has it, from a worker or from a gateway."""
        if event.kind is Kind.CONSUME:
            charge = self.charges.get(event.request_id)
            return charge is not None and charge.fingerprint == event.fingerprint
        if event.kind is Kind.RELEASE:
            charge = self.charges.get(event.request_id)
            booked = self.releases.get(event.request_id)
            return (charge is not None and charge.held > 0) or (booked is not None and booked[0] == event.fingerprint)
        given = self.refunds.get(event.refund_id)
        return (given is not None and given.fingerprint == event.fingerprint) or self._released_the_hold(event)

    def kept(self, event: Event) -> bool:
        return (str(event.kind), event.request_id, event.fingerprint) in self.dead_letters

    # -- consumes and releases ----------------------------------------------------------------------------

    def post(self, shard: int, batch: list[Event], answer: PostedBatch) -> Apply:
        """Compare the answer to a batch with the right one; what changes at its commit."""
        self.transactions += 1
        when = self.transactions
        charges: dict[str, Charge] = {}
        releases: dict[str, tuple[str, int, bool, int]] = {}
        released = {e.request_id for e in batch if e.kind is Kind.RELEASE} | self.releases.keys()
        right = []
        for event in batch:
            outcome = self._unknown(event)
            if outcome is None and event.kind is Kind.CONSUME:
                booked = self.charges.get(event.request_id) or charges.get(event.request_id)
                outcome = _again(booked.fingerprint if booked else None, event)
                if outcome is PostOutcome.POSTED:
                    held = 0 if event.request_id in released else event.held_quota
                    charges[event.request_id] = Charge(
                        event.user_id, event.token_id, event.quota, held, event.fingerprint, event.channel_id, when
                    )
            elif outcome is None:
                before = self.releases.get(event.request_id) or releases.get(event.request_id)
                charge = self.charges.get(event.request_id)
                outcome = _again(before[0] if before else None, event)
                if outcome is not PostOutcome.DUPLICATE and charge is not None and charge.held > 0:
                    outcome = PostOutcome.DUPLICATE  # the books know how this hold ended
                if outcome is PostOutcome.POSTED:
                    releases[event.request_id] = (event.fingerprint, event.quota, event.expired, when)
            right.append(outcome)
        said = [str(outcome) for outcome in answer.outcomes]
        detail = f"the ledger says {said} to {[(str(e.kind), e.request_id) for e in batch]}, right is {right}"
        demand(answer.outcomes == right, Claim.BOOKED_ONCE, detail)
        changes: Counter[Key] = Counter()
        requests: Counter[Key] = Counter()
        for charge in charges.values():
            for key in (("user", charge.user), ("token", charge.token)):
                changes[key] -= charge.quota
                requests[key] += 1
        versions = self._compare_rows(answer.users, answer.tokens, changes)

        def apply() -> None:
            for request, charge in charges.items():
                demand(request not in self.charges, Claim.BOOKED_ONCE, f"{request} is charged twice")
                demand(
                    charge.held == 0 or request not in self.releases, Claim.HOLD_ENDS_ONCE, f"{request} was released"
                )
                self.charges[request] = charge
                if charge.channel:
                    self.channels[charge.channel, shard] += charge.quota
            for request, release in releases.items():
                ended = self.charges.get(request)
                demand(ended is None or ended.held == 0, Claim.HOLD_ENDS_ONCE, f"{request} was consumed")
                self.releases[request] = release
            for key, change in changes.items():
                account = self.account(key)
                account.quota += change
                account.used -= change
                account.requests += requests[key]
            self._note(answer.users, answer.tokens)
            for request, charge in charges.items():
                keys: tuple[Key, Key] = ("user", charge.user), ("token", charge.token)
                self.listener.charged(request, charge, {key: versions[key] for key in keys})

        return apply

    def post_one(self, shard: int, event: Event, answer: PostedBatch) -> Apply:
        """A batch of one."""
        return self.post(shard, [event], answer)

    def _unknown(self, event: Event) -> PostOutcome | None:
        if event.user_id not in self.users:
            return PostOutcome.UNKNOWN_USER
        token = self.tokens.get(event.token_id)
        return None if token is not None and token.owner == event.user_id else PostOutcome.UNKNOWN_TOKEN

    # -- refunds ------------------------------------------------------------------------------------------

    def refund(self, shard: int, event: Event, answer: PostedBatch) -> Apply:
        """The same for one refund."""
        self.transactions += 1
        right, amount = self._right_refund(event)
        charge = self.charges.get(event.request_id)
        which = f"refund {event.refund_id} of {event.request_id}"
        detail = f"the ledger says {answer.outcomes} to {which}, right is {right}"
        demand(answer.outcomes == [right], Claim.REFUNDS_WITHIN_CHARGE, detail)
        changes: Counter[Key] = Counter()
        if right is PostOutcome.POSTED and charge is not None:
            changes.update({("user", charge.user): amount, ("token", charge.token): amount})
        self._compare_rows(answer.users, answer.tokens, changes)

        def apply() -> None:
            if right is PostOutcome.POSTED and charge is not None:
                demand(event.refund_id not in self.refunds, Claim.REFUNDS_WITHIN_CHARGE, f"{event.refund_id} twice")
                self.refunds[event.refund_id] = Given(event.request_id, amount, event.fingerprint)
                left = charge.quota - self._refunded(event.request_id)
                demand(left >= 0, Claim.REFUNDS_WITHIN_CHARGE, f"{event.request_id}: {-left} more than was charged")
                if charge.channel:
                    self.channels[charge.channel, shard] -= amount
            for key, change in changes.items():
                self.account(key).quota += change
                self.account(key).used -= change
            self._note(answer.users, answer.tokens)

        return apply

    def _right_refund(self, event: Event) -> tuple[PostOutcome, int]:
        if event.user_id not in self.users:
            return PostOutcome.UNKNOWN_USER, 0
        charge = self.charges.get(event.request_id)
        if charge is None:
            return PostOutcome.NO_CHARGE, 0
        if self._released_the_hold(event):
            return PostOutcome.DUPLICATE, 0
        if charge.user != event.user_id:
            return PostOutcome.CONFLICT, 0
        booked = self.refunds.get(event.refund_id)
        if booked is not None:
            same = booked.fingerprint == event.fingerprint and booked.request == event.request_id
            return (PostOutcome.DUPLICATE if same else PostOutcome.CONFLICT), 0
        left = charge.quota - self._refunded(event.request_id)
        amount = left if event.whole else event.quota
        return (PostOutcome.ABOVE_CHARGE, 0) if amount > left or left == 0 else (PostOutcome.POSTED, amount)

    def _released_the_hold(self, event: Event) -> bool:
        """The request's one default refund released its hold before the usage was booked."""
        release, charge = self.releases.get(event.request_id), self.charges.get(event.request_id)
        if event.refund_id != f"refund:{event.request_id}" or release is None or charge is None:
            return False
        _, _, expired, when = release
        return not expired and when <= charge.transaction

    def _refunded(self, request: str) -> int:
        return sum(given.quota for given in self.refunds.values() if given.request == request)

    # -- operators and dead letters ----------------------------------------------------------------------------

    def change(self, key: Key, change: int, own_id: str | None, row: UserRow | TokenRow, new: bool) -> Apply:
        """A top-up, a correction or an edit in plain SQL (without an id)."""
        if own_id is not None:
            demand(new == (own_id not in self.own_ids), Claim.BOOKED_ONCE, f"{own_id} is new: {new}")
        changes: Counter[Key] = Counter({key: change if new else 0})
        versions = self._compare_rows(*_one(row), changes)

        def apply() -> None:
            if new:
                if own_id is not None:
                    self.own_ids[own_id] = (key[0], key[1], change)
                self.account(key).quota += change
            self._note(*_one(row))
            if new and change < 0:
                self.listener.corrected(key, change, versions[key])

        return apply

    def set_status(self, key: Key, status: str, row: UserRow | TokenRow) -> Apply:
        def apply() -> None:
            self.account(key).status = status
            self._note(*_one(row))

        return apply

    def keep(self, key: tuple[str, str, str], state: DeadLetterState) -> Apply:
        def apply() -> None:
            self.dead_letters.setdefault(key, state)

        return apply

    def mark(self, key: tuple[str, str, str], state: DeadLetterState) -> Apply:
        def apply() -> None:
            self.dead_letters[key] = state

        return apply

    # -- rows ---------------------------------------------------------------------------------------------

    def read(self, users: Iterable[UserRow | None], tokens: Iterable[TokenRow | None]) -> None:
        """Rows that were read outside any change: they are what is committed."""
        self._compare_rows([row for row in users if row], [row for row in tokens if row], Counter())

    def _compare_rows(
        self, users: Iterable[UserRow], tokens: Iterable[TokenRow], changes: Counter[Key]
    ) -> dict[Key, int]:
        versions: dict[Key, int] = {}
        found: list[tuple[Key, Any]] = [(("user", u.id), u.quota) for u in users]
        found += [(("token", t.id), t.remain_quota) for t in tokens]
        for row in (*users, *tokens):
            versions["user" if isinstance(row, UserRow) else "token", row.id] = row.version
        for key, quota in found:
            right = self.account(key).quota + changes[key]
            demand(quota == right, Claim.BALANCES, f"PostgreSQL answers {quota} for {key}, right is {right}")
        return versions

    def _note(self, users: Iterable[UserRow], tokens: Iterable[TokenRow]) -> None:
        for user in users:
            self.versions.setdefault(("user", user.id), {})[user.version] = (user.quota, user.status)
        for token in tokens:
            self.versions.setdefault(("token", token.id), {})[token.version] = (token.remain_quota, token.status)


_COPIED = ("charges", "releases", "refunds", "dead_letters", "own_ids", "channels")


def _again(fingerprint: str | None, event: Event) -> PostOutcome:
    if fingerprint is None:
        return PostOutcome.POSTED
    return PostOutcome.DUPLICATE if fingerprint == event.fingerprint else PostOutcome.CONFLICT


def _one(row: UserRow | TokenRow) -> tuple[list[UserRow], list[TokenRow]]:
    return ([row], []) if isinstance(row, UserRow) else ([], [row])
