"""PostgreSQL and Valkey together, for as long as a `with` block: what tests and examples stand on.

with embedded_servers() as servers:
    Settings(redis_url=servers.redis_url, database_url=servers.database_url)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from billing_tasks.lab.servers.folders import StateFolder
from billing_tasks.lab.servers.postgres import EmbeddedPostgres
from billing_tasks.lab.servers.valkey import EmbeddedValkey
from billing_tasks.settings import Settings


@dataclass(frozen=True)
class Servers:
    """Both servers, running, and where they are."""

    state: StateFolder
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey

    @property
    def redis_url(self) -> str:
        return self.valkey.url

    @property
    def database_url(self) -> str:
        return self.postgres.url

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process use these servers, whatever the outer environment says."""
        settings = Settings(redis_url=self.redis_url, database_url=self.database_url, broker_url=None)
        return {
            "BILLING_REDIS_URL": self.redis_url,
            "BILLING_DATABASE_URL": self.database_url,
            "BILLING_BROKER_URL": settings.celery_broker_url,
        }


@contextmanager
def embedded_servers(state_dir: Path | str | None = None, *, fast: bool = False) -> Iterator[Servers]:
    """Both servers, started, and stopped at the end.

    With a state folder the data is kept. Without one everything is made in a
    temporary folder and removed. `fast` leaves out the waiting for the disk: a
    killed server loses nothing, a machine without power might.
    """
    with ExitStack() as cleanup:
        if state_dir is None:
            state_dir = tempfile.mkdtemp(prefix="billing-state-")
            cleanup.callback(shutil.rmtree, state_dir)
            throw_away = True
        else:
            throw_away = False
        state = cleanup.enter_context(StateFolder(state_dir))
        postgres = EmbeddedPostgres(state, fast=fast)
        cleanup.callback(postgres.discard if throw_away else postgres.stop)
        valkey = EmbeddedValkey(state, appendfsync="no" if fast else "always")
        cleanup.callback(valkey.stop)
        postgres.start()
        valkey.start()
        yield Servers(state, postgres, valkey)
