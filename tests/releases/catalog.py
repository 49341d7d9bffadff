"""What a database has in the schema `billing`, as JSON that can be compared: an upgraded one with a fresh one, say.

Everything is sorted by name, so the order in which columns were added does not count. The months' partitions, which
differ with the day of the migration, are folded into one, `ledger_entries_<month>`; that they are alike is checked.
Plain psycopg; reads only.
"""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
from psycopg.rows import dict_row

_MONTH = re.compile(r"_[0-9]{4}_[0-9]{2}(?![0-9])")
_BOUND = re.compile(r"'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'")

_RELATIONS = """
select c.relname as name, c.relkind::text as kind, coalesce(c.reloptions, '{}') as options,
       pg_get_partkeydef(c.oid) as partitioned_by, pg_get_expr(c.relpartbound, c.oid) as partition_bound,
       case c.relkind when 'v' then pg_get_viewdef(c.oid) end as definition
from pg_class as c where c.relnamespace = 'billing'::regnamespace and c.relkind in ('r', 'p', 'v')
"""
_COLUMNS = """
select c.relname as relation, a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
       not a.attnotnull as nullable, a.attidentity::text as identity, a.attgenerated::text as generated,
       pg_get_expr(d.adbin, d.adrelid) as default
from pg_attribute as a join pg_class as c on c.oid = a.attrelid
left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
where c.relnamespace = 'billing'::regnamespace and c.relkind in ('r', 'p', 'v', 'c')
  and a.attnum > 0 and not a.attisdropped
"""
# Without "not null", which the columns say.
_CONSTRAINTS = """
select c.relname as relation, k.conname as name, pg_get_constraintdef(k.oid) as definition
from pg_constraint as k join pg_class as c on c.oid = k.conrelid
where c.relnamespace = 'billing'::regnamespace and k.contype <> 'n'
"""
_INDEXES = """
select tablename as relation, indexname as name, indexdef as definition from pg_indexes where schemaname = 'billing'
"""
_TRIGGERS = """
select c.relname as relation, t.tgname as name, pg_get_triggerdef(t.oid) as definition, t.tgenabled::text as enabled
from pg_trigger as t join pg_class as c on c.oid = t.tgrelid
where c.relnamespace = 'billing'::regnamespace and not t.tgisinternal
"""
_FUNCTIONS = """
select p.proname as name, pg_get_function_identity_arguments(p.oid) as arguments,
       pg_get_function_result(p.oid) as result, pg_get_functiondef(p.oid) as definition
from pg_proc as p where p.pronamespace = 'billing'::regnamespace
"""
_SEQUENCES = """
select sequencename as name, data_type::text as type, start_value, min_value, max_value, increment_by, cycle, cache_size
from pg_sequences where schemaname = 'billing'
"""


def catalog(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Relations (each with its columns, constraints, indexes, triggers), types, functions, sequences."""
    relations = {one.pop("name"): one for one in _ask(connection, _RELATIONS)}
    types: dict[str, Any] = {}
    for column in _ask(connection, _COLUMNS):
        relation, name = column.pop("relation"), column.pop("name")
        of = relations[relation] if relation in relations else types.setdefault(relation, {})
        of.setdefault("columns", {})[name] = column
    for what, query in (("constraints", _CONSTRAINTS), ("indexes", _INDEXES), ("triggers", _TRIGGERS)):
        for row in _ask(connection, query):
            relation, name = row.pop("relation"), row.pop("name")
            kept = row["definition"] if set(row) == {"definition"} else row
            relations[relation].setdefault(what, {})[name] = kept
    functions = {f"{one['name']}({one['arguments']})": one for one in _ask(connection, _FUNCTIONS)}
    return {
        "relations": _months_folded(relations),
        "types": types,
        "functions": functions,
        "sequences": {one.pop("name"): one for one in _ask(connection, _SEQUENCES)},
    }


def as_text(found: dict[str, Any]) -> str:
    """The catalog as a file has it."""
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _ask(connection: psycopg.Connection[Any], query: str) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("set search_path = pg_catalog")  # so that definitions name the schema
        return cursor.execute(query).fetchall()  # type: ignore[arg-type]


def _months_folded(relations: dict[str, Any]) -> dict[str, Any]:
    folded: dict[str, Any] = {}
    for name, relation in sorted(relations.items()):
        if relation["partition_bound"] is None:
            folded[name] = relation
            continue
        text = _MONTH.sub("_<month>", json.dumps(relation, sort_keys=True))
        month = json.loads(_BOUND.sub("'<bound>'", text))
        like = folded.setdefault(_MONTH.sub("_<month>", name), month)
        if like != month:
            raise ValueError(f"the partition {name} differs from the one before it")
    return folded
