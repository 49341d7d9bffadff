"""Explain: a charge as arithmetic, from its entry and the price list it names, never from today's prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from billing_tasks.errors import ChargeNotFound, InvalidRequest
from billing_tasks.ledger.rows import EntryRow
from billing_tasks.model.priced import when_reserved
from billing_tasks.pricing import Bill, Factor, Price, PriceList, Sheet, Usage, parse_ratio, remember, remembered
from billing_tasks.pricing.bill import QUOTA_PER_USD
from billing_tasks.pricing.exact import text_of
from billing_tasks.runtime import Runtime


@dataclass(frozen=True, slots=True)
class ExplainedLine:
    """One meter of a charge. Exact numbers are text: a decimal, or a quotient."""

    meter: str
    count: str  # units that this price bills
    price: str  # USD per `per` units
    per: str
    factors: tuple[str, ...]  # "group:vip 9/10"
    quota: str  # before it is rounded


@dataclass(frozen=True, slots=True)
class Explanation:
    """A charge, its lines, and what was booked for it later."""

    request_id: str
    user_id: int
    token_id: int | None
    channel_id: int | None
    model: str
    group: str
    charged: int  # quota
    held: int  # quota that was set aside for it; 0: no hold was open any more
    lines: tuple[ExplainedLine, ...]
    total: str  # quota of the lines, exact
    computed: int | None  # quota: the total rounded up once; None: there are no prices to compute it from
    agrees: bool  # with what was charged
    price_version: int | None
    source: str  # whose price it is
    tier: int | None  # the prompt was longer than so many tokens
    variants: tuple[str, ...]  # conditions that the request met: "processing=batch"
    facts: Mapping[str, Any]
    refunded: int  # quota
    corrected: int  # quota, signed: charged later, or given back, because prices were wrong
    note: str  # why it does not agree, or what was charged without being told


def explain(runtime: Runtime, request_id: str) -> Explanation:
    """See above. Raises ChargeNotFound, InvalidRequest for what is no id, Unavailable."""
    entries = runtime.ledger.entries_of(request_id)
    charge = next((entry for entry in entries if entry.kind == "consume"), None)
    if charge is None:
        raise ChargeNotFound(f"Nothing is charged under request {request_id}.", request_id=request_id)
    price, problem = _price_of(runtime, charge)
    usage, facts = usage_of(charge), charge.price.get("facts", {})
    known = facts if price is None else when_reserved(price, facts, request_id)
    bill, problem = (None, problem) if price is None else _bill_of(price, usage, known)
    sheet = price.list_sheet if price is not None else None
    return Explanation(
        request_id=request_id,
        user_id=charge.user_id,
        token_id=charge.token_id,
        channel_id=charge.channel_id,
        model=charge.model_name,
        group=charge.group_name,
        charged=charge.quota,
        held=charge.held_quota,
        lines=tuple(map(_line, bill.lines)) if bill else (),
        total=text_of(sum((line.usd * QUOTA_PER_USD for line in bill.lines), Fraction())) if bill else "0",
        computed=bill.quota if bill else None,
        agrees=bool(bill and bill.quota == charge.quota),
        price_version=charge.price_version,
        source=price.source if price is not None else "",
        tier=charge.price.get("tier"),
        variants=tuple(_conditions(sheet, charge.price.get("variants", ()))),
        facts=facts,
        refunded=sum(entry.quota for entry in entries if entry.kind == "refund"),
        corrected=sum(entry.used_quota for entry in entries if entry.kind == "correction"),
        note=_note(charge, bill, problem),
    )


def usage_of(charge: EntryRow) -> Usage:
    """What its entry says was used."""
    tokens = {"input_tokens": charge.prompt_tokens, "output_tokens": charge.completion_tokens}
    return Usage.of({**{name: count for name, count in tokens.items() if count}, **charge.meters})


def price_of_entry(charge: EntryRow, prices: PriceList | None) -> Price | None:
    """The price that it was charged by; `prices`: the list that it names. None: its entry knows none."""
    said = charge.price
    factors = tuple(map(Factor.read, said.get("factors", ())))
    ratios = _ratios_of(charge)
    if "sheet" in said and ratios is not None:
        return Price(charge.model_name, charge.group_name, *ratios, sheet=Sheet.read(said["sheet"]), factors=factors,
                     source="a price that is kept with the charge")  # fmt: skip
    if prices is not None:
        found = prices.price(
            model=charge.model_name,
            group=charge.group_name,
            user_group=said.get("user_group", ""),
            channel_type=said.get("channel_type"),
            channel_id=charge.channel_id,
            token_id=charge.token_id,
        )
        group_ratio = ratios[2] if ratios is not None else found.group_ratio
        return replace(found, group_ratio=group_ratio, factors=factors)
    if ratios is None:
        return None
    return Price(charge.model_name, charge.group_name, *ratios, factors=factors, source="ratios")


def stored_list(runtime: Runtime, version: int) -> PriceList:
    """A list that requests were priced by. Raises InvalidRequest if there is none of this version."""
    found = remembered(version)
    if found is None:
        parts = runtime.ledger.price_list_parts(version)
        if not parts:
            raise InvalidRequest(f"Price list {version} is not stored here.")
        found = PriceList.of_parts(parts)
        remember(found)
    return found


def list_of_entry(runtime: Runtime, charge: EntryRow) -> PriceList | None:
    """The one that its entry names; None: it names none, or has its prices itself. Raises InvalidRequest."""
    if charge.price_version is None or "sheet" in charge.price:
        return None
    return stored_list(runtime, charge.price_version)


def _price_of(runtime: Runtime, charge: EntryRow) -> tuple[Price | None, str]:
    try:
        prices = list_of_entry(runtime, charge)
        price = price_of_entry(charge, prices)
    except InvalidRequest as exc:
        return None, exc.message
    return price, "" if price is not None else "Its entry names no price: the gateway said an amount."


def _ratios_of(charge: EntryRow) -> tuple[Fraction, Fraction, Fraction] | None:
    texts = (charge.model_ratio, charge.completion_ratio, charge.group_ratio)
    try:
        model, completion, group = map(parse_ratio, texts)
    except ValueError:
        return None
    return model, completion, group


def _bill_of(price: Price, usage: Usage, facts: Mapping[str, Any]) -> tuple[Bill | None, str]:
    try:
        return price.bill_of(usage, facts), ""
    except InvalidRequest as exc:
        return None, exc.message


def _line(line: Any) -> ExplainedLine:
    return ExplainedLine(
        meter=line.meter,
        count=text_of(line.count),
        price=text_of(line.price),
        per=text_of(line.per),
        factors=tuple(f"{factor.name} {text_of(factor.by)}" for factor in line.factors if factor.by != 1),
        quota=text_of(line.usd * QUOTA_PER_USD),
    )


def _conditions(sheet: Sheet | None, numbers: Sequence[int]) -> list[str]:
    found: list[str] = []
    if sheet is None:
        return found
    for number in numbers:
        when = sheet.variants[number].when.data() if number < len(sheet.variants) else {}
        found.append(", ".join(f"{name}={_flat(value)}" for name, value in when.items()))
    return found


def _flat(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _note(charge: EntryRow, bill: Bill | None, problem: str) -> str:
    source = charge.details.get("usage_source")
    unread = charge.details.get("unread")
    if source == "estimate":
        why = f" {unread.get('problem', '')}" if isinstance(unread, dict) else ""
        return f"Charged what was held: the upstream's word on its usage could not be read.{why}"
    if unread:
        return f"Something the upstream said could not be read, and the last good word counts: {unread.get('problem')}"
    if source:
        return f"The upstream reported no usage; charged by the gateway's own count ({source})."
    if bill is not None and bill.quota != charge.quota:
        return "The gateway said another amount than its prices come to."
    return problem
