"""PriceList: all prices of one moment, under a version; never changed once made.

A name is looked for in what the operator says, first what was set at run time, then what PostgreSQL has (`Change`),
then the file; then in the catalogue, the list prices of providers or the reference's table. The version is a number
made of the content, so each process that has the same prices calls them by the same number.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal, Self

from billing_tasks.errors import InvalidRequest, UnknownModel
from billing_tasks.pricing.bill import Factor
from billing_tasks.pricing.catalogue import Catalogue, Listed
from billing_tasks.pricing.changes import Change, tables_of
from billing_tasks.pricing.exact import check_name, parse_ratio, show
from billing_tasks.pricing.families import family_completion_ratio, has_family
from billing_tasks.pricing.meter_price import MeterPrice
from billing_tasks.pricing.price import Price, ratios_of
from billing_tasks.pricing.ratios import MAX_CACHED_PRICES, Ratios, Unpriced, look_up
from billing_tasks.pricing.sheet import Sheet
from billing_tasks.pricing.tables import BadEntry, RatioTables, default_tables, of_data
from billing_tasks.pricing.used_lists import remember, remembered

logger = logging.getLogger(__name__)

CatalogueName = Literal["list", "one-api"]
#: 2 to the power of this is above any version: a double keeps them exactly, and PostgreSQL's bigint.
VERSION_BITS = 52
_PARTS = ("catalogue", "settings", "file", "changes", "at_run_time")


class PriceList:
    """See above. Safe to share between threads."""

    def __init__(
        self,
        *,
        file: RatioTables | None = None,
        catalogue: CatalogueName = "list",
        unknown: Fraction | None = None,
        changes: Sequence[Change] = (),
        at_run_time: RatioTables | None = None,
        unpriced: Unpriced | None = None,
        told: Mapping[str, str] | None = None,
    ) -> None:
        """`unknown`: the ratio of a model without a price; None: it is refused. `changes`: those that count now, in
        the order in which they began. `told`: the parts of a stored list, whose catalogue may be another release's."""
        self.file, self.at_run_time = file or RatioTables(), at_run_time or RatioTables()
        self.catalogue, self.unknown = catalogue, unknown
        self.changes = tuple({(change.kind, change.name): change for change in changes}.values())
        self.unpriced = unpriced or Unpriced()
        self._told = told
        self._prices: dict[Any, Price] = {}
        self.own = self.file.overlaid_with(tables_of(self.changes)).overlaid_with(self.at_run_time)
        rules = [*(rule.scope for rule in self.own.factors), *(rule.scope for rule in self.own.costs)]
        self._by_channel = any(scope.channels is not None for scope in rules)
        self._by_token = any(scope.tokens is not None for scope in rules)
        self._by_facts = any(scope.when is not None for scope in rules)

    # -- what it is made of ---------------------------------------------------------------------------------------

    @property
    def parts(self) -> Mapping[str, str]:
        """Its content as text, by part: what `of_parts` makes the same list of, in any process."""
        if self._told is not None:
            return self._told
        return {"catalogue": _catalogue_text(self.catalogue), **self._small_parts}

    @property
    def _small_parts(self) -> dict[str, str]:
        unknown = None if self.unknown is None else str(self.unknown)
        changes = sorted((change.kind, change.name, change.body) for change in self.changes if change.body is not None)
        return {
            "settings": _json({"catalogue": self.catalogue, "unknown": unknown}),
            "file": _json(self.file.data()),
            "changes": _json(changes),
            "at_run_time": _json(self.at_run_time.data()),
        }

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Of each part, in hex."""
        if self._told is not None:
            return {name: digest_of(text) for name, text in self._told.items()}
        made = {name: digest_of(text) for name, text in self._small_parts.items()}
        return {"catalogue": _catalogue_digest(self.catalogue), **made}

    @cached_property
    def version(self) -> int:
        """A number that no other content has."""
        return version_of(self.digests)

    @classmethod
    def of_parts(cls, parts: Mapping[str, str]) -> Self:
        """The list whose parts these are. Raises InvalidRequest for what is none."""
        try:
            said = json.loads(parts["settings"])
            content: dict[str, Any] = {
                "file": of_data(json.loads(parts["file"])),
                "catalogue": said["catalogue"],
                "unknown": None if said["unknown"] is None else parse_ratio(said["unknown"]),
                "changes": [Change(*row) for row in json.loads(parts["changes"])],
                "at_run_time": of_data(json.loads(parts["at_run_time"])),
                "unpriced": Unpriced(muted=True),  # it was said when the list was in use
            }
            made = cls(**content)
            if made.digests == {name: digest_of(text) for name, text in parts.items()}:
                return made  # of this release: its catalogue is at hand already
            return cls(**content, told=dict(parts))
        except (KeyError, ValueError, TypeError, BadEntry) as exc:
            raise InvalidRequest(f"A stored price list can't be read: {exc}") from None

    @cached_property
    def listed(self) -> Catalogue:
        """The list prices of this list: those of the package, or what an earlier release had."""
        if self._told is None or self.catalogue != "list":
            return Catalogue.shipped()
        return Catalogue(json.loads(self._told["catalogue"]))

    @cached_property
    def ratios(self) -> Ratios:
        """What is said in ratios, by the reference if that is the catalogue, and by the operator over it."""
        tables = self.own
        if self.catalogue == "one-api":
            reference = default_tables() if self._told is None else of_data(json.loads(self._told["catalogue"]))
            tables = reference.overlaid_with(tables)
        tables = replace(tables, group={**default_tables().group, **tables.group})
        return Ratios(tables, unpriced=self.unpriced, unknown=self.unknown)

    # -- look-up --------------------------------------------------------------------------------------------------

    def price(
        self,
        *,
        model: str,
        group: str = "default",
        user_group: str = "",
        channel_type: int | None = None,
        channel_id: int | None = None,
        token_id: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Price:
        """The price of a model for a group; the same object for the same question.

        Raises UnknownModel, which names the nearest names, and InvalidRequest for a malformed name or channel type.
        """
        if channel_type is not None and type(channel_type) is not int:
            look_up({}, "", channel_type)  # before the cache, where True would find 1's entry
        channel_id, token_id = channel_id if self._by_channel else None, token_id if self._by_token else None
        question = (model, group, user_group, channel_type, channel_id, token_id,
                    tuple(sorted(facts.items())) if facts else ())  # fmt: skip
        try:
            return self._prices[question]
        except (KeyError, TypeError):  # TypeError: unhashable, which check_name refuses by name
            made = self._made(model, group, user_group, channel_type, channel_id, token_id, dict(facts or {}))
        if len(self._prices) >= MAX_CACHED_PRICES:
            self._prices.clear()
        if remembered(self.version) is not self:
            remember(self)
        self._prices[question] = made
        return made

    @property
    def own_names(self) -> list[str]:
        """Models that the operator says something of."""
        names = {*self.own.prices, *self.own.model, *self.own.completion, *self.own.alias}
        return sorted(name.partition("(")[0] for name in names)

    @property
    def catalogue_names(self) -> list[str]:
        """Models of the catalogue, as they are asked for."""
        if self.catalogue == "one-api":
            return sorted({name.partition("(")[0] for name in self.ratios.tables.model})
        return [f"{listed.provider}/{listed.model}" for listed in self.listed]

    def _made(
        self,
        model: str,
        group: str,
        user_group: str,
        channel_type: int | None,
        channel_id: int | None,
        token_id: int | None,
        facts: dict[str, Any],
    ) -> Price:
        check_name(model, field="model")
        name = self.own.alias.get(model, model)
        sheet, ratios, source = self._found(name, channel_type, asked=model)
        scope: dict[str, Any] = {"model": model, "group": group, "channel_id": channel_id, "token_id": token_id}
        scope["facts"] = facts
        price = Price(
            model=model,
            group=group,
            model_ratio=ratios[0],
            completion_ratio=ratios[1],
            group_ratio=self.group_ratio(group, user_group),
            sheet=sheet,
            factors=tuple(rule.factor for rule in self.own.factors if rule.scope.fits(**scope)),
            facts=facts,
            version=self.version,
            source=source,
            user_group=user_group,
            by_facts=self._by_facts,
            of_user_group=self._override(user_group, group) is not None,
            channel_type=channel_type,
            channel_id=channel_id,
            token_id=token_id,
            context_window=listed.context_window if (listed := self._listed(name)) is not None else None,
        )
        cost = self._cost(scope, price)
        return price if cost is None else replace(price, cost=cost)

    def group_ratio(self, group: str, user_group: str = "") -> Fraction:
        """What a group pays of a price, or a user of `user_group` in it; 1 for an unknown group, logged once.

        Raises InvalidRequest.
        """
        override = self._override(user_group, group)
        return self.ratios.group_ratio(group) if override is None else override

    def _override(self, user_group: str, group: str) -> Fraction | None:
        return self.own.group_for.get(user_group, {}).get(group) if user_group else None

    def _cost(self, scope: Mapping[str, Any], price: Price) -> MeterPrice | None:
        rule = next((rule for rule in self.own.costs if rule.scope.fits(**scope)), None)
        if rule is None:
            return None
        if rule.sheet is not None:
            return MeterPrice(rule.sheet)
        return MeterPrice(price.list_sheet, [Factor("of_list", rule.of_list)])

    def _found(
        self, name: str, channel_type: int | None, *, asked: str
    ) -> tuple[Sheet | None, tuple[Fraction, Fraction], str]:
        """The sheet, if it is more than two ratios; the ratios; and whose price that is."""
        own = look_up(self.own.prices, name, channel_type)
        if own is not None:
            changed = _with(
                own,
                look_up(self.at_run_time.model, name, channel_type),
                look_up(self.at_run_time.completion, name, channel_type),
            )
            return changed, ratios_of(changed), "your own sheet"
        model_ratio = look_up(self.own.model, name, channel_type)
        completion_ratio = look_up(self.own.completion, name, channel_type)
        if self.catalogue == "one-api":
            found = self.ratios.known(name, channel_type)
            if found is None:
                raise self._unknown(name, asked)
            return None, found, "one-api's ratios" if model_ratio is None else "your own ratios"
        listed = self._listed(name)
        if listed is None:
            return self._unlisted(name, model_ratio, completion_ratio, asked)
        sheet = _with(listed.sheet, model_ratio, completion_ratio)
        of = f"{listed.provider}'s {listed.model}" + (", deprecated" if listed.deprecated else "")
        whose = "list price" if sheet is listed.sheet else "your own ratios over the list price"
        return sheet, ratios_of(sheet), f"{whose} ({of})"

    def _unlisted(
        self, name: str, model_ratio: Fraction | None, completion_ratio: Fraction | None, asked: str
    ) -> tuple[None, tuple[Fraction, Fraction], str]:
        whose = "your own ratios"
        if model_ratio is None:
            if self.unknown is None:
                raise self._unknown(name, asked)
            self.unpriced.warn("model", name, self.unknown)
            model_ratio, whose = self.unknown, "the ratio of unknown models"
        if completion_ratio is None:
            whose += ", the completion's guessed"
        return None, (model_ratio, self._guess(name, completion_ratio)), whose

    def _listed(self, name: str) -> Listed | None:
        if self.catalogue != "list":
            return None  # the reference has neither sheets nor windows
        try:
            return self.listed.find(name)
        except UnknownModel:
            return None

    def _guess(self, name: str, completion_ratio: Fraction | None) -> Fraction:
        """Said aloud: an operator who writes [model] alone may not know that the completion has a ratio."""
        if completion_ratio is not None:
            return completion_ratio
        guess = family_completion_ratio(name)
        self.unpriced.warn_guess(name, guess, by_family=has_family(name))
        return guess

    def _unknown(self, name: str, asked: str) -> UnknownModel:
        near = self.listed.nearest(name, more=[*self.own.prices, *self.own.model, *self.own.alias])
        what = f"{show(asked)} (an alias of {show(name)})" if asked != name else show(asked)
        return UnknownModel(f"There is no price of {what}{near}.")


def _with(listed: Sheet, model_ratio: Fraction | None, completion_ratio: Fraction | None) -> Sheet:
    """The list's sheet at the operator's ratios: cached, written and other tokens keep their share of them."""
    if model_ratio is None and completion_ratio is None:
        return listed
    before, completion = ratios_of(listed)
    by = model_ratio / before if model_ratio is not None and before else Fraction(1)
    if not before and model_ratio is not None:  # nothing to scale: the list has no price of text
        return replace(listed, prices={**listed.prices, "input_tokens": model_ratio * 2})
    more = Fraction(1)
    if completion_ratio is not None and completion:
        more = completion_ratio / completion
    return listed.times(lambda name: by * more if name.startswith("output_") else by)


def _catalogue_text(name: CatalogueName) -> str:
    if name == "one-api":
        return _json(default_tables().data())
    return resources.files(__package__).joinpath("data/catalogue.json").read_text(encoding="utf-8")


@cache
def _catalogue_digest(name: CatalogueName) -> str:
    return digest_of(_catalogue_text(name))


def _json(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest_of(text: str) -> str:
    """32 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def version_of(digests: Mapping[str, str]) -> int:
    """The number of a list with these parts."""
    whole = hashlib.blake2b("".join(digests[name] for name in _PARTS).encode(), digest_size=8).digest()
    return int.from_bytes(whole) % 2**VERSION_BITS or 1
