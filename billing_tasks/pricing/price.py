"""Price: what one request costs, and the quota that makes of what it used.

A price is fixed when quota is reserved and travels with the reservation, so a table that changes meanwhile does not
change what this request costs. It is three ratios, as the reference has them, or a sheet with a price per meter and
the ratios that follow from it; and in both cases the version of the price list that it is of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlencode

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.bill import ONE_REQUEST, QUOTA_PER_USD, Bill, Factor, usd_of_one
from billing_tasks.pricing.estimate import DEAREST_OF_COMPLETION, DEAREST_OF_PROMPT, longer_by_error, worst_case
from billing_tasks.pricing.exact import (
    MAX_QUOTA,
    MAX_TOKENS,
    check_name,
    check_quota,
    check_ratio,
    parse_ratio,
    refuse_count,
    show,
)
from billing_tasks.pricing.meter_price import MeterPrice
from billing_tasks.pricing.meters import meters
from billing_tasks.pricing.ratio_sheet import sheet_of_ratios
from billing_tasks.pricing.sheet import Choice, Prices, Sheet
from billing_tasks.pricing.usage import Usage

#: Completion tokens expected of a request that names no maximum; the reference sets aside as many.
EXPECTED_COMPLETION_TOKENS = 500
_RATIOS = ("model_ratio", "completion_ratio", "group_ratio")
_TEXT = frozenset({"input_tokens", "output_tokens"})
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Price:
    """What this model costs this group.

    Raises InvalidRequest for a name or a ratio that no price can have.
    """

    model: str  # as the gateway's caller names it
    group: str  # the one that is paid for
    model_ratio: Fraction  # quota per prompt token; 1 is 2 USD per million
    completion_ratio: Fraction  # prompt tokens that a completion token costs
    group_ratio: Fraction  # the group's factor on the price
    sheet: Sheet | None = field(default=None, hash=False)  # None: the ratios say it all
    factors: tuple[Factor, ...] = ()  # beside the group's
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)  # known when quota was reserved
    version: int | None = None  # of the price list it is of
    source: str = field(default="", compare=False)  # which list or file has it, for people
    user_group: str = ""  # of the user, where that is another one
    of_user_group: bool = False  # the group's ratio is one for users of that group
    by_facts: bool = field(default=False, compare=False)  # its list has factors that go by facts
    channel_type: int | None = None  # that it was asked for
    channel_id: int | None = None  # likewise, if a factor or a cost goes by channels
    token_id: int | None = None  # likewise by tokens
    context_window: int | None = field(default=None, compare=False)  # tokens that an answer can't exceed; None: unknown
    cost: MeterPrice | None = field(default=None, compare=False)  # what the channel charges for it

    # The prices of text over one common denominator: a quota then takes two integer multiplications and one division,
    # where Fraction arithmetic takes 20 times as long. They are those of prompts up to so many tokens; -1: of none,
    # because the sheet has to look at more than the tokens of a request.
    _plain_up_to: int = field(init=False, repr=False, compare=False)
    _per_prompt_token: int = field(init=False, repr=False, compare=False)
    _per_completion_token: int = field(init=False, repr=False, compare=False)
    _most_per_prompt_token: int = field(init=False, repr=False, compare=False)  # written to the cache, where that costs
    _most_per_completion_token: int = field(init=False, repr=False, compare=False)  # reasoning, likewise
    _divisor: int = field(init=False, repr=False, compare=False)
    _by_meter: MeterPrice = field(init=False, repr=False, compare=False)
    packed: str = field(init=False, repr=False, compare=False)  # for its hold: what was asked of which list

    def __post_init__(self) -> None:
        check_name(self.model, field="model")
        check_name(self.group, field="group")
        for name in _RATIOS:
            _check_exact(getattr(self, name), field=name)
        sheet = self.sheet or _sheet_of(self.model_ratio, self.completion_ratio)
        object.__setattr__(self, "_by_meter", MeterPrice(sheet, self.all_factors))
        up_to, prices = (MAX_TOKENS, sheet.prices) if self.sheet is None else _plain(sheet, self.facts)
        object.__setattr__(self, "_plain_up_to", up_to)
        names = ("_per_prompt_token", "_per_completion_token", "_most_per_prompt_token", "_most_per_completion_token")
        whole = (("input_tokens",), ("output_tokens",), DEAREST_OF_PROMPT, DEAREST_OF_COMPLETION)
        per_token = [
            max(
                (usd_of_one(name, sheet, prices, self.all_factors) for name in some if name in prices),
                default=Fraction(),
            )
            * QUOTA_PER_USD
            for some in whole
        ]
        divisor = math.lcm(*(one.denominator for one in per_token))
        for name, one in zip(names, per_token, strict=True):
            object.__setattr__(self, name, int(one * divisor))
        object.__setattr__(self, "_divisor", divisor)
        object.__setattr__(self, "packed", "" if self.version is None else self._question())

    def _question(self) -> str:
        asked = {
            "version": self.version,
            "model": self.model,
            "group": self.group,
            "user_group": self.user_group,
            "channel_type": self.channel_type,
            "channel_id": self.channel_id,
            "token_id": self.token_id,
        }
        facts = {f"facts.{name}": value for name, value in self.facts.items()}
        said = {name: value for name, value in {**asked, **facts}.items() if value not in (None, "")}
        return urlencode(said, quote_via=quote, safe="")

    @property
    def all_factors(self) -> tuple[Factor, ...]:
        """The group's first."""
        name = f"group:{self.group}" + (f" for {self.user_group}" if self.of_user_group else "")
        return (Factor(name, self.group_ratio), *self.factors)

    @property
    def list_sheet(self) -> Sheet:
        """The prices themselves, before factors."""
        return self._by_meter.sheet

    @property
    def ratio(self) -> Fraction:
        """Quota per prompt token: model ratio times group ratio."""
        return self.model_ratio * self.group_ratio

    @property
    def free(self) -> bool:
        """True if every request at this price costs nothing."""
        if self.sheet is None:
            return self._per_prompt_token == 0
        return self.sheet.is_free or not all(factor.by or not factor.is_for_all for factor in self.all_factors)

    def quota(self, prompt_tokens: int, completion_tokens: int, *, facts: Mapping[str, Any] = _NOTHING) -> int:
        """What these tokens cost, in quota.

        ceil((prompt + completion * completion_ratio) * model_ratio * group_ratio),
        as one-api (commit 8df4a26) settles a text request, but exact. At least 1
        unless the price is free; 0 if there were no tokens at all. Of a sheet: see `quota_of`.

        Raises InvalidRequest for a count that is no integer from 0 to 2**40, and
        for an amount above 2**53.
        """
        # Tests inline, and `type() is` because bool is an int to isinstance: this is the hot path.
        if type(prompt_tokens) is not int or not 0 <= prompt_tokens <= MAX_TOKENS:
            refuse_count(prompt_tokens, field="prompt_tokens")
        if type(completion_tokens) is not int or not 0 <= completion_tokens <= MAX_TOKENS:
            refuse_count(completion_tokens, field="completion_tokens")
        if facts or prompt_tokens > self._plain_up_to:
            usage = Usage.of({"input_tokens": prompt_tokens, "output_tokens": completion_tokens})
            return self.quota_of(usage, facts)
        cost = prompt_tokens * self._per_prompt_token + completion_tokens * self._per_completion_token
        quota = -(-cost // self._divisor)
        if quota > MAX_QUOTA:
            check_quota(quota)
        if quota == 0 and self.sheet is None and self._per_prompt_token and (prompt_tokens or completion_tokens):
            return 1
        return quota

    def is_plain(self, prompt_tokens: int) -> bool:
        """Whether so long a prompt, and no other facts, leave nothing to choose among the prices of its text."""
        return prompt_tokens <= self._plain_up_to

    def quota_of(self, usage: Usage, facts: Mapping[str, Any] = _NOTHING) -> int:
        """What the usage costs, in quota, rounded up once: 0 if nothing was used or all of it is free, else at least 1.

        `facts` (service_tier as served, region ...) choose among the sheet's prices, over those known when quota was
        reserved. Raises InvalidRequest if units were used that no price covers, and for an amount above 2**53.
        """
        return self._by_meter.quota(usage, self._known(facts)) or self._at_least(usage)

    def bill_of(self, usage: Usage, facts: Mapping[str, Any] = _NOTHING) -> Bill:
        """The same line by line. Raises as `quota_of`."""
        bill = self._by_meter.bill(usage, self._known(facts))
        return bill if bill.quota else Bill(bill.lines, self._at_least(usage))

    @property
    def goes_by_time(self) -> bool:
        """Whether it has to know when the request began: the fact `at`, else now."""
        return self.sheet is not None and self.sheet.goes_by_time

    def choice_of(self, usage: Usage, facts: Mapping[str, Any] = _NOTHING) -> Choice:
        """Which tier and variants of its sheet such a request has."""
        return self._by_meter.sheet.choice(self._known(facts), usage.get("input_tokens"))

    def _known(self, facts: Mapping[str, Any], of: Sheet | None = None) -> Mapping[str, Any]:
        """All that is known of the request; it begins now if nobody says when."""
        known = {**self.facts, **facts} if facts else self.facts
        sheet = of or self.sheet
        if sheet is not None and sheet.goes_by_time and known.get("at") is None:
            return {**known, "at": datetime.now(UTC)}
        return known

    def _at_least(self, usage: Usage) -> int:
        """The reference charges 1 for tokens that cost nothing at a price that is not free."""
        used = any(usage.get(name) for name in _TEXT)
        return 1 if self.sheet is None and self._per_prompt_token and used else 0

    def estimate(
        self,
        prompt_tokens: int,
        max_tokens: int | None = None,
        *,
        also: Mapping[str, Any] = _NOTHING,
        facts: Mapping[str, Any] = _NOTHING,
    ) -> int:
        """Quota to set aside before the request: ceil((prompt + (max_tokens or 500) * completion_ratio) * ratio).

        Never less than what a completion of `max_tokens`, or of the model's context window, will cost, so a request
        that keeps to its maximum never settles above its hold. At least 1 unless
        free. Of a sheet: at its dearest reachable prices (a written cache, the longer prompt's tier, another hour).
        `also`: what else the request may use at most, by meter: {"output_images": 2, "web_searches": 1}; tokens of
        images and the like come on top of the prompt's. `facts`: see `quota_of`.
        Raises InvalidRequest as `quota` does.
        """
        max_tokens = EXPECTED_COMPLETION_TOKENS if max_tokens is None else max_tokens
        if type(max_tokens) is not int or not 0 <= max_tokens <= MAX_TOKENS:
            refuse_count(max_tokens, field="max_tokens")
        max_tokens = max_tokens or EXPECTED_COMPLETION_TOKENS
        if self.context_window is not None:
            max_tokens = min(max_tokens, self.context_window)
        if self.sheet is None and not also:
            return self.quota(prompt_tokens, max_tokens)
        if type(prompt_tokens) is not int or not 0 <= prompt_tokens <= MAX_TOKENS:
            refuse_count(prompt_tokens, field="prompt_tokens")
        if not also and not facts and longer_by_error(prompt_tokens) <= self._plain_up_to:
            cost = prompt_tokens * self._most_per_prompt_token + max_tokens * self._most_per_completion_token
            return check_quota(-(-cost // self._divisor))
        return worst_case(self._by_meter, self._known(facts), prompt_tokens, max_tokens, also)

    def estimate_like_reference(self, prompt_tokens: int, max_tokens: int | None = None) -> int:
        """Quota one-api (commit 8df4a26) would set aside: int((500 + prompt + max_tokens) * ratio), cut off.

        For comparison: it leaves the completion ratio out and so often holds too
        little. Raises InvalidRequest as `quota` does.
        """
        max_tokens = 0 if max_tokens is None else max_tokens
        for name, count in (("prompt_tokens", prompt_tokens), ("max_tokens", max_tokens)):
            if type(count) is not int or not 0 <= count <= MAX_TOKENS:
                refuse_count(count, field=name)
        return check_quota(math.floor((EXPECTED_COMPLETION_TOKENS + prompt_tokens + max_tokens) * self.ratio))

    def cost_of(self, usage: Usage, facts: Mapping[str, Any] = _NOTHING) -> int | None:
        """What the channel charges for it, in quota; None: that is not known, or not of all of it."""
        if self.cost is None:
            return None
        try:
            return self.cost.quota(usage, self._known(facts, of=self.cost.sheet))
        except InvalidRequest:
            return None

    def to_strings(self) -> dict[str, str]:
        """The price as text, ratios like "5/4"; `Price.from_strings(**strings)` is this very price."""
        made = {"model": self.model, "group": self.group, **{name: str(getattr(self, name)) for name in _RATIOS}}
        if self.sheet is not None:
            made["sheet"] = json.dumps(self.sheet.data())
        if self.factors:
            made["factors"] = json.dumps([factor.data() for factor in self.factors])
        for name in ("version", "channel_type", "channel_id", "token_id"):
            if getattr(self, name) is not None:
                made[name] = str(getattr(self, name))
        if self.facts:
            made["facts"] = json.dumps(dict(self.facts), default=str)
        if self.of_user_group:
            made["of_user_group"] = "1"
        return {**made, "user_group": self.user_group} if self.user_group else made

    @classmethod
    def from_strings(
        cls, *, model: str, group: str, model_ratio: str, completion_ratio: str, group_ratio: str, **more: str
    ) -> Self:
        """The price that `to_strings` wrote. Raises InvalidRequest for text that is no ratio."""
        numbers = ("version", "channel_type", "channel_id", "token_id")
        return cls(
            model=model,
            group=group,
            model_ratio=_parse(model_ratio, field="model_ratio"),
            completion_ratio=_parse(completion_ratio, field="completion_ratio"),
            group_ratio=_parse(group_ratio, field="group_ratio"),
            sheet=Sheet.read(json.loads(more["sheet"])) if "sheet" in more else None,
            factors=tuple(map(Factor.read, json.loads(more.get("factors", "[]")))),
            facts=json.loads(more.get("facts", "{}")),
            user_group=more.get("user_group", ""),
            of_user_group="of_user_group" in more,
            **{name: int(more[name]) for name in numbers if name in more},  # type: ignore[arg-type]
        )


def unpacked(packed: str) -> tuple[int, dict[str, Any]]:
    """Of `Price.packed`: the version of the list, and what PriceList.price is asked. Raises InvalidRequest."""
    said = dict(parse_qsl(packed))
    try:
        version = int(said.pop("version"))
        names: tuple[str, ...] = ("channel_type", "channel_id", "token_id")
        numbers = {name: int(said.pop(name)) for name in names if name in said}
    except (KeyError, ValueError):
        raise InvalidRequest(f"A hold names no price list: {show(packed)}.") from None
    facts = {name.removeprefix("facts."): said.pop(name) for name in list(said) if name.startswith("facts.")}
    question: dict[str, Any] = {**said, **numbers, "facts": facts}
    return version, question


def ratios_of(sheet: Sheet) -> tuple[Fraction, Fraction]:
    """The model and the completion ratio that say the prices of a sheet's text; 0 and 1 if it has none."""
    per_million = 1_000_000
    text = {name: sheet.prices[name] / sheet.per.get(name, meters()[name].per) for name in _TEXT & sheet.prices.keys()}
    before, after = text.get("input_tokens", Fraction()), text.get("output_tokens", Fraction())
    return before * per_million / 2, after / before if before else Fraction(1)


def _sheet_of(model_ratio: Fraction, completion_ratio: Fraction) -> Sheet:
    return sheet_of_ratios(model_ratio=model_ratio, completion_ratio=completion_ratio)


def _plain(sheet: Sheet, facts: Mapping[str, Any]) -> tuple[int, Prices]:
    """Up to how many prompt tokens these prices alone make the quota of text; -1: for none."""
    choosy = sheet.goes_by_time or sheet.least or sheet.step or sheet.minimum_quota or ONE_REQUEST in sheet.prices
    if choosy or not {"input_tokens", "output_tokens"} <= sheet.prices.keys():
        return -1, {}
    choice = sheet.choice(facts, 0)
    tiers = [*sheet.tiers, *(tier for number, _ in choice[1] for tier in sheet.variants[number].tiers)]
    limits = [tier.tokens - 1 if tier.inclusive else tier.tokens for tier in tiers]
    return min(limits, default=MAX_TOKENS), sheet.prices_of(choice)


def _check_exact(ratio: object, *, field: str) -> None:
    if not isinstance(ratio, Fraction):
        raise InvalidRequest(f"{field} must be a Fraction, got {show(ratio)}.")
    try:
        check_ratio(ratio)
    except ValueError as exc:
        raise InvalidRequest(f"{field} can't be used: {exc}.") from None


def _parse(text: str, *, field: str) -> Fraction:
    try:
        return parse_ratio(text)
    except ValueError as exc:
        raise InvalidRequest(f"{field} can't be used: {exc}.") from None
