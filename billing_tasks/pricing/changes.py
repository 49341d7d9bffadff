"""Changes of prices that operators make in PostgreSQL, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import check_name, show
from billing_tasks.pricing.tables import BadEntry, RatioTables, of_data


@dataclass(frozen=True, slots=True)
class Change:
    """One change of prices that an operator made in PostgreSQL. It never changes; a later one takes its place."""

    kind: str  # one of KINDS
    name: str
    body: Any  # as the file has it; None: taken back
    from_ms: int = 0  # since 1970: from when on it counts
    at_once: bool = True  # from_ms was not in the future when it was made, whatever the clock here says


#: kind of a change -> the file's table
_TABLE_OF = {"model": "prices", "group": "group", "group_for": "group_for", "alias": "alias",
             "factor": "factor", "cost": "cost"}  # fmt: skip
KINDS = tuple(_TABLE_OF)


def check_change(kind: str, name: str, body: Any) -> None:
    """Raise InvalidRequest unless a change may say this."""
    if kind not in _TABLE_OF:
        raise InvalidRequest(f"kind must be one of {', '.join(KINDS)}, got {show(kind)}.")
    check_name(name, field="name")
    if body is not None:
        try:
            tables_of([Change(kind, name, body, 0)])
        except BadEntry as bad:
            raise InvalidRequest(f"{kind} {name!r} can't be used: {bad.reason}.") from None


def tables_of(changes: Sequence[Change]) -> RatioTables:
    """Of each kind and name the last of them counts. Raises BadEntry."""
    latest = {(change.kind, change.name): change.body for change in changes}
    document: dict[str, Any] = {}
    for (kind, name), body in sorted(latest.items(), key=lambda item: item[0]):  # of costs the first by name counts
        if body is None:
            continue
        if kind in ("factor", "cost"):
            document.setdefault(kind, []).append({**body, "name": name} if kind == "factor" else body)
        else:
            document.setdefault(_TABLE_OF[kind], {})[name] = body
    return of_data(document)
