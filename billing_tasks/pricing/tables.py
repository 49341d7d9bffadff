"""Prices of one's own as TOML: read, checked, and every complaint with file, line and reason.

A file has the tables [model], [completion] and [group]; a key is a name, quoted if it contains anything but letters,
digits, '-' and '_'; a value is a ratio. Beside them: [alias], what a deployment is a name of; [prices."model"], a
sheet; [group_for."user's group"], what its users pay in another group; [[factor]] and [[cost]], rules (`rules.py`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from billing_tasks.errors import BadRatios, InvalidRequest
from billing_tasks.pricing.exact import check_name, parse_ratio, show
from billing_tasks.pricing.rules import CostRule, FactorRule, flat
from billing_tasks.pricing.sheet import Sheet

TABLES = ("model", "completion", "group")
_OTHERS = ("alias", "prices", "group_for", "factor", "cost")

_HEADER = re.compile(r"\s*\[\[?\s*(.*?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*[=.]""")
_HUGE_INTEGER = re.compile(r"[0-9]{640}")
_AT_LINE = re.compile(r"\s*\(at line (\d+), column \d+\)$")
_AT_END = re.compile(r"\s*\(at end of document\)$")


@dataclass(frozen=True, slots=True)
class RatioTables:
    """Ratios by name: of models, of their completions, of groups; and what else an operator may say. Read-only."""

    model: Mapping[str, Fraction] = field(default_factory=dict)
    completion: Mapping[str, Fraction] = field(default_factory=dict)
    group: Mapping[str, Fraction] = field(default_factory=dict)
    alias: Mapping[str, str] = field(default_factory=dict)  # whose price a name has
    prices: Mapping[str, Sheet] = field(default_factory=dict)
    group_for: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)  # by user's group, then by group
    factors: tuple[FactorRule, ...] = ()
    costs: tuple[CostRule, ...] = ()

    def __post_init__(self) -> None:
        for table in (*TABLES, "alias", "prices", "group_for"):
            object.__setattr__(self, table, MappingProxyType(dict(getattr(self, table))))

    def overlaid_with(self, other: RatioTables) -> RatioTables:
        """These tables, with `other`'s entries added or in place of ours."""
        return RatioTables(
            model={**self.model, **other.model},
            completion={**self.completion, **other.completion},
            group={**self.group, **other.group},
            alias={**self.alias, **other.alias},
            prices={**self.prices, **other.prices},
            group_for={**self.group_for, **other.group_for},
            factors=(*self.factors, *other.factors),
            costs=(*other.costs, *self.costs),  # the first that fits counts
        )

    def data(self) -> dict[str, Any]:
        """As plain data that `of_data` reads again; what is empty is left out."""
        made: dict[str, Any] = {
            table: {name: str(ratio) for name, ratio in getattr(self, table).items()} for table in TABLES
        }
        made["alias"] = dict(self.alias)
        made["prices"] = {name: sheet.data() for name, sheet in self.prices.items()}
        made["group_for"] = {
            user: {name: str(ratio) for name, ratio in ratios.items()} for user, ratios in self.group_for.items()
        }
        made["factor"] = [rule.data() for rule in self.factors]
        made["cost"] = [rule.data() for rule in self.costs]
        return {name: value for name, value in made.items() if value}


@cache
def default_tables() -> RatioTables:
    """The tables shipped with the package (`defaults.toml`)."""
    text = resources.files(__package__).joinpath("defaults.toml").read_text(encoding="utf-8")
    return parse_tables(text, source="billing_tasks/pricing/defaults.toml")


def load_overrides(path: Path) -> RatioTables:
    """The tables of a file. Raises BadRatios if it can't be read or a line can't be used."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise BadRatios(f"{path}: can't be read: {exc.strerror or exc}", reason="unreadable") from None
    try:
        text = content.decode("utf-8-sig")  # editors on Windows put a mark in front
    except UnicodeDecodeError as exc:
        raise _bad_line(str(path), content.count(b"\n", 0, exc.start) + 1, "not UTF-8") from None
    return parse_tables(text, source=str(path))


def parse_tables(text: str, *, source: str) -> RatioTables:
    """The tables that `text` writes in TOML. Raises BadRatios; `source` names the text in messages."""
    try:
        return of_data(_parse_toml(text, source=source))
    except BadEntry as bad:
        line = _line_of_table(text, bad.table) if bad.name is None else _line_of_entry(text, bad.table, bad.name)
        raise _bad_line(source, line, bad.reason) from None


class BadEntry(Exception):
    """What can't be used, and where it stands; `name` None: the whole table."""

    def __init__(self, table: str, name: str | None, reason: str) -> None:
        super().__init__(reason)
        self.table, self.name, self.reason = table, name, reason


def of_data(document: Mapping[str, Any]) -> RatioTables:
    """The tables of plain data. Raises BadEntry."""
    made: dict[str, Any] = {}
    for table, content in document.items():
        if table not in (*TABLES, *_OTHERS):
            others = ", ".join(f"[{name}]" for name in _OTHERS)
            raise BadEntry(table, None, f"{table!r} is none of the tables [model], [completion], [group], {others}")
        if table in ("factor", "cost"):
            made[f"{table}s"] = tuple(_rules(table, content))
            continue
        if not isinstance(content, Mapping):
            raise BadEntry(table, None, f"{table!r} is a table; write [{table}] and the ratios below it")
        made[table] = {name: _entry(table, name, value) for name, value in content.items()}
    return RatioTables(**made)


