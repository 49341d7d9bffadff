"""A plain Celery port of the reference: one task per consume, its bookkeeping in one transaction by SQLAlchemy.

What most programmers would write first: `consume.delay(log)`, and in the task an insert
that a unique request_id makes safe to repeat, then user, token and channel.

At its best: messages are acknowledged early (a killed worker loses what it had
taken; ours loses nothing), fetched 64 at a time, no result is kept, no events are
sent for Flower, nothing is logged per task; statements are built once and prepared by
psycopg; tables have no index but their keys, and room on their pages. The broker is
synced every second meanwhile, as most are (ours: always).
"""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa
from celery import Celery
from celery.signals import worker_process_init, worker_ready
from sqlalchemy.dialects.postgresql import insert

from billing_tasks.settings import Settings, load_settings

CONSUME = "plain.consume"

tables = sa.MetaData(schema="plain")
users = sa.Table(
    "users",
    tables,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("quota", sa.BigInteger, nullable=False),
    sa.Column("used_quota", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("request_count", sa.BigInteger, nullable=False, server_default="0"),
)
tokens = sa.Table(
    "tokens",
    tables,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("user_id", sa.BigInteger, nullable=False),
    sa.Column("remain_quota", sa.BigInteger, nullable=False),
    sa.Column("used_quota", sa.BigInteger, nullable=False, server_default="0"),
)
channels = sa.Table(
    "channels",
    tables,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("used_quota", sa.BigInteger, nullable=False, server_default="0"),
)
logs = sa.Table(
    "logs",
    tables,
    sa.Column("request_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("user_id", sa.BigInteger, nullable=False),
    sa.Column("token_id", sa.BigInteger, nullable=False),
    sa.Column("channel_id", sa.BigInteger, nullable=False),
    sa.Column("quota", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("model_name", sa.Text, nullable=False),
    sa.Column("token_name", sa.Text, nullable=False),
    sa.Column("elapsed_ms", sa.BigInteger, nullable=False),
    sa.Column("is_stream", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)


# Built once: building them for each task takes as long as everything else in it.
_quota = sa.bindparam("charged", type_=sa.BigInteger)
_LOG = insert(logs).on_conflict_do_nothing()
_USER = (
    sa.update(users)
    .where(users.c.id == sa.bindparam("which"))
    .values(
        quota=users.c.quota - _quota,
        used_quota=users.c.used_quota + _quota,
        request_count=users.c.request_count + 1,
    )
)
_TOKEN = (
    sa.update(tokens)
    .where(tokens.c.id == sa.bindparam("which"))
    .values(remain_quota=tokens.c.remain_quota - _quota, used_quota=tokens.c.used_quota + _quota)
)
_CHANNEL = (
    sa.update(channels).where(channels.c.id == sa.bindparam("which")).values(used_quota=channels.c.used_quota + _quota)
)


def make_app(settings: Settings) -> Celery:
    """The app on the broker of these settings."""
    made = Celery("plain", set_as_current=False)
    made.conf.update(
        broker_url=settings.celery_broker_url,
        broker_connection_retry_on_startup=True,
        task_default_queue=settings.queue,
        task_ignore_result=True,
        result_backend=None,
        worker_prefetch_multiplier=64,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return made


app = make_app(load_settings())


@functools.cache
def engine() -> sa.Engine:
    """One connection per worker process."""
    return sa.create_engine(load_settings().sqlalchemy_url, pool_size=1, max_overflow=0)


@worker_process_init.connect
def _own_engine(**_: Any) -> None:
    engine.cache_clear()


@worker_ready.connect
def _say_so(**_: Any) -> None:
    print("the plain worker is ready.", flush=True)  # noqa: T201 - Celery's own line is left out with its log level


@app.task(name=CONSUME)
def consume(**log: Any) -> None:
    """Book one consume: log row, user, token, channel, or nothing if its request_id was booked before."""
    quota = log["quota"]
    with engine().begin() as connection:
        if connection.execute(_LOG, log).rowcount == 0:
            return
        connection.execute(_USER, {"which": log["user_id"], "charged": quota})
        connection.execute(_TOKEN, {"which": log["token_id"], "charged": quota})
        connection.execute(_CHANNEL, {"which": log["channel_id"], "charged": quota})
