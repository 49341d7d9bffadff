"""Check: prices that are probably mistakes, in the words of the operator who typed them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from billing_tasks.errors import InvalidRequest, UnknownModel
from billing_tasks.pricing.meters import meter
from billing_tasks.pricing.price_list import PriceList
from billing_tasks.pricing.sheet import Sheet

#: So many times the list price, or so small a part of it, is a unit mistaken: per token, per thousand, per million.
ABSURD = 1000
#: Dearer than the list by this is worth a look.
DEAR = 10
_IN, _OUT, _READ, _5M, _1H = (
    *("input_tokens", "output_tokens", "cache_read_tokens"),
    *("cache_write_tokens", "cache_write_1h_tokens"),
)


@dataclass(frozen=True, slots=True)
class Doubt:
    """One price that is probably wrong."""

    name: str  # of the model, the group or the factor
    what: str  # a sentence


def doubts(prices: PriceList, *, everything: bool = False) -> Iterator[Doubt]:
    """What looks wrong in the prices that an operator set; `everything`: in the catalogue, too."""
    own = prices.own
    sheets = dict(own.prices)
    for name in {*own.model, *own.completion} - sheets.keys():
        try:
            price = prices.price(model=name.partition("(")[0])
        except InvalidRequest as exc:
            yield Doubt(name, exc.message)
            continue
        sheets[name] = price.list_sheet
        if name in own.model and name not in own.completion and _is_unlisted(prices, name):
            yield Doubt(name, f"[model] has it and [completion] does not: its completion ratio is guessed to be"
                              f" {price.completion_ratio}.")  # fmt: skip
    for name, sheet in sheets.items():
        yield from _of_sheet(name, sheet)
        yield from _against_the_list(prices, name, sheet)
    if everything and prices.catalogue == "list":
        for listed in prices.listed:
            yield from _of_sheet(f"{listed.provider}/{listed.model}", listed.sheet)
        sheets = {f"{one.provider}/{one.model}": one.sheet for one in prices.listed} | sheets
    yield from _copied(sheets)
    for name, ratio in own.group.items():
        if ratio == 0 or ratio >= DEAR:
            yield Doubt(
                f"group {name}", f"Its ratio is {ratio}: " + ("all is free." if ratio == 0 else "that is dear.")
            )
    for name, target in own.alias.items():
        try:
            prices.price(model=name)
        except UnknownModel:
            yield Doubt(name, f"It is an alias of {target!r}, which has no price.")


def _is_unlisted(prices: PriceList, name: str) -> bool:
    try:
        prices.listed.find(name)
    except (UnknownModel, InvalidRequest):
        return True
    return False


def _of_sheet(name: str, sheet: Sheet) -> Iterator[Doubt]:
    per = {one: price / sheet.per.get(one, meter(one).per) for one, price in sheet.prices.items()}
    before, after = per.get(_IN), per.get(_OUT)
    if before and after is not None and after < before:
        yield Doubt(name, f"Its output costs less than its input ({_usd(after)} and {_usd(before)} per 1M).")
    if before is not None and after is None and not any(one.startswith("output_") for one in per):
        return  # an embedding has no output
    for part, of in ((_READ, _IN), (_1H, _IN)):
        if part == _READ and part in per and before is not None and per[part] > before:
            yield Doubt(name, f"Cached tokens cost more than others ({_usd(per[part])} and {_usd(before)} per 1M).")
        if part == _1H and part in per and _5M in per and per[part] < per[_5M]:
            yield Doubt(name, f"Writing for an hour costs less than for 5 minutes ({of} are part of both).")


def _against_the_list(prices: PriceList, name: str, sheet: Sheet) -> Iterator[Doubt]:
    try:
        listed = prices.listed.find(name.partition("(")[0]).sheet
    except InvalidRequest:  # unknown there
        return
    for one in sheet.prices.keys() & listed.prices.keys():
        mine, theirs = sheet.prices[one], listed.prices[one]
        if not mine or not theirs:
            if theirs:
                yield Doubt(name, f"{one} are free; the list price is {_short(theirs)}.")
            continue
        times = mine / theirs
        if times >= ABSURD or times <= Fraction(1, ABSURD):
            yield Doubt(name, f"{one} cost {_times(times)} the list price: is the unit right? It is USD per"
                              f" {int(meter(one).per):,}.")  # fmt: skip
        elif times >= DEAR or times <= Fraction(1, DEAR):
            yield Doubt(name, f"{one} cost {_times(times)} the list price ({_short(theirs)}).")


def _copied(sheets: Mapping[str, Sheet]) -> Iterator[Doubt]:
    """A 1h price that does not go with the input's: providers have it at one multiple of their input price."""
    for name, sheet in sheets.items():
        before, hour = sheet.prices.get(_IN), sheet.prices.get(_1H)
        if not before or not hour or 1 <= hour / before <= 4:
            continue
        owners = [other for other, one in sheets.items()
                  if other != name and one.prices.get(_1H) == hour and one.prices.get(_IN) != before]  # fmt: skip
        of = f", as those of {owners[0]}: copied?" if owners else "."
        yield Doubt(name, f"Tokens written for an hour cost {_times(hour / before)} its input{of}")


def _times(ratio: Fraction) -> str:
    return f"{_short(ratio)} times" if ratio >= 1 else f"1/{_short(1 / ratio)} of"


def _short(number: Fraction) -> str:
    """For people: at most three digits behind the point."""
    thousandths = number.numerator * 1000 // number.denominator
    whole, rest = divmod(thousandths, 1000)
    return f"{whole:,}" if not rest else f"{whole:,}.{rest:03d}".rstrip("0")


def _usd(per_unit: Fraction) -> str:
    return f"${_short(per_unit * 1_000_000)}"
