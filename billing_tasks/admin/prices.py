"""Prices: what operators set in PostgreSQL, and what a list of prices says. Gateways follow within two seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing_tasks.admin.explain import stored_list
from billing_tasks.admin.reprice import Repriced, reprice
from billing_tasks.errors import BadRatios, InvalidRequest
from billing_tasks.ledger.estimates import EstimateRow
from billing_tasks.ledger.rows import PriceChange
from billing_tasks.model.validation import check_text
from billing_tasks.pricing import Price, PriceBook, PriceList, check_change
from billing_tasks.pricing.check import Doubt, doubts
from billing_tasks.pricing.tables import RatioTables, parse_tables
from billing_tasks.runtime import Runtime


@dataclass(frozen=True, slots=True)
class PriceSet:
    """What became of one change."""

    kind: str
    name: str
    id: int  # of the change
    made: bool  # False: it was so already


@dataclass(frozen=True, slots=True)
class PriceDifference:
    """What one name costs in two lists; None: it has no price there."""

    name: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


class Prices:
    """Sets prices and looks at them. Methods raise Unavailable if PostgreSQL is away."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def current(self) -> PriceList:
        """The prices that count now: the catalogue, the ratios file of this machine, and what is set in PostgreSQL.

        Raises BadRatios if the file can't be used.
        """
        book = PriceBook(**self._runtime.settings.price_book)
        book.take_changes(self._runtime.ledger.price_changes())
        return book.prices

    def show(
        self,
        model: str,
        *,
        group: str = "default",
        user_group: str = "",
        channel_type: int | None = None,
        channel_id: int | None = None,
        token_id: int | None = None,
    ) -> Price:
        """The price of a model now, asked for as by Bookkeeper.price. Raises UnknownModel, InvalidRequest."""
        return self.current().price(
            model=model,
            group=group,
            user_group=user_group,
            channel_type=channel_type,
            channel_id=channel_id,
            token_id=token_id,
        )

    def set(
        self, kind: str, name: str, body: Any, *, actor: str, comment: str = "", valid_from: datetime | None = None
    ) -> PriceSet:
        """Set a price from a moment on, by default at once. Set once more as it is, it changes nothing.

        `kind`: model (`body` is a sheet), group (a ratio as text), group_for (groups and ratios, for users of group
        `name`), alias (the name whose price it has), factor or cost (a rule). Raises InvalidRequest for a body that
        can't be used, or a moment that is past.
        """
        check_change(kind, name, body)
        if not check_text("actor", actor, 200):
            raise InvalidRequest("actor must say who decides.")
        check_text("comment", comment, 2000)
        if valid_from is not None and valid_from.tzinfo is None:
            raise InvalidRequest("valid_from must say its time zone.")
        number, made = self._runtime.ledger.change_price(
            kind, name, body, actor=actor, comment=comment, valid_from=valid_from
        )
        return PriceSet(kind, name, number, made)

    def take_back(
        self, kind: str, name: str, *, actor: str, comment: str = "", valid_from: datetime | None = None
    ) -> PriceSet:
        """What was set counts no more from then on; the file or the catalogue does again. Raises as `set`."""
        return self.set(kind, name, None, actor=actor, comment=comment, valid_from=valid_from)

    def history(self, *, kind: str | None = None, name: str | None = None) -> list[PriceChange]:
        """Every change that was ever made, the latest first."""
        return self._runtime.ledger.price_history(kind=kind, name=name)

    def import_toml(
        self, text: str, *, actor: str, comment: str = "", valid_from: datetime | None = None, source: str = "the file"
    ) -> Iterator[PriceSet]:
        """Set all that a ratios file says; models that it has as ratios become sheets. Raises BadRatios before any."""
        tables = parse_tables(text, source=source)
        for kind, name, body in list(self._changes_of(tables)):
            yield self.set(kind, name, body, actor=actor, comment=comment, valid_from=valid_from)

    def _changes_of(self, tables: RatioTables) -> Iterator[tuple[str, str, Any]]:
        settings = self._runtime.settings.price_book
        unknown = PriceBook(catalogue=settings["catalogue"], unknown=settings["unknown"]).prices.unknown
        prices = PriceList(file=tables, catalogue=settings["catalogue"], unknown=unknown)
        data = tables.data()
        for name, sheet in data.get("prices", {}).items():
            yield "model", name, sheet
        for name in sorted((tables.model.keys() | tables.completion.keys()) - tables.prices.keys()):
            if "(" in name:
                raise BadRatios(f"{name!r} is for one type of channels; write it as a sheet.", reason="channel type")
            yield "model", name, prices.price(model=name).list_sheet.data()
        for kind in ("group", "group_for", "alias"):
            for name, body in data.get(kind, {}).items():
                yield kind, name, body
        for rule in data.get("factor", []):
            yield "factor", rule["name"], {key: value for key, value in rule.items() if key != "name"}
        for number, rule in enumerate(data.get("cost", [])):
            yield "cost", f"{number + 1:03d}", rule

    def reprice(
        self,
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
        """Price charges of that time anew, by the prices that count now, and book the differences as corrections.

        Once per charge and price list: again, it changes nothing. A charge that was refunded whole gets none, and no
        more is given back than refunds have left. `with_factors`: the factors of now, too (groups, discounts), instead
        of those of the charge. `dry_run` books nothing. What can't be priced anew (an amount that the gateway said, a
        usage that was estimated) is skipped, and says why. Raises InvalidRequest, Unavailable; repeating is safe.
        """
        return reprice(
            self._runtime,
            self.current(),
            since=since,
            before=before,
            models=models,
            user_id=user_id,
            actor=actor,
            comment=comment,
            with_factors=with_factors,
            dry_run=dry_run,
        )

    def learn_estimates(self) -> int:
        """Learn the length of answers from the ledger; returns of how many models. BILLING_LEARN_ESTIMATES uses it."""
        return self._runtime.ledger.learn_estimates()

    def estimates(self, *, since: datetime) -> list[EstimateRow]:
        """What was reserved against what was used since then, by model. It reads every charge of that time."""
        return self._runtime.ledger.estimates(since=since)

    def check(self, *, everything: bool = False) -> list[Doubt]:
        """Prices that are probably mistakes; `everything`: in the catalogue, too."""
        return list(doubts(self.current(), everything=everything))

    def stored(self) -> list[tuple[int, datetime, dict[str, str]]]:
        """Lists that requests were priced by: version, since when, the digests of its parts; the latest first."""
        return self._runtime.ledger.price_lists()

    def list_of(self, version: int) -> PriceList:
        """A stored list. Raises InvalidRequest if there is none of this version."""
        return stored_list(self._runtime, version)

    def diff(self, before: int, after: int | None = None) -> list[PriceDifference]:
        """What two stored lists price otherwise; `after` None: the one that counts now. Raises InvalidRequest."""
        old, new = self.list_of(before), self.current() if after is None else self.list_of(after)
        names = {*old.own_names, *new.own_names}
        if old.digests["catalogue"] != new.digests["catalogue"]:
            names |= {*old.catalogue_names, *new.catalogue_names}
        found = [PriceDifference(name, _data_of(old, name), _data_of(new, name)) for name in sorted(names)]
        groups = sorted({*old.own.group, *new.own.group})
        found += [
            PriceDifference(
                f"group {name}", {"ratio": str(old.group_ratio(name))}, {"ratio": str(new.group_ratio(name))}
            )
            for name in groups
        ]
        return [one for one in found if one.before != one.after]


def _data_of(prices: PriceList, name: str) -> Mapping[str, Any] | None:
    try:
        return prices.price(model=name).list_sheet.data()
    except InvalidRequest:
        return None
