"""Settings, read once from BILLING_* environment variables (or a `.env` file named by BILLING_ENV_FILE).

One Redis address serves both uses: the broker on db 0 (Flower reads queue
lengths there only) and quota on db 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from billing_tasks.addresses import check_port, check_redis_url, redact
from billing_tasks.errors import BadSettings

__all__ = ["MAX_SHARDS", "Settings", "load_settings", "redact"]

#: The shards' tags are to lie in a slot range of their own each.
MAX_SHARDS: Final = 1024


class Settings(BaseSettings):
    """Every knob, its unit and its default. Each is BILLING_<NAME> in the environment.

    Made by hand, it raises pydantic's ValidationError; `from_settings()` without settings reads the environment and
    raises BadSettings, which names the variable.
    """

    model_config = SettingsConfigDict(
        env_prefix="BILLING_",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it may be a password
    )

    redis_url: str = Field("redis://localhost:6379", description="redis://, rediss:// or unix:///path; no db number")
    database_url: str = Field("postgresql://localhost/billing", description="PostgreSQL, as libpq writes it")
    broker_url: str | None = Field(None, description="another broker for Celery; default: redis_url, db 0")

    key_prefix: str = Field("billing", pattern=r"^[a-z0-9_-]{1,32}$", description="first part of every Redis key")
    shards: int = Field(
        12, ge=1, le=MAX_SHARDS, description="another one is refused; `migrate --change-layout` takes it"
    )
    shard_tags: Literal["spread", "numbered"] = Field(
        "spread", description="how hash tags of shards are chosen; numbered: as release 0.1.0 did"
    )
    queue: str = Field("billing", min_length=1, description="the queue of billing's tasks, and of nothing else")
    old_queue: str | None = Field(
        "celery", description="billing's tasks are taken out of this queue, too, and no others; unset: of none"
    )
    dispatch: Literal["batch", "request"] = Field("batch", description="request: one Celery task per consume")

    hold_ttl_seconds: int = Field(
        600, ge=1, le=86_400, description="a hold that is neither consumed nor renewed is released"
    )
    tombstone_seconds: int = Field(600, ge=1, le=86_400, description="how long a closed hold answers repeats")
    fresh_seconds: int = Field(60, ge=1, description="an older cached account is reloaded before it is used")
    refusal_fresh_seconds: int = Field(1, ge=0, description="an older cached account is reloaded before it refuses")
    idle_seconds: int = Field(3600, ge=60, description="accounts with nothing held or unposted leave Redis after this")
    trust_multiplier: int = Field(
        100, ge=1, description="`trusted` if available is more than this many times the amount"
    )
    backlog_limit: int = Field(1_000_000, ge=1, description="events per shard; above it reservations are refused")

    redis_timeout_seconds: float = Field(1.0, gt=0, description="connect and read")
    redis_connections: int = Field(64, ge=1, description="per process; more callers wait for one")
    redis_proxy: bool = Field(
        False, description="true: a proxy may change the server behind an open connection; scripts ask for its run"
    )
    database_connections: int = Field(4, ge=1, description="per process")
    statement_timeout_seconds: float = Field(15.0, gt=0)
    lock_timeout_seconds: float = Field(3.0, gt=0)

    batch_size: int = Field(1000, ge=1, le=10_000, description="events per posting transaction")
    lease_ms: int = Field(5000, ge=500, description="a drainer that dies is replaced after this")
    doorbell_ms: int = Field(5000, ge=100, description="a lost ring is repeated after this at the latest")
    settle_budget_seconds: float = Field(20.0, gt=0, description="after this a drainer hands over")
    max_attempts: int = Field(8, ge=1, description="automatic retries of a dead letter before a person must look")

    expire_every_seconds: float = Field(5.0, gt=0, description="beat: release holds that are due")
    ring_every_seconds: float = Field(5.0, gt=0, description="beat: ring for outboxes that no worker drains")

    accepted_warnings: str | None = Field(
        None, description="codes of warnings about the servers' settings that are meant so, by comma"
    )

    max_tokens: dict[str, Annotated[int, Field(ge=1, le=2**40)]] = Field(
        {"*": 4096},
        description="completion tokens set aside if a request names no maximum: by model, as JSON; `*`: any other",
    )
    without_usage: Literal["nothing", "prompt", "counted"] = Field(
        "nothing", description="what a charge bills if no usage was ever reported"
    )
    overdraft_quota: int | None = Field(
        None, ge=0, description="usage may exceed its hold by this before `usage` raises; unset: by anything"
    )

    spool_folder: Path | None = Field(
        None, description="if Redis and PostgreSQL are both away, usage is kept here and relayed later; off without"
    )

    ratios_file: Path | None = Field(
        None, description="TOML with overrides of the ratio table; re-read when it changes"
    )

    catalogue: Literal["list", "one-api"] = Field(
        "list",
        description="what a model costs that you say nothing of: list prices of providers; the reference's table",
    )
    prices_every_seconds: float = Field(
        1.0, ge=0, description="how often a gateway looks whether prices were set in PostgreSQL; 0: never"
    )
    learn_estimates: bool = Field(
        False, description="a request that names no maximum sets aside what 99 of 100 answers of its model needed"
    )
    unreadable_usage: Literal["last", "estimate"] = Field(
        "last", description="charged if an upstream's usage can't be read: the last that could be, else what was held"
    )
    unknown_model: str = Field(
        "refuse",
        pattern=r"^(refuse|[0-9]+(\.[0-9]+)?(/[0-9]+(\.[0-9]+)?)?)$",
        description="a model without a price is refused, or has this ratio; the reference has 30",
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str) -> str:
        return check_redis_url(url)

    @field_validator("broker_url", "database_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        return url if url is None else check_port(url)

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        for name, value in super().__repr_args__():
            yield name, redact(value) if isinstance(value, str) else value

    @property
    def price_book(self) -> dict[str, Any]:
        """What a PriceBook is made with."""
        return {"path": self.ratios_file, "catalogue": self.catalogue, "unknown": self.unknown_model}

    @property
    def cache_url(self) -> str:
        """Where quota lives: db 1, in redis-py's spelling."""
        if self.redis_url.startswith("unix://"):
            return f"{self.redis_url}{'&' if '?' in self.redis_url else '?'}db=1"
        parts = urlsplit(self.redis_url)
        return urlunsplit(parts._replace(path="/1"))

    @property
    def celery_broker_url(self) -> str:
        """Where Celery's messages go: db 0, in kombu's spelling."""
        if self.broker_url:
            return self.broker_url
        if self.redis_url.startswith("unix://"):
            path = self.redis_url.removeprefix("unix://")
            return f"redis+socket://{path}{'&' if '?' in path else '?'}virtual_host=0"
        return urlunsplit(urlsplit(self.redis_url)._replace(path="/0"))

    @property
    def sqlalchemy_url(self) -> str:
        """The database in SQLAlchemy's spelling, psycopg 3 named."""
        return "postgresql+psycopg://" + self.database_url.split("://", 1)[1]


def load_settings() -> Settings:
    """The settings of this process, or BadSettings naming the variable that is wrong."""
    try:
        return Settings(_env_file=os.environ.get("BILLING_ENV_FILE"))
    except ValidationError as exc:
        problems = "; ".join(f"BILLING_{str(e['loc'][0]).upper()}: {e['msg']}" for e in exc.errors())
        raise BadSettings(f"Settings can't be used: {problems}") from None
