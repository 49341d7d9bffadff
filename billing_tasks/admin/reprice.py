"""Reprice: charges of a time priced once more, by the prices of now, for the day on which a wrong price is found.

Each difference is booked as a correction beside its charge, once per charge and price list. The factors of the charge
stay (its group's ratio, discounts): what was agreed with the customer was not the mistake, unless somebody says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from billing_tasks.admin.explain import list_of_entry, price_of_entry, usage_of
from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.account_cache import clock_of, push_accounts
from billing_tasks.flows.effects import InLedger
from billing_tasks.ledger.corrections import Corrected, Correction, CorrectOutcome
from billing_tasks.ledger.rows import EntryRow
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.priced import when_reserved
from billing_tasks.model.validation import check_text
from billing_tasks.pricing import Price, PriceList
from billing_tasks.runtime import Runtime

#: Charges that are read, and corrections that are booked, at once.
PAGE = 200


@dataclass(frozen=True, slots=True)
class Repriced:
    """What became of one charge."""

    request_id: str
    user_id: int
    model: str
    charged: int  # quota, as it was booked
    quota: int | None  # what it comes to now; None: it can't be priced anew, `outcome` says why
    outcome: str  # posted, duplicate, unchanged, refunded, would_change, or skipped: ...
    change: int = 0  # quota that was booked now, or would be, signed


@dataclass(slots=True)
class RepricedSum:
    """Of one model."""

    model: str
    charges: int = 0
    changed: int = 0
    skipped: int = 0
    more: int = 0  # quota that was charged now, or would be
    less: int = 0  # quota that was given back
    reasons: dict[str, int] = field(default_factory=dict)  # why charges were skipped

    def count(self, one: Repriced) -> None:
        """One more."""
        self.charges += 1
        if one.change:
            self.changed += 1
            self.more += max(one.change, 0)
            self.less += max(-one.change, 0)
        if one.quota is None:
            self.skipped += 1
            self.reasons[one.outcome] = self.reasons.get(one.outcome, 0) + 1


class Repricer:
    """Prices charges anew by one list."""

    def __init__(self, runtime: Runtime, prices: PriceList, *, with_factors: bool = False) -> None:
        self._runtime = runtime
        self._prices = prices
        self._with_factors = with_factors

    def charges(
        self,
        *,
        since: datetime,
        before: datetime | None,
        models: Sequence[str],
        user_id: int | None,
    ) -> Iterator[list[EntryRow]]:
        """Page by page."""
        after: str | None = None
        while True:
            page = self._runtime.ledger.charges(
                since=since, before=before, models=models, user_id=user_id, after=after, limit=PAGE
            )
            if page:
                yield page
            if len(page) < PAGE:
                return
            after = page[-1].entry_id

    def look(self, charge: EntryRow) -> Repriced:
        """What it comes to now; books nothing."""
        quota, why = self._quota_of(charge)
        outcome = f"skipped: {why}" if quota is None else "would_change" if quota != charge.quota else "unchanged"
        change = 0 if quota is None else quota - charge.quota
        return Repriced(
            charge.request_id or charge.entry_id,
            charge.user_id,
            charge.model_name,
            charge.quota,
            quota,
            outcome,
            change,
        )

    def book(self, looks: Sequence[Repriced], *, actor: str, comment: str) -> Iterator[Repriced]:
        """Correct what differs, in one transaction per shard. Raises Unavailable; repeating is safe."""
        shard_of = self._runtime.commands.keys.shard_of
        wanted = [one for one in looks if one.quota is not None and one.change]
        booked: dict[str, tuple[CorrectOutcome, int]] = {}
        for shard in sorted({shard_of(one.user_id) for one in wanted}):
            mine = [one for one in wanted if shard_of(one.user_id) == shard]
            asked = [
                Correction(one.request_id, one.user_id, one.quota or 0, self._prices.version, actor, comment)
                for one in mine
            ]
            answer = self._runtime.run(_corrected(shard, asked, self._runtime))
            booked |= {one.request_id: outcome for one, outcome in zip(mine, answer.outcomes, strict=True)}
        for one in looks:
            outcome, change = booked.get(one.request_id, (one.outcome, 0))
            yield replace(one, outcome=str(outcome), change=change)

    def _quota_of(self, charge: EntryRow) -> tuple[int | None, str]:
        if charge.details.get("usage_source") == "estimate":
            return None, "its usage is not known"
        try:
            usage = usage_of(charge)
            old = price_of_entry(charge, list_of_entry(self._runtime, charge))
            if old is None:
                return None, "the gateway said an amount"
            facts = charge.price.get("facts", {})
            request_id = charge.request_id or charge.entry_id
            if old.quota_of(usage, when_reserved(old, facts, request_id)) != charge.quota:
                return None, "the gateway said another amount than its prices"
            new = self._new_price(charge, old)
            return new.quota_of(usage, when_reserved(new, facts, request_id)), ""
        except InvalidRequest as exc:
            return None, exc.message

    def _new_price(self, charge: EntryRow, old: Price) -> Price:
        said = charge.price
        found = self._prices.price(
            model=charge.model_name,
            group=charge.group_name,
            user_group=said.get("user_group", ""),
            channel_type=said.get("channel_type"),
            channel_id=charge.channel_id,
            token_id=charge.token_id,
        )
        if self._with_factors:
            return found
        return replace(found, group_ratio=old.group_ratio, factors=old.factors)


async def _corrected(shard: int, asked: Sequence[Correction], runtime: Runtime) -> Corrected:
    """The accounts as they are then go into Redis."""
    commands = runtime.commands
    clocks = {one.user_id: await clock_of(one.user_id, commands) for one in asked}
    answer = await InLedger(Ledger.correct_charges, shard, asked)
    for user_id, clock in clocks.items():
        users = [row for row in answer.users if row.id == user_id]
        tokens = [row for row in answer.tokens if row.user_id == user_id]
        await push_accounts(clock, users=users, tokens=tokens, commands=commands)
    return answer


def reprice(
    runtime: Runtime,
    prices: PriceList,
    *,
    since: datetime,
    actor: str,
    before: datetime | None = None,
    models: Sequence[str] = (),
    user_id: int | None = None,
    comment: str = "",
    with_factors: bool = False,
    dry_run: bool = False,
) -> Iterator[Repriced]:
    """See Prices.reprice."""
    if not check_text("actor", actor, 200):
        raise InvalidRequest("actor must say who decides.")
    check_text("comment", comment, 2000)
    repricer = Repricer(runtime, prices, with_factors=with_factors)
    if not dry_run:
        runtime.ledger.store_price_list(prices)
    for page in repricer.charges(since=since, before=before, models=models, user_id=user_id):
        looks = [repricer.look(charge) for charge in page]
        yield from looks if dry_run else repricer.book(looks, actor=actor, comment=comment)
