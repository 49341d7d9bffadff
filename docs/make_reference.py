"""Writes the tables of the reference that follow from the code: `make reference`. A test compares them.

A page has a table between two marks, `<!-- fields of ConsumeLog -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from billing_tasks.model.consume_log import ConsumeLog, Stored, json_fields

PAGE = Path(__file__).parent / "reference" / "consume-log.md"
BEGIN, END = "<!-- fields of ConsumeLog -->\n", "<!-- end -->"


def fields_of_consume_log() -> str:
    """The table of fields: name, type with its bounds, default, where the ledger keeps it, meaning."""
    columns = {name: column for column, names in json_fields().items() for name in names}
    lines = ["| field | type | left out | kept in | |", "|---|---|---|---|---|"]
    for name, declared in ConsumeLog.model_fields.items():
        left_out = "required" if declared.is_required() else f"`{json.dumps(declared.default)}`"
        kept = f"`{columns[name].value}`" if name in columns else "a column"
        meaning = declared.description or ("a quantity" if columns.get(name) is Stored.USAGE else "")
        lines.append(f"| `{name}` | {_type(declared)} | {left_out} | {kept} | {meaning} |")
    return "\n".join(lines) + "\n"


def _type(declared: Any) -> str:
    names = ("ge", "le", "max_length")
    bounds = {name: getattr(one, name) for one in declared.metadata for name in names if hasattr(one, name)}
    kind = str(declared.annotation)
    if "dict" in kind:
        return "object"
    if "bool" in kind:
        return "boolean"
    if "int" in kind:
        most = bounds["le"]
        power = f"2^{most.bit_length() - 1}" if most & (most - 1) == 0 else f"{most:,}"
        return f"integer from {bounds['ge']} to {power}"
    return f"string, at most {bounds['max_length']:,}" if bounds else "string"


def with_table(page: str) -> str:
    """The page with today's table."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{fields_of_consume_log()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