def _rules(table: str, content: Any) -> Iterator[FactorRule | CostRule]:
    if not isinstance(content, list):
        raise BadEntry(table, None, f"[[{table}]] is a list of tables; write it in double brackets")
    for number, row in enumerate(content):
        try:
            kind = FactorRule if table == "factor" else CostRule
            yield kind.read(row, f"[[{table}]] number {number + 1}")
        except InvalidRequest as exc:
            raise BadEntry(table, None, exc.message.removesuffix(".")) from None


def _entry(table: str, name: str, value: Any) -> Any:
    try:
        match table:
            case "alias":
                check_name(name, field="the name")
                return check_name(value, field=f"[alias] {name!r}")
            case "prices":
                check_name(name, field="the name")
                return Sheet.read(flat(value, f'[prices."{name}"]'))
            case "group_for":
                return _group_for(name, value)
            case _:
                return check_entry(table, name, value)
    except InvalidRequest as exc:
        where = f"[{table}] {name!r}: "
        raise BadEntry(table, name, f"{where}{exc.message.removesuffix('.')}") from None
    except ValueError as exc:
        raise BadEntry(table, name, str(exc)) from None


def check_tables(**tables: Mapping[str, object]) -> RatioTables:
    """Tables given by a program instead of a file. Raises BadRatios with table, name and reason."""
    checked: dict[str, Any] = {}
    for table, entries in tables.items():
        if not isinstance(entries, Mapping):
            raise BadRatios(f"[{table}] must map names to ratios, got {show(entries)}", reason="not a mapping")
        try:
            ratios = {name: check_entry(table, name, value) for name, value in entries.items()}
        except ValueError as exc:
            raise BadRatios(f"Ratios set at run time: {exc}", reason=str(exc)) from None
        checked[table] = ratios
    return RatioTables(**checked)


def check_entry(table: str, name: object, value: object) -> Fraction:
    """The ratio of one line, or ValueError with a reason that names table and key."""
    try:
        check_name(name, field="the name")
    except InvalidRequest as exc:
        raise ValueError(f"[{table}]: {exc.message.removesuffix('.')}") from None
    if isinstance(value, dict):
        inner = next(iter(value), "")
        raise ValueError(f'[{table}]: a name with a dot needs quotes: "{name}.{inner}"')  # noqa: TRY004 - a reason
    try:
        return parse_ratio(value)
    except ValueError as exc:
        raise ValueError(f"[{table}] {name!r}: {exc}") from None


def _group_for(name: str, value: Any) -> Mapping[str, Fraction]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"[group_for.{name}] must be a table of groups and ratios.")
    return {group: check_entry(f"group_for.{name}", group, ratio) for group, ratio in value.items()}


def _parse_toml(text: str, *, source: str) -> dict[str, Any]:
    try:
        # Decimals stay the text they were written as: 1.1 means 11/10, which no float is.
        return tomllib.loads(text, parse_float=_as_written)
    except (ValueError, RecursionError) as exc:  # ValueError: also integers of thousands of digits
        line, reason = _line_and_reason(str(exc), text)
        raise _bad_line(source, line, reason) from None


def _line_and_reason(complaint: str, text: str) -> tuple[int, str]:
    if at_line := _AT_LINE.search(complaint):
        return int(at_line[1]), _AT_LINE.sub("", complaint)
    if _AT_END.search(complaint):
        return text.count("\n") + 1, _AT_END.sub(" (the file ends too early)", complaint)
    # Python's own complaint, about an integer of thousands of digits: it knows no line.
    return _first_line(text, _HUGE_INTEGER.search), complaint


def _as_written(number: str) -> str:
    return number.replace("_", "")  # TOML allows 1_000.5


# tomllib keeps no positions, so a line that reads well and means nothing is found by a simple scan.


def _line_of_table(text: str, name: str) -> int:
    """The line that opens [name] or, above any table, sets it."""
    for number, line in _lines(text):
        if (header := _HEADER.match(line)) and _plain(header[1]).split(".")[0] == name:
            return number
    return _first_line(text, lambda line: name in line)


def _line_of_entry(text: str, table: str, name: str) -> int:
    """The line that sets `name` in [table]; in an inline table, the first that mentions it."""
    current = ""
    for number, line in _lines(text):
        if header := _HEADER.match(line):
            current = _plain(header[1])
            if current.startswith(f"{table}.{name}"):
                return number
        elif current == table and (key := _KEY.match(line)) and _unquote(key[1]) == name:
            return number
    return _first_line(text, lambda line: name in line)


def _plain(header: str) -> str:
    return header.replace('"', "").replace("'", "")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.lstrip().startswith("#"):
            yield number, line


def _first_line(text: str, fits: Callable[[str], object]) -> int:
    return next((number for number, line in _lines(text) if fits(line)), 1)


def _unquote(key: str) -> str:
    if key.startswith('"'):
        return str(tomllib.loads(f"key = {key}")["key"])  # with its escapes
    return key.strip("'")


def _bad_line(source: str, line: int, reason: str) -> BadRatios:
    return BadRatios(f"{source}, line {line}: {reason}", reason=reason)
