"""Rows of a database as plain SQL that fits any day: ids, moments and epochs are names that `load` fills in.

`dump` writes one INSERT per row and the sequences' values. `load` puts them into a database that is migrated to the
schema they come from, and is otherwise empty, with triggers off: opening balances are entries of the dump already.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from tests.releases.state import tables
from tests.releases.templates import Names, iso, message_fingerprint

#: What is further away than this is a fixed moment of the scenario.
_NEAR = timedelta(days=2)
HEAD = """-- Made by `python -m tests.releases record`; tests/releases/dump.py loads it. Never edited.
-- {size} rows of release {release}, as the scenario one_day left them.
set session_replication_role = replica;
"""


def dump(connection: psycopg.Connection[Any], names: Names, *, release: str) -> str:
    """All rows and sequences of the schema. Names what it finds: a fresh `Names` but for the ids of the scenario."""
    rows = {table: _Table(connection, table) for table in tables(connection)}
    _name_own_ids(rows, names)
    _name_fingerprints(rows, names)
    cursors = rows["outbox_cursors"]
    for shard in {row["shard"] for row in cursors.rows}:
        names.know_epochs(shard, [row["epoch"] for row in cursors.rows if row["shard"] == shard])
    moments = _Moments(rows)
    lines: list[str] = []
    for table in rows.values():
        if table.name == "installation":  # a migrated schema has a row
            lines.append("delete from billing.installation;")
        lines += sorted(table.insert(row, names, moments) for row in table.rows)
    size = len(lines)
    lines += [f"select setval('billing.{name}', {value}, true);" for name, value in _sequences(connection, rows)]
    return HEAD.format(size=size, release=release) + "\n".join(lines) + "\nset session_replication_role = origin;\n"


def load(connection: psycopg.Connection[Any], text: str, names: Names, *, now: datetime | None = None) -> None:
    """Put a dump into an empty database; ids that `names` does not know yet are minted.

    `now` is what its moments are counted from: the same for what is put back into Redis.
    """
    connection.execute(names.filled(text, now=now or datetime.now(UTC) - timedelta(seconds=60)))  # type: ignore[arg-type]


class _Table:
    """One table: its columns with their types, its rows as Python has them."""

    def __init__(self, connection: psycopg.Connection[Any], name: str) -> None:
        self.name = name
        found = connection.execute(
            "select column_name, udt_name, is_identity from information_schema.columns"
            " where table_schema = 'billing' and table_name = %s order by ordinal_position",
            [name],
        ).fetchall()
        self.types = {column: udt for column, udt, _ in found}
        self.identity = [column for column, _, identity in found if identity == "YES"]
        # Moments as microseconds: what is compared must be exact, and "infinity" is none of ours.
        selected = [
            sql.SQL("(extract(epoch from {}) * 1000000)::bigint") if udt == "timestamptz" else sql.SQL("{}")
            for udt in self.types.values()
        ]
        listed = sql.SQL(", ").join(
            how.format(sql.Identifier(column)) for how, column in zip(selected, self.types, strict=True)
        )
        query = sql.SQL("select {} from {}").format(listed, sql.Identifier("billing", name))
        self.rows = [dict(zip(self.types, row, strict=True)) for row in connection.execute(query)]

    def insert(self, row: dict[str, Any], names: Names, moments: _Moments) -> str:
        """The statement that adds this row."""
        values = ", ".join(self._literal(column, row, names, moments) for column in self.types)
        overriding = " overriding system value" if self.identity else ""
        return f"insert into billing.{self.name} ({', '.join(self.types)}){overriding} values ({values});"

    def _literal(self, column: str, row: dict[str, Any], names: Names, moments: _Moments) -> str:
        value, udt = row[column], self.types[column]
        if value is None:
            return "null"
        if udt == "timestamptz":
            return f"'{moments.written(column, row)}'"
        if isinstance(value, bool | int):
            return names.within(str(value).lower(), clocks=True)
        if isinstance(value, bytes):
            return _bytes(column, value, names)
        text = json.dumps(value, ensure_ascii=False) if udt == "jsonb" else str(value)
        if column == "fingerprint" and "payload" in row and text == message_fingerprint(row["payload"]):
            return "'<fingerprint of the message>'"
        return "'" + names.within(text, clocks=True).replace("'", "''") + "'"


def _bytes(column: str, value: bytes, names: Names) -> str:
    if column == "payload" and value.startswith(b"{"):  # a fingerprint may begin with a brace, too
        text = names.within(value.decode(), clocks=True).replace("'", "''")
        return f"convert_to('{text}', 'UTF8')"
    return f"'\\x{names.within(value.hex())}'"


class _Moments:
    """Numbers for all moments that are near, in their order."""

    def __init__(self, rows: dict[str, _Table]) -> None:
        self._now = datetime.now(UTC)
        found = {
            row[column]
            for table in rows.values()
            for column, udt in table.types.items()
            for row in table.rows
            if udt == "timestamptz" and column != "next_attempt_at" and row[column] is not None
        }
        self._numbers = {moment: number for number, moment in enumerate(sorted(found), 1)}

    def written(self, column: str, row: dict[str, Any]) -> str:
        """A name, or a fixed moment as it is."""
        moment = row[column]
        if column == "next_attempt_at":
            seconds, rest = divmod(moment - row["updated_at"], 1_000_000)
            if rest:
                raise ValueError(f"a next attempt is no whole number of seconds away: {row}")
            return f"<time {self._numbers[row['updated_at']]} +{seconds} s>"
        if abs(datetime.fromtimestamp(moment / 1_000_000, UTC) - self._now) > _NEAR:
            return iso(moment)
        return f"<time {self._numbers[moment]}>"


def _name_own_ids(rows: dict[str, _Table], names: Names) -> None:
    """Entries that are no request: by what they are, because nothing in their ids lasts. Versions: by their order."""
    known = set(names.ids.values())
    unknown = [row for row in rows["ledger_entries"].rows if str(row["entry_id"]) not in known]
    owners = {
        row["entry_id"]: row.get("id") or row.get("refund_id") for t in ("top_ups", "refunds") for row in rows[t].rows
    }

    def what(row: dict[str, Any]) -> str:
        of = owners.get(row["entry_id"], "")
        return f"{row['kind']} {of or row['content']} user {row['user_id']} token {row['token_id']} {row['quota']}"

    for row in sorted(unknown, key=what):
        name = f"entry: {what(row)}"
        if names.ids.get(name, str(row["entry_id"])) != str(row["entry_id"]):
            raise ValueError(f"two entries are alike, so their ids can't be named: {name}")
        names.know_id(name, str(row["entry_id"]))
    for version, row in enumerate((row for t in ("users", "tokens") for row in sorted(rows[t].rows, key=_id)), 1):
        row["version"] = version


def _id(row: dict[str, Any]) -> int:
    number: int = row["id"]
    return number


def _name_fingerprints(rows: dict[str, _Table], names: Names) -> None:
    """Those over ids: of releases and refunds."""
    for row in rows["ledger_entries"].rows:
        if row["kind"] == "release":
            names.know_fingerprint("release", row["user_id"], row["token_id"], row["entry_id"], row["quota"])
    for row in rows["refunds"].rows:
        for amount in (row["quota"], "whole"):
            names.know_fingerprint("refund", row["user_id"], row["request_id"], row["refund_id"], amount)
    for row in rows["dead_letters"].rows:
        know_payload(row["payload"], names)


def know_payload(payload: bytes, names: Names) -> None:
    """The fingerprint inside an event, if it is made of ids."""
    try:
        event = json.loads(payload)
    except ValueError:
        return
    user_id, request_id = event.get("user_id"), event.get("request_id")
    if event.get("kind") == "release":
        names.know_fingerprint("release", user_id, event["token_id"], request_id, event.get("quota", 0))
    elif event.get("kind") == "refund":
        amount = "whole" if event.get("whole") else event["quota"]
        names.know_fingerprint("refund", user_id, request_id, event["refund_id"], amount)


def _sequences(connection: psycopg.Connection[Any], rows: dict[str, _Table]) -> list[tuple[str, int]]:
    found = connection.execute(
        "select sequencename, last_value from pg_sequences"
        " where schemaname = 'billing' and last_value is not null order by sequencename"
    ).fetchall()
    accounts = len(rows["users"].rows) + len(rows["tokens"].rows)  # their versions were numbered anew
    return [(name, accounts if name == "versions" else value) for name, value in found]
