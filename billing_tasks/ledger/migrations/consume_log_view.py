"""The view billing.consume_log: what was used, first in the columns of the reference's `logs`, then every other field
of ConsumeLog. It follows from that class, so it is no revision's: `upgrade` makes it anew when the class has changed.
"""

from __future__ import annotations

import hashlib
from typing import Final

import sqlalchemy as sa

from billing_tasks.errors import BadSettings
from billing_tasks.model.consume_log import ConsumeLog, Stored, json_fields

#: name in the reference's table -> where it comes from. Its type 2 is "consume".
_REFERENCE: Final = {
    "id": "entry_id",
    "user_id": "user_id",
    "created_at": "extract(epoch from coalesce(used_at, created_at))::bigint",
    "type": "2",
    "content": "content",
    "username": "''::text",
    "token_name": "token_name",
    "model_name": "model_name",
    "quota": "quota",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "channel_id": "coalesce(channel_id, 0)",
    "request_id": "request_id::text",
    "elapsed_time": "elapsed_ms",
    "is_stream": "is_stream",
    "system_prompt_reset": "false",
}
#: Fields of ConsumeLog that are called otherwise in the view: (name, where it comes from).
_OTHERWISE: Final = {
    "elapsed_ms": None,  # the reference's elapsed_time
    "group": ('"group"', "group_name"),
    "used_at_ms": ("used_at", "coalesce(used_at, created_at)"),
    # Release 0.1.0 kept it in the column of that name; its fingerprints have 16 bytes.
    "usage": (
        "usage",
        "case when length(fingerprint) = 16 and usage is not null then usage else details -> 'usage' end",
    ),
    # Objects whose own names are those in the ledger's.
    "meters": ("meters", "case when length(fingerprint) <> 16 then usage end"),
    "price": ("price", "price"),
}
#: annotation of a field without a column -> how it is read out of its JSON object
_READ: Final = {
    int: "coalesce(({column} ->> '{name}')::bigint, 0)",
    str: "coalesce({column} ->> '{name}', '')",
    bool: "coalesce(({column} ->> '{name}')::boolean, false)",
}


def columns() -> dict[str, str]:
    """Column name -> where it comes from, in the order of the view."""
    found = dict(_REFERENCE)
    in_json = {name: column for column, names in json_fields().items() for name in names}
    for name, declared in ConsumeLog.model_fields.items():
        if name in _OTHERWISE:
            renamed = _OTHERWISE[name]
            found.update([renamed] if renamed else [])
        elif name in in_json:
            found[name] = _out_of_json(in_json[name], name, declared.annotation)
        else:
            found.setdefault(name, name)
    return found


def _out_of_json(column: Stored, name: str, annotation: object) -> str:
    template = next((text for kind, text in _READ.items() if annotation == kind), "{column} -> '{name}'")
    return template.format(column=column.value, name=name)


def definition() -> str:
    """The statement that makes the view, or makes it anew with further columns."""
    selected = ",\n       ".join(f"{source} as {name}" for name, source in columns().items())
    return (
        f"create or replace view billing.consume_log as\nselect {selected}\n"
        "from billing.ledger_entries\nwhere kind = 'consume'"
    )


def refresh(connection: sa.Connection) -> None:
    """Make the view as this program knows it. A view that is so already is not touched, and locks nothing."""
    made_by = f"made of ConsumeLog, {hashlib.sha256(definition().encode()).hexdigest()[:16]}"
    found = connection.scalar(sa.text("select obj_description(to_regclass('billing.consume_log'))"))
    if found == made_by:
        return
    try:
        with connection.begin_nested():
            connection.execution_options(no_parameters=True).exec_driver_sql(definition())
    except sa.exc.ProgrammingError as error:  # a column is gone, moved, or has another type
        _replace(connection, error)
    connection.exec_driver_sql(f"comment on view billing.consume_log is '{made_by}'")


def _replace(connection: sa.Connection, why: sa.exc.ProgrammingError) -> None:
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("drop view billing.consume_log")
            connection.execution_options(no_parameters=True).exec_driver_sql(definition())
    except sa.exc.DBAPIError as error:
        raise BadSettings(
            f"The view billing.consume_log can't be made anew ({str(error.orig).splitlines()[0]}). Drop what depends"
            " on it, run `billing-tasks migrate`, and make that again."
        ) from why
