"""prices: look at prices, set them, compare lists, find mistakes. `price`: what one request would cost."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from billing_tasks.cli.options import AsJson, Who, me
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, err, facts, print_json, table, usd
from billing_tasks.errors import InvalidRequest

if TYPE_CHECKING:
    from billing_tasks.pricing import Price, Sheet

app = typer.Typer(no_args_is_help=True, help="Prices: list, show, set, history, diff, import, check.")

Comment = Annotated[str, typer.Option(help="Why; kept with the change.")]
From = Annotated[
    str | None, typer.Option("--from", help="From when on: 2026-12-01, or with a time, in UTC. Default: at once.")
]


def price(
    model: Annotated[str, typer.Argument(help="As the gateway names it.", show_default=False)],
    prompt_tokens: Annotated[int, typer.Option("--prompt", min=0, help="Tokens.")] = 1000,
    completion_tokens: Annotated[int, typer.Option("--completion", min=0, help="Tokens.")] = 1000,
    group: Annotated[str, typer.Option(help="The user's group.")] = "default",
    channel_type: Annotated[int | None, typer.Option(help="Some models cost otherwise on one type of channel.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a text request costs, by catalogue and ratios file. Needs no server; `prices show` asks PostgreSQL, too."""
    from billing_tasks.pricing import PriceBook
    from billing_tasks.settings import load_settings

    found = PriceBook(**load_settings().price_book).price(group=group, model=model, channel_type=channel_type)
    _show_price(found, prompt_tokens, completion_tokens, as_json=as_json)


def _show_price(found: Price, prompt_tokens: int, completion_tokens: int, *, as_json: bool) -> None:
    quota, estimate = found.quota(prompt_tokens, completion_tokens), found.estimate(prompt_tokens, completion_tokens)
    if as_json:
        print_json({**found.to_strings(), "source": found.source, "quota": quota, "estimate": estimate})
        return
    console.print(
        facts(
            [
                ("price", found.source),
                *_ratios(found),
                ("group ratio", f"{found.group_ratio}   ({found.group})"),
                ("quota", f"{quota:,}   ({usd(quota)}) for {prompt_tokens:,} + {completion_tokens:,} tokens"),
                ("held before the call", f"{estimate:,}   with max_tokens = {completion_tokens:,}"),
            ],
            title=found.model,
        )
    )
    if found.sheet is not None:
        _show_sheet(found.sheet)


def _ratios(found: Price) -> list[tuple[str, object]]:
    if found.sheet is not None and not found.model_ratio:
        return []
    return [
        ("model ratio", f"{found.model_ratio}   (1 = 2 USD per million prompt tokens)"),
        ("completion ratio", str(found.completion_ratio)),
    ]


def _show_sheet(sheet: Sheet) -> None:
    """Its own prices as a table; what replaces some of them under a condition, a line each."""
    from billing_tasks.pricing import meter

    rows = [
        (name, _decimal(usd_per), _decimal(sheet.per.get(name, meter(name).per)))
        for name, usd_per in sheet.prices.items()
    ]
    console.print(table("meter", "USD", "per", rows=rows, right="USD per"))
    for when, prices in _conditions(sheet):
        if prices:
            console.print(f"{when}: " + ", ".join(f"{name} {_decimal(one)}" for name, one in prices.items()))


def _conditions(sheet: Sheet) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for tier in sheet.tiers:
        yield _of_tier(tier), tier.prices
    for variant in sheet.variants:
        words = ", ".join(f"{name} {_flat(value)}" for name, value in variant.when.data().items())
        yield words, variant.prices
        for tier in variant.tiers:
            yield f"{words}, {_of_tier(tier)}", tier.prices


def _of_tier(tier: Any) -> str:
    return f"prompt {'from' if tier.inclusive else 'above'} {tier.tokens:,}"


