"""Puts what a release left behind into new servers: schema, rows, keys, outboxes, messages that wait.

For tests of upgrades: what follows must carry on from there.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis

from billing_tasks import Settings
from tests.releases import dump, redis_content
from tests.releases.templates import Names


def new_database(database_url: str, name: str) -> str:
    """An empty database beside this one; its address."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")  # type: ignore[arg-type]
        connection.execute(f"create database {name}")  # type: ignore[arg-type]
    return urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))


def layout_of(folder: Path) -> str:
    """What the release noted in Redis of its shards."""
    keys = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
    return next(str(line["value"]) for line in keys if line["key"].endswith(":layout"))


def put_back(folder: Path, settings: Settings, names: Names) -> None:
    """The state of the release recorded in this folder: into an empty database and an empty Redis.

    The database then has the release's own schema; `migrate` brings it to today's.
    """
    now = datetime.now(UTC) - timedelta(seconds=60)

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    with psycopg.connect(settings.database_url) as connection:
        connection.execute(text("sql/schema.sql"))  # type: ignore[arg-type]
        dump.load(connection, text("data.sql"), names, now=now)
    with redis.Redis.from_url(settings.cache_url) as client:
        redis_content.restore(client, text("keys.json"), text("outbox.jsonl"), names, now=now)
    with redis.Redis.from_url(settings.cache_url.removesuffix("1") + "0") as broker:
        for line in text("messages.jsonl").splitlines():
            broker.lpush(settings.queue, redis_content.deliverable(json.loads(line), names, now=now))
