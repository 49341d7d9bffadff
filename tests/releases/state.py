"""What the servers hold, by plain SQL and Redis commands: emptied before a scenario, written down after it."""

from __future__ import annotations

from typing import Any

import psycopg
import redis
from psycopg import sql
from psycopg.rows import dict_row

#: One line each at the end of a trace. Columns are named: new ones change no trace.
ROWS = {
    "users": "select id, group_name, quota, used_quota, request_count, status from billing.users order by id",
    "tokens": "select id, user_id, name, remain_quota, used_quota, unlimited_quota, status,"
    " (extract(epoch from expires_at) * 1000)::bigint as expires_at_ms from billing.tokens order by id",
    "channel_used_quota": "select channel_id, used_quota from billing.channel_used_quota order by channel_id",
    "consume_log": "select id::text, user_id, '<time>' as created_at, type, content, username, token_name, model_name,"
    " quota, prompt_tokens, completion_tokens, channel_id, request_id, elapsed_time, is_stream, system_prompt_reset"
    " from billing.consume_log",
    "top_ups": "select id, kind, user_id, token_id, quota, note from billing.top_ups order by id",
    "refunds": "select refund_id, request_id::text, user_id, quota from billing.refunds order by refund_id",
    "dead_letters": "select kind, request_id, user_id, reason, state from billing.dead_letters",
}


def rows_of(database_url: str, statement: str) -> list[dict[str, Any]]:
    """The rows of a query."""
    with psycopg.connect(database_url, row_factory=dict_row) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]


def tables(connection: psycopg.Connection[Any]) -> list[str]:
    """All tables of the schema but partitions and the note of the schema's revision."""
    found = connection.execute(
        "select relname from pg_class where relnamespace = 'billing'::regnamespace and relkind in ('r', 'p')"
        " and not relispartition and relname not like '%version%' order by relname"
    )
    return [name for (name,) in found]


def empty(database_url: str, redis_urls: list[str]) -> None:
    """As after `migrate`: no rows, no keys, numbers from 1."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        names = sql.SQL(", ").join(sql.Identifier("billing", name) for name in tables(connection))
        connection.execute("set session_replication_role = replica")  # the ledger's triggers refuse this, and rightly
        connection.execute(sql.SQL("truncate {} restart identity cascade").format(names))
    for url in redis_urls:
        with redis.Redis.from_url(url) as client:
            client.flushdb()
