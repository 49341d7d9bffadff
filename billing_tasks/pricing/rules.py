"""Rules of factors and of costs: to which requests a factor, or what a channel charges, applies.

A rule says models (`gpt-5*`), groups, channels, tokens, facts; what it does not say fits all. All factors that fit
multiply; of what a channel charges the first rule that fits counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, Self

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.bill import Factor
from billing_tasks.pricing.exact import check_name, parse_ratio, show
from billing_tasks.pricing.facts import When
from billing_tasks.pricing.meters import meter, meters
from billing_tasks.pricing.sheet import Sheet

_SCOPE = frozenset({"models", "groups", "channels", "tokens", "when"})


@dataclass(frozen=True, slots=True)
class Scope:
    """Which requests. None: all."""

    models: tuple[str, ...] | None = None  # `*` stands for any text
    groups: tuple[str, ...] | None = None
    channels: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    when: When | None = None  # facts: {"region": "eu"}

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str) -> Self:
        """Of a table. Raises InvalidRequest."""
        return cls(
            models=_listed(data, "models", str, where),
            groups=_listed(data, "groups", str, where),
            channels=_listed(data, "channels", int, where),
            tokens=_listed(data, "tokens", int, where),
            when=_when(data, where),
        )

    def data(self) -> dict[str, Any]:
        """As plain data that `read` reads again."""
        made = {name: value for name in sorted(_SCOPE) if (value := getattr(self, name)) is not None}
        return {name: value.data() if isinstance(value, When) else list(value) for name, value in made.items()}

    def fits(
        self, *, model: str, group: str, channel_id: int | None, token_id: int | None, facts: Mapping[str, Any]
    ) -> bool:
        """Whether it is for such a request."""
        return (
            (self.models is None or any(fnmatchcase(model, pattern) for pattern in self.models))
            and (self.groups is None or group in self.groups)
            and (self.channels is None or channel_id in self.channels)
            and (self.tokens is None or token_id in self.tokens)
            and (self.when is None or self.when.fits(facts))
        )


@dataclass(frozen=True, slots=True)
class FactorRule:
    """A named factor, and which requests have it."""

    factor: Factor
    scope: Scope

    @classmethod
    def read(cls, data: Any, where: str) -> Self:
        """{"name", "by", models, groups, channels, tokens, when, and of which meters: "families", "meters"}."""
        table = _table(data, where, _SCOPE | {"name", "by", "families", "meters"})
        name = check_name(table.get("name"), field=f"{where}.name")
        families, names = _listed(table, "families", str, where), _listed(table, "meters", str, where)
        for one in names or ():
            meter(one)
        for family in families or ():
            if family not in {known.family for known in meters().values()}:
                raise InvalidRequest(f"{where}: there is no family of meters {show(family)}.")
        factor = Factor(name, _ratio(table, "by", where), frozenset(families or ()), frozenset(names or ()))
        return cls(factor, Scope.read(table, where))

    def data(self) -> dict[str, Any]:
        """As plain data that `read` reads again."""
        return {**self.factor.data(), **self.scope.data()}


@dataclass(frozen=True, slots=True)
class CostRule:
    """What a channel charges us: a sheet, or a share of the list price."""

    scope: Scope
    sheet: Sheet | None = None
    of_list: Fraction = Fraction(1)  # without a sheet

    @classmethod
    def read(cls, data: Any, where: str) -> Self:
        """{models, groups, channels, tokens, and "of_list" or "sheet"}."""
        table = _table(data, where, _SCOPE | {"of_list", "sheet"})
        if ("of_list" in table) == ("sheet" in table):
            raise InvalidRequest(f"{where} needs of_list (a share of the list price) or sheet, not both.")
        if "sheet" in table:
            return cls(Scope.read(table, where), Sheet.read(flat(table["sheet"], f"{where}.sheet")))
        return cls(Scope.read(table, where), of_list=_ratio(table, "of_list", where))

    def data(self) -> dict[str, Any]:
        """As plain data that `read` reads again."""
        what = {"of_list": str(self.of_list)} if self.sheet is None else {"sheet": self.sheet.data()}
        return {**what, **self.scope.data()}


_OF_SHEET = frozenset({"prices", "above", "variants", "per", "least", "step", "minimum_quota"})


def flat(data: Any, where: str) -> dict[str, Any]:
    """A sheet's table in which meters may stand beside `above` and the like, as people write it."""
    table = dict(_table(data, where, None))
    prices = {name: table.pop(name) for name in list(table) if name not in _OF_SHEET}
    given = table.get("prices", {})
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"{where}.prices must be a table, got {show(given)}.")
    return {**table, "prices": {**prices, **given}}


def _table(data: Any, where: str, known: frozenset[str] | None) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidRequest(f"{where} must be a table, got {show(data)}.")
    unknown = sorted(map(show, data.keys() - known)) if known is not None else []
    if unknown:
        raise InvalidRequest(f"{where} has no {', '.join(unknown)}; it has {', '.join(sorted(known or ()))}.")
    return data


def _when(data: Mapping[str, Any], where: str) -> When | None:
    if "when" not in data:
        return None
    when = When.read(data["when"], where=f"{where}.when")
    if when.is_about_time:
        raise InvalidRequest(f"{where}.when takes facts, no times; set a factor from a date on instead.")
    return when


def _listed(data: Mapping[str, Any], name: str, kind: type, where: str) -> tuple[Any, ...] | None:
    found = data.get(name)
    if found is None:
        return None
    if not isinstance(found, list | tuple) or any(type(one) is not kind for one in found):
        word = "names" if kind is str else "ids"
        raise InvalidRequest(f"{where}.{name} must be a list of {word}, got {show(found)}.")
    return tuple(found)


def _ratio(data: Mapping[str, Any], name: str, where: str) -> Fraction:
    try:
        return parse_ratio(data.get(name))
    except ValueError as exc:
        raise InvalidRequest(f"{where}.{name} can't be used: {exc}.") from None
