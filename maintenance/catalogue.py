"""Catalogue: writes the package's list prices from genai-prices (MIT), and prints what changed.

    make catalogue

A price that began by today is the sheet's own; one that begins later, or goes by the time of day, is a variant. What a
sheet can't say stops the command: a price is right or is not in the catalogue.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genai_prices import types as theirs
from genai_prices.data import providers
from genai_prices.units import _get_registry

import billing_tasks.pricing
from billing_tasks.pricing.sheet import Sheet

FILE = Path(billing_tasks.pricing.__file__).parent / "data" / "catalogue.json"
#: genai-prices has this in its code: Groq bills ten seconds at least.
_LEAST_TEN_SECONDS = {("groq", "whisper-large-v3"), ("groq", "whisper-large-v3-turbo")}


def rows(now: datetime) -> Iterator[dict[str, Any]]:
    """A row for each model of each provider."""
    for provider in providers:
        for model in provider.models:
            row: dict[str, Any] = {"provider": provider.id, "model": model.id, "names": _names(model.match)}
            row["sheet"] = _sheet(model, now)
            if not row["sheet"]["prices"]:  # theirs is free then, or not known
                if not model.id.endswith(":free"):
                    continue
                row["sheet"]["prices"] = {"input_tokens": "0", "output_tokens": "0"}
            if (provider.id, model.id) in _LEAST_TEN_SECONDS:
                row["sheet"]["least"] = {"audio_seconds": "10", "input_audio_seconds": "10"}
            if model.context_window:
                row["context"] = model.context_window
            if model.deprecated:
                row["deprecated"] = True
            Sheet.read(row["sheet"])
            yield row


def _sheet(model: Any, now: datetime) -> dict[str, Any]:
    in_force = _in_force(model, now)
    base = max(in_force, key=_dearness) if _is_of_hours(in_force[0]) else in_force[0]
    sheet: dict[str, Any] = _priced(base.prices)
    variants = [
        {"when": {**variant.when, **_when(variant.constraint)}, **_priced(variant.prices)}
        for variant in model.price_variants or ()
    ]
    for one in reversed(in_force):
        if one is base:
            continue
        found = _priced(one.prices)
        if missing := sheet["prices"].keys() - found["prices"].keys():
            raise SystemExit(f"{model.id}: another price has none of {sorted(missing)}: no variant takes it away")
        variants.append({"when": _when(one.constraint), **found})
    if variants:
        sheet["variants"] = list(_begun(variants, now))
    return sheet


def _begun(variants: list[dict[str, Any]], now: datetime) -> Iterator[dict[str, Any]]:
    """A date that is past says nothing any more, and a sheet without dates need not know when a request began."""
    said: list[dict[str, Any]] = []
    for variant in variants:
        when = {name: value for name, value in variant["when"].items()
                if name != "from" or value > now.date().isoformat()}  # fmt: skip
        if when not in said:
            said.append(when)
            yield {**variant, "when": when}


def _in_force(model: Any, now: datetime) -> list[Any]:
    """The price of today and those that come later or go by the hour; a later one of the list goes before."""
    if not isinstance(model.prices, list):
        return [theirs.ConditionalPrice(prices=model.prices)]
    kept: list[Any] = model.prices[:1]
    for one in model.prices[1:]:
        began = isinstance(one.constraint, theirs.StartDateConstraint) and one.constraint.start_date <= now.date()
        kept = [one] if began or one.constraint is None else [*kept, one]
    return kept


def _is_of_hours(price: Any) -> bool:
    return isinstance(price.constraint, theirs.TimeOfDateConstraint)


def _dearness(price: Any) -> Decimal:
    """Without a time the dearest hours have the price."""
    value = price.prices.input_mtok
    return Decimal(value.base if isinstance(value, theirs.TieredPrices) else value or 0)


def _priced(price: Any) -> dict[str, Any]:
    registry = _get_registry()
    prices: dict[str, str] = {}
    above: dict[int, dict[str, str]] = {}
    for key, value in vars(price).items():
        if value is None:
            continue
        name = registry.unit_for_price_key(key).usage_key
        prices[name] = _text(value.base if isinstance(value, theirs.TieredPrices) else value)
        for tier in value.tiers if isinstance(value, theirs.TieredPrices) else ():
            above.setdefault(tier.start, {})[name] = _text(tier.price)
    found: dict[str, Any] = {"prices": prices}
    if above:
        found["above"] = [{"tokens": start, "prices": above[start]} for start in sorted(above)]
    return found


def _when(constraint: Any) -> dict[str, Any]:
    if constraint is None:
        return {}
    if isinstance(constraint, theirs.StartDateConstraint):
        return {"from": constraint.start_date.isoformat()}
    begin, end = (moment.strftime("%H:%M") for moment in (constraint.start_time, constraint.end_time))
    if (constraint.start_time.tzinfo or UTC) != UTC and constraint.start_time.utcoffset():
        raise SystemExit(f"hours in another zone than UTC: {constraint}")
    return {"utc": [f"{begin}-{end}"]}


def _names(clause: Any) -> list[Any]:
    """["equals", text], likewise starts, ends, contains and regex; ["any", ...] and ["all", ...] of such."""
    match clause:
        case theirs.ClauseEquals():
            return ["equals", clause.equals.lower()]
        case theirs.ClauseStartsWith():
            return ["starts", clause.starts_with.lower()]
        case theirs.ClauseEndsWith():
            return ["ends", clause.ends_with.lower()]
        case theirs.ClauseContains():
            return ["contains", clause.contains.lower()]
        case theirs.ClauseRegex():
            return ["regex", clause.regex]
        case theirs.ClauseOr():
            return ["any", *map(_names, clause.or_)]
        case theirs.ClauseAnd():
            return ["all", *map(_names, clause.and_)]
    raise SystemExit(f"a clause that the catalogue does not know: {clause}")


def _text(price: Decimal) -> str:
    text = format(price, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """A line per model that came, went or has another price."""
    old, new = ({(row["provider"], row["model"]): row for row in one.get("models", [])} for one in (before, after))
    for key in sorted(old.keys() | new.keys()):
        name = "/".join(key)
        if key not in old:
            yield f"+ {name}: {json.dumps(new[key]['sheet']['prices'])}"
        elif key not in new:
            yield f"- {name}"
        elif old[key] != new[key]:
            yield f"  {name}: {json.dumps(old[key]['sheet'])} -> {json.dumps(new[key]['sheet'])}"


def main() -> None:
    """Writes the file."""
    now = datetime.now(UTC)
    before = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    source = f"genai-prices {version('genai-prices')}"
    also = {one.id: one.fallback_model_providers for one in providers if one.fallback_model_providers}
    after = {
        "source": source,
        "license": "MIT",
        "made": now.date().isoformat(),
        "also": also,
        "models": list(rows(now)),
    }
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in after["models"])
    head = json.dumps({name: after[name] for name in ("source", "license", "made", "also")})[:-1]
    FILE.write_text(f'{head}, "models": [\n{lines}\n]}}\n', encoding="utf-8")
    said = list(changes(before, after))
    said = [*said[:200], f"{len(after['models']):,} models of {source}, {len(said):,} changed"]
    sys.stdout.write("\n".join(said) + "\n")


if __name__ == "__main__":
    main()
