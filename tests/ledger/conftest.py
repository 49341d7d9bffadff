"""A real PostgreSQL below every test, and the books must balance after each of them."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_tasks.lab.servers import embedded_servers
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.ledger.store import Ledger
from billing_tasks.model import events
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.fingerprint import fingerprint
from billing_tasks.model.ids import new_request_id
from billing_tasks.settings import Settings


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server to make databases on: BILLING_TEST_DATABASE_URL, or an embedded one."""
    given = os.environ.get("BILLING_TEST_DATABASE_URL")
    if given:
        yield given
        return
    with embedded_servers(fast=True) as servers:
        yield servers.database_url


@pytest.fixture(scope="session")
def new_database(server_url: str) -> Iterator[Callable[[], str]]:
    """Make an empty database; it is dropped at the end."""
    with psycopg.connect(server_url, autocommit=True) as server, ExitStack() as drops:

        def make() -> str:
            name = f"billing_test_{secrets.token_hex(4)}"
            server.execute(f"create database {name}")  # type: ignore[arg-type]
            drops.callback(server.execute, f"drop database {name} with (force)")
            parts = conninfo_to_dict(server_url) | {"dbname": name}
            return make_conninfo(**parts)

        yield make


@pytest.fixture(scope="session")
def ledger_url(new_database: Callable[[], str]) -> str:
    """A migrated database that all tests of the session share; each makes users of its own."""
    url = new_database()
    upgrade(url)
    return url


def _open(url: str) -> Ledger:
    return Ledger.from_settings(Settings(database_url=url, database_connections=16))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """The shared ledger. Whatever the test did, the books balance at its end."""
    ledger = _open(ledger_url)
    yield ledger
    broken = ledger.broken_invariants()
    ledger.dispose()
    assert broken == []


@pytest.fixture
def spare_url(new_database: Callable[[], str]) -> str:
    """A migrated database for one test alone, for what would be in the way of others."""
    url = new_database()
    upgrade(url)
    return url


@pytest.fixture
def spare_ledger(spare_url: str) -> Iterator[Ledger]:
    """A ledger for one test alone. Its books are not checked."""
    ledger = _open(spare_url)
    yield ledger
    ledger.dispose()


@pytest.fixture
def sql(ledger_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Another program on the shared database: plain SQL, each statement committed."""
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def spare_sql(spare_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Another program on the spare database."""
    with psycopg.connect(spare_url, autocommit=True) as connection:
        yield connection


#: A channel that was never created, far from the ids that are handed out.
ANY_CHANNEL = 10**9


@dataclass
class Payer:
    """A user with a token, and the events that requests of theirs leave behind."""

    user: UserRow
    token: TokenRow

    def consume(
        self, quota: int, *, held_quota: int | None = None, channel_id: int = ANY_CHANNEL, **fields: Any
    ) -> Event:
        """Usage that closed a hold of the same amount, unless told otherwise."""
        held = quota if held_quota is None else held_quota
        return self._event(Kind.CONSUME, quota=quota, held_quota=held, channel_id=channel_id, **fields)

    def release(self, quota: int, **fields: Any) -> Event:
        """A hold that ended unused."""
        return self._event(Kind.RELEASE, quota=quota, **fields)

    def refund(self, charge: Event, quota: int | None = None, *, refund_id: str | None = None) -> Event:
        """A refund of a charge; the whole of what is left without an amount."""
        return self._event(
            Kind.REFUND,
            request_id=charge.request_id,
            quota=quota or 0,
            whole=quota is None,
            refund_id=refund_id or secrets.token_hex(8),
        )

    def _event(self, kind: Kind, **fields: Any) -> Event:
        values = {"request_id": new_request_id(), "user_id": self.user.id, "token_id": self.token.id, **fields}
        body = [values.get(name) for name in ("user_id", "token_id", "channel_id", "quota", "refund_id", "whole")]
        return events.make(**{"kind": kind, "fingerprint": fingerprint(kind, *body), **values})


NewPayer = Callable[..., Payer]


def _payers(ledger: Ledger) -> NewPayer:
    def make(quota: int = 1_000_000, **token: Any) -> Payer:
        user = ledger.create_user(quota=quota)
        return Payer(user, ledger.create_token(user.id, **{"remain_quota": quota, **token}))

    return make


@pytest.fixture
def new_payer(ledger: Ledger) -> NewPayer:
    return _payers(ledger)


@pytest.fixture
def new_spare_payer(spare_ledger: Ledger) -> NewPayer:
    return _payers(spare_ledger)


@pytest.fixture
def payer(new_payer: NewPayer) -> Payer:
    """A user with a million, and a token that may spend all of it."""
    return new_payer()


_shards = itertools.count(1000)


@pytest.fixture
def shard() -> int:
    """A shard whose outbox no other test uses."""
    return next(_shards)
