"""Real servers below every test that needs one, and the guarantees after every test that moves quota."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from billing_tasks.admin.accounts import Accounts
from billing_tasks.client.bookkeeper import Bookkeeper
from billing_tasks.flows.audit import verify
from billing_tasks.flows.requests import expire
from billing_tasks.flows.settlement import settle
from billing_tasks.flows.settlement.batch_size import SIZES
from billing_tasks.lab.servers import Servers, embedded_servers
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.model.reservation import Reservation
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings

CHANNEL = 3
LONGEST_FIRST = (
    *("tests/property", "tests/simulator", "test_runbook_scenarios", "tests/worker", "tests/benchmarks"),
    *("tests/faults", "tests/releases", "tests/lab", "tests/acceptance", "tests/broker"),
)


def pytest_configure() -> None:
    """Before any module is imported: what the command line shows must not depend on the terminal of the tests."""
    os.environ.pop("COLUMNS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Random histories first: they take many small steps, and a process that ran a thousand tests takes each slower.

    Then what takes longest, so that no process is left with it when the others are done.
    """

    def turn(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((at for at, part in enumerate(LONGEST_FIRST) if part in path), len(LONGEST_FIRST))

    items.sort(key=turn)


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> Iterator[None]:
    """A developer's own BILLING_* must not decide what the tests do."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [
            name
            for name in os.environ
            if name.startswith("BILLING_") and not name.startswith(("BILLING_TEST", "BILLING_LAB"))
        ]:
            patch.delenv(name)
        # List prices change with the catalogue; what a test charges must not. Tests of the default say so.
        patch.setenv("BILLING_CATALOGUE", "one-api")
        patch.setenv("BILLING_UNKNOWN_MODEL", "30")
        yield


@pytest.fixture(autouse=True, scope="session")
def public_folder() -> Iterator[Path | None]:
    """As root, PostgreSQL's programs and data go below a folder that the tests remove."""
    if os.geteuid() != 0:
        yield None
        return
    place = Path(tempfile.mkdtemp(prefix="billing-test-public-", dir="/tmp"))
    place.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BILLING_LAB_PUBLIC_FOLDER", str(place / "lab"))
        yield place / "lab"
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def servers(public_folder: Path | None) -> Iterator[Servers]:
    """PostgreSQL and Valkey for the whole session."""
    with embedded_servers(fast=True) as running:
        yield running


@pytest.fixture(scope="session")
def database_url(servers: Servers) -> str:
    """A migrated database; each test finds it empty."""
    upgrade(servers.database_url)
    return servers.database_url


#: Making a database takes 0.35 s, emptying this one a tenth of that.
EMPTY = """
set session_replication_role = replica;  -- the ledger's own triggers refuse this, and rightly
truncate billing.users, billing.tokens, billing.channels, billing.channel_usage, billing.ledger_entries,
    billing.top_ups, billing.refunds, billing.outbox_cursors, billing.incidents, billing.dead_letters, billing.erasures,
    billing.corrections, billing.price_changes, billing.price_lists, billing.price_parts
    restart identity cascade
"""


#: user_id, token_id
Payer = tuple[int, int]


@dataclass
class Billing:
    """The whole product over servers of a test's own: what a gateway, an operator and a worker have."""

    settings: Settings
    runtime: Runtime
    bk: Bookkeeper
    accounts: Accounts
    servers: Servers
    environment: dict[str, str]
    _ids: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**9)))

    def payer(self, quota: int = 1_000_000, token_quota: int | None = None, *, unlimited: bool = False) -> Payer:
        """A new user and a token of theirs: (user_id, token_id)."""
        user = self.accounts.create_user(next(self._ids), quota=quota)
        token = self.accounts.create_token(
            user.id,
            quota=quota if token_quota is None else token_quota,
            unlimited=unlimited,
            name=f"token of {user.id}",
        )
        return user.id, token.id

    def reserve(self, payer: Payer, quota: int, **more: Any) -> Reservation:
        """A reservation without a price."""
        return self.bk.pre_consume_quota(quota, user_id=payer[0], token_id=payer[1], **more)

    def use(self, reservation: Reservation, quota: int, **more: Any) -> Any:
        """Consume `quota` of a reservation."""
        return self.bk.consume(reservation.log(channel_id=CHANNEL, quota=quota, prompt_tokens=quota, **more))

    def settle(self) -> settle.Drained:
        """Book everything that waits, in this process; returns the sum of what was done."""
        total = settle.Drained()
        for shard in range(self.settings.shards):
            done = self.runtime.run(
                settle.drain(
                    shard,
                    owner=secrets.token_hex(4),
                    commands=self.runtime.commands,
                    settings=self.settings,
                    now=time.monotonic,
                )
            )
            total.posted += done.posted
            total.duplicates += done.duplicates
            total.dead_lettered += done.dead_lettered
        return total

    def expire(self) -> int:
        """Release every hold that is due."""
        shards = range(self.settings.shards)
        return sum(self.runtime.run(expire.expire_shard(shard, commands=self.runtime.commands)) for shard in shards)

    def available(self, user_id: int) -> int:
        """As Redis sees it."""
        return self.runtime.run(self.bk._available(user_id))

    def user_key(self, user_id: int) -> str:
        """Where Redis has the user."""
        keys = self.runtime.commands.keys
        return keys.user(keys.shard_of(user_id), user_id)

    def token_key(self, payer: Payer) -> str:
        """Where Redis has the token."""
        keys = self.runtime.commands.keys
        return keys.token(keys.shard_of(payer[0]), payer[1])

    def redis(self, *words: object) -> Any:
        """One raw command on the quota database."""
        return self.runtime.holds.client.execute_command(*words)

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Another program, speaking plain SQL."""
        with psycopg.connect(self.settings.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def verify(self) -> verify.Report:
        """The guarantees, as `billing-tasks verify` checks them."""
        return verify.check(holds=self.runtime.holds, ledger=self.runtime.ledger)


MakeBilling = Callable[..., Billing]


@pytest.fixture
def make_billing(servers: Servers, database_url: str) -> Iterator[MakeBilling]:
    """Makes a Billing with settings of the test's own. At the end the guarantees hold, or the test failed."""
    made: list[Billing] = []

    def make(**settings: Any) -> Billing:
        urls = {"redis_url": servers.redis_url, "database_url": database_url}
        selected = Settings(**{**urls, "database_connections": 8, **settings})
        runtime = Runtime(selected)
        environment = {f"BILLING_{key.upper()}": str(value) for key, value in {**urls, **settings}.items()}
        billing = Billing(selected, runtime, Bookkeeper(runtime), Accounts(runtime), servers, environment)
        if not made:
            SIZES.__init__()  # type: ignore[misc]  # as in a new process: a slow moment of another test is over
            runtime.holds.client.flushall()
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute(EMPTY)
        made.append(billing)
        return billing

    yield make
    try:
        for billing in made:
            assert billing.verify().findings == []
    finally:
        for billing in made:
            billing.bk.close()


@pytest.fixture
def billing(make_billing: MakeBilling) -> Billing:
    """The product with its default settings."""
    return make_billing()