def _flat(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _decimal(number: Any) -> str:
    from billing_tasks.pricing.exact import text_of

    return text_of(number)


@app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="The catalogue, too.")] = False,
    provider: Annotated[str | None, typer.Option(help="With --all: only of this provider.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prices of your own: set in PostgreSQL, or in the ratios file. --all: the catalogue as well."""
    prices = admin().prices.current()
    names = prices.own_names
    if everything or provider:
        listed = prices.catalogue_names
        names += [name for name in listed if provider is None or name.startswith(f"{provider}/")]
    found = []
    for name in names:
        try:
            found.append((name, prices.price(model=name)))
        except InvalidRequest as exc:
            err.print(Text(f"{name}: {exc.message}"), soft_wrap=True)
    if as_json:
        print_json([{"name": name, "source": one.source, "sheet": one.list_sheet.data()} for name, one in found])
        return
    columns = ("input_tokens", "output_tokens", "cache_read_tokens")
    rows = [
        (name, *(_decimal(sheet[column]) if column in sheet else "–" for column in columns), one.source)
        for name, one in found
        for sheet in [one.list_sheet.prices]
    ]
    if rows:
        console.print(table("model", "input", "output", "cached", "price", rows=rows, right="input output cached"))
        err.print("USD per 1,000,000 tokens. `prices show MODEL` has all of a model's prices.")
    else:
        console.print("No prices of your own; --all shows the catalogue's.")
    _show_groups(prices)


def _show_groups(prices: Any) -> None:
    for name, ratio in prices.own.group.items():
        console.print(f"group {name}: {ratio}")
    for rule in prices.own.factors:
        console.print(f"factor {rule.factor.name}: {rule.factor.by}")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="As the gateway names it.", show_default=False)],
    group: Annotated[str, typer.Option(help="The group that is paid for.")] = "default",
    prompt_tokens: Annotated[int, typer.Option("--prompt", min=0, help="Tokens.")] = 1000,
    completion_tokens: Annotated[int, typer.Option("--completion", min=0, help="Tokens.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """All prices of a model, with what is set in PostgreSQL."""
    found = admin().prices.show(model, group=group)
    _show_price(found, prompt_tokens, completion_tokens, as_json=as_json)


@app.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="The model, or with --group the group.", show_default=False)],
    values: Annotated[
        list[str] | None,
        typer.Argument(help="METER=USD per its unit: input_tokens=1.25. For a group its ratio.", show_default=False),
    ] = None,
    group: Annotated[bool, typer.Option("--group", help="NAME is a group, the value its ratio.")] = False,
    alias: Annotated[str | None, typer.Option(help="NAME has the price of this model.")] = None,
    file: Annotated[Path | None, typer.Option(help="A whole sheet as TOML, for tiers and variants.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="What was set counts no more.")] = False,
    since: From = None,
    comment: Comment = "",
    actor: Who = None,
    as_json: AsJson = False,
) -> None:
    """Set the price of a model, or the ratio of a group, in PostgreSQL. Gateways follow within two seconds.

    What is reserved already keeps its price.
    """
    kind = "group" if group else "alias" if alias else "model"
    body = None if remove else _body(name, values or [], group=group, alias=alias, file=file)
    done = admin().prices.set(kind, name, body, actor=me(actor), comment=comment, valid_from=_moment(since))
    if as_json:
        print_json(asdict(done))
        return
    when = f"from {_moment(since):%F %T} UTC on" if since else "now"
    what = "counts no more" if remove else "is set"
    console.print(f"{kind} {name}: {what} {when}." if done.made else f"{kind} {name}: it is so already.")


def _body(name: str, values: list[str], *, group: bool, alias: str | None, file: Path | None) -> Any:
    if alias:
        return alias
    if group:
        if len(values) != 1:
            raise InvalidRequest(f"Say one ratio of group {name}, like 0.9.")
        return values[0]
    if file is not None:
        return _sheet_in(file)
    if not values:
        raise InvalidRequest("Say prices like input_tokens=1.25 output_tokens=10, or --file, --remove.")
    prices = {}
    for value in values:
        meter, equals, usd_per = value.partition("=")
        if not equals:
            raise InvalidRequest(f"{value!r} is no price; write METER=USD, like input_tokens=1.25.")
        prices[meter] = usd_per
    return {"prices": prices}


def _sheet_in(file: Path) -> Any:
    from billing_tasks.pricing.tables import load_overrides, parse_tables

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"{file} can't be read: {exc}") from None
    tables = (
        load_overrides(file) if "[prices" in text else parse_tables(f"[prices.it]\n{_inside(text)}", source=str(file))
    )
    sheets = list(tables.prices.values())
    if len(sheets) != 1:
        raise InvalidRequest(f"{file} has {len(sheets)} sheets; `prices import` takes a whole file.")
    return sheets[0].data()


def _inside(text: str) -> str:
    """A sheet's own tables as tables of [prices.it]."""
    lines = [
        line.replace("[[", "[[prices.it.", 1) if line.lstrip().startswith("[[")
        else line.replace("[", "[prices.it.", 1) if line.lstrip().startswith("[") else line
        for line in text.splitlines()
    ]  # fmt: skip
    return "\n".join(lines)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"--from must be a date like 2026-12-01, or a date and time, got {text!r}.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@app.command()
def history(
    name: Annotated[str | None, typer.Argument(help="Only of this model, group ...", show_default=False)] = None,
    lists: Annotated[bool, typer.Option("--lists", help="The price lists that requests were priced by.")] = False,
    as_json: AsJson = False,
) -> None:
    """Who set which price, when, why, and from when on; the latest first."""
    if lists:
        stored = admin().prices.stored()
        if as_json:
            print_json([{"version": version, "stored_at": at, "parts": parts} for version, at, parts in stored])
        else:
            rows = [(str(version), f"{at:%F %T}") for version, at, _ in stored]
            console.print(table("version", "first used (UTC)", rows=rows))
        return
    changes = admin().prices.history(name=name)
    if as_json:
        print_json([asdict(change) for change in changes])
        return
    rows_of_changes = [
        (one.id, f"{one.valid_from:%F %T}", one.kind, one.name, _in_short(one.body), one.actor, one.comment)
        for one in changes
    ]
    console.print(
        table(*("id", "from (UTC)", "kind", "name", "price", "who", "why"), rows=rows_of_changes)
        if changes
        else "No price was ever set in PostgreSQL."
    )


def _in_short(body: object) -> str:
    if body is None:
        return "taken back"
    if isinstance(body, dict) and isinstance(body.get("prices"), dict):
        more = " ..." if body.keys() - {"prices"} else ""
        return ", ".join(f"{name} {price}" for name, price in body["prices"].items()) + more
    return str(body)


@app.command()
def diff(
    before: Annotated[int, typer.Argument(help="A version, as `log` and `history --lists` have it.")],
    after: Annotated[int | None, typer.Argument(help="Another one. Default: the prices that count now.")] = None,
    as_json: AsJson = False,
) -> None:
    """What two price lists price otherwise."""
    found = admin().prices.diff(before, after)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [(one.name, _in_short(one.before) if one.before else "–", _in_short(one.after) if one.after else "–")
            for one in found]  # fmt: skip
    console.print(table("name", "before", "after", rows=rows) if rows else "Both lists have the same prices.")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="TOML, as BILLING_RATIOS_FILE has it.", show_default=False)],
    since: From = None,
    comment: Comment = "",
    actor: Who = None,
    as_json: AsJson = False,
) -> None:
    """Set all prices of a ratios file in PostgreSQL. Once more, it changes nothing."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"{file} can't be read: {exc}") from None
    done = list(
        admin().prices.import_toml(text, actor=me(actor), comment=comment, valid_from=_moment(since), source=str(file))
    )
    if as_json:
        print_json([asdict(one) for one in done])
        return
    made = sum(one.made for one in done)
    console.print(f"{made} prices are set; {len(done) - made} were so already.")


@app.command()
def check(
    everything: Annotated[bool, typer.Option("--all", help="The catalogue's prices, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find prices that are probably mistakes. Exit 1 if there are any."""
    found = admin().prices.check(everything=everything)
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        console.print(table("name", "what", rows=[(one.name, one.what) for one in found]))
    else:
        console.print("No price looks wrong.")
    if found:
        raise typer.Exit(1)
