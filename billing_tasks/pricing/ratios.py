"""Ratios: look-up of model, completion and group ratios, and prices made of them.

Never changed once made; `PriceBook` swaps in a new one when a table changes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeVar

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import check_name, show
from billing_tasks.pricing.families import family_completion_ratio
from billing_tasks.pricing.price import Price
from billing_tasks.pricing.tables import RatioTables, default_tables

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Dear on purpose: a model without a price must not be a gift.
UNKNOWN_MODEL_RATIO = Fraction(30)
UNKNOWN_GROUP_RATIO = Fraction(1)

#: Names come from outside, so whatever is remembered per name has a limit.
MAX_CACHED_PRICES = 10_000
MAX_LOGGED_NAMES = 1_000
MAX_CHANNEL_TYPE = 2**31 - 1


class Unpriced:
    """Logs each name that no table lists once, and stops at a limit so that callers can't flood the log."""

    def __init__(self, *, muted: bool = False) -> None:
        self._muted = muted
        self._logged: dict[tuple[str, str], object] = {}

    def warn(self, kind: str, name: str, ratio: Fraction) -> None:
        """Log at warning that `name` is priced at the ratio for unknown names, unless it was logged."""
        if self._muted or (kind, name) in self._logged or len(self._logged) > MAX_LOGGED_NAMES:
            return
        ticket = object()  # setdefault is atomic, so of two racing threads one logs, without a lock
        if self._logged.setdefault((kind, name), ticket) is not ticket:
            return
        logger.warning("No ratio for %s %r: priced at %s. Add it to [%s] of the ratios file.", kind, name, ratio, kind)
        if len(self._logged) > MAX_LOGGED_NAMES:
            logger.warning("More than %s names without a ratio; further ones are not logged.", MAX_LOGGED_NAMES)

    def warn_guess(self, name: str, ratio: Fraction, *, by_family: bool) -> None:
        """Log that a completion ratio is guessed, once per name."""
        if not self._muted and self._logged.setdefault(("completion", name), ticket := object()) is ticket:
            how = "by the family of its name" if by_family else "because nothing else is known"
            logger.warning("The completion ratio of %r is guessed (%s, %s). Say it in [completion] of the ratios file.",
                           name, ratio, how)  # fmt: skip


class Ratios:
    """One state of the ratio tables. Look-ups as in one-api (commit 8df4a26). Safe to share between threads.

    `name(channelType)` is looked up first, then `name`; the tables are overrides
    laid over defaults, so an override beats the default of the same key only.
    """

    __slots__ = ("_prices", "_unknown", "_unpriced", "tables")

    def __init__(
        self,
        tables: RatioTables,
        *,
        unpriced: Unpriced | None = None,
        unknown: Fraction | None = UNKNOWN_MODEL_RATIO,
    ) -> None:
        self.tables = tables
        self._unpriced = unpriced or Unpriced()
        self._unknown = unknown
        self._prices: dict[tuple[str, str, int | None], Price] = {}

    def model_ratio(self, model: str, channel_type: int | None = None) -> Fraction:
        """Quota per prompt token before the group's ratio; 30 for an unknown model, logged once per name.

        `-internet` at the end of a qwen- or command- name is dropped first.
        Raises InvalidRequest for a malformed name or channel type.
        """
        check_name(model, field="model")
        name = _without_internet(model, "qwen-", "command-")
        ratio = look_up(self.tables.model, name, channel_type)
        if ratio is None:
            ratio = UNKNOWN_MODEL_RATIO if self._unknown is None else self._unknown
            self._unpriced.warn("model", name, ratio)
        return ratio

    def known(self, model: str, channel_type: int | None = None) -> tuple[Fraction, Fraction] | None:
        """Model and completion ratio; None: no table has the model, and there is no ratio of unknown ones."""
        check_name(model, field="model")
        if (
            self._unknown is None
            and look_up(self.tables.model, _without_internet(model, "qwen-", "command-"), channel_type) is None
        ):
            return None
        return self.model_ratio(model, channel_type), self.completion_ratio(model, channel_type)

    def completion_ratio(self, model: str, channel_type: int | None = None) -> Fraction:
        """How much dearer a completion token is than a prompt token: tables, then families, else 1.

        `-internet` at the end of a qwen- name is dropped first (of a command- name
        it is not: the reference differs here too). Raises InvalidRequest.
        """
        check_name(model, field="model")
        name = _without_internet(model, "qwen-")
        ratio = look_up(self.tables.completion, name, channel_type)
        return family_completion_ratio(name) if ratio is None else ratio

    def group_ratio(self, group: str) -> Fraction:
        """What the group pays of the list price; 1 for an unknown group, logged once. Raises InvalidRequest."""
        check_name(group, field="group")
        ratio = self.tables.group.get(group)
        if ratio is None:
            self._unpriced.warn("group", group, UNKNOWN_GROUP_RATIO)
            return UNKNOWN_GROUP_RATIO
        return ratio

    def ratio(self, group: str, model: str, channel_type: int | None = None) -> Fraction:
        """Quota per prompt token for this group: group ratio times model ratio. Raises InvalidRequest."""
        return self.group_ratio(group) * self.model_ratio(model, channel_type)

    def price(self, *, group: str, model: str, channel_type: int | None = None) -> Price:
        """The price of a model for a group; the same object for the same question. Raises InvalidRequest."""
        if channel_type is not None and type(channel_type) is not int:
            _refuse_channel_type(channel_type)  # before the cache, where True would find 1's entry
        try:
            return self._prices[group, model, channel_type]
        except (KeyError, TypeError):  # TypeError: unhashable, which check_name refuses by name
            price = self._make_price(group, model, channel_type)
        if len(self._prices) >= MAX_CACHED_PRICES:
            self._prices.clear()
        self._prices[group, model, channel_type] = price
        return price

    def _make_price(self, group: str, model: str, channel_type: int | None) -> Price:
        return Price(
            model=model,
            group=group,
            model_ratio=self.model_ratio(model, channel_type),
            completion_ratio=self.completion_ratio(model, channel_type),
            group_ratio=self.group_ratio(group),
        )


def load_defaults() -> Ratios:
    """The ratios shipped with the package, without any override."""
    return Ratios(default_tables())


def look_up(table: Mapping[str, T], name: str, channel_type: int | None) -> T | None:
    """What the table has of `name(channel_type)`, else of the name. Raises InvalidRequest for no channel type."""
    if channel_type is not None:
        if type(channel_type) is not int or not 0 <= channel_type <= MAX_CHANNEL_TYPE:
            _refuse_channel_type(channel_type)
        ratio = table.get(f"{name}({channel_type})")
        if ratio is not None:
            return ratio
    return table.get(name)


def _refuse_channel_type(channel_type: object) -> None:
    raise InvalidRequest(f"channel_type must be an integer from 0, got {show(channel_type)}.")


def _without_internet(model: str, *families: str) -> str:
    return model.removesuffix("-internet") if model.startswith(families) else model
