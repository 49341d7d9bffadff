"""A whole installation to be broken: gateways, two workers and beat over servers of its own."""

from __future__ import annotations

import subprocess
from typing import Any

import redis

from billing_tasks import Accounts, Bookkeeper, Settings
from billing_tasks.lab.servers import Servers
from billing_tasks.lab.servers.valkey import EmbeddedValkey
from billing_tasks.runtime import Runtime
from tests.conftest import Billing
from tests.worker.conftest import Processes, eventually

#: Short, so that the tests see the second and third try, not only the first.
SETTINGS: dict[str, Any] = {
    "lock_timeout_seconds": 1.0,
    "statement_timeout_seconds": 4.0,
    "lease_ms": 1500,
    "doorbell_ms": 1500,
    "ring_every_seconds": 1.0,
    "expire_every_seconds": 1.0,
    "redis_timeout_seconds": 0.5,
    "database_connections": 4,
}


class Site:
    """Servers, a broker of its own, workers `w1` (with beat) and `w2`, and a gateway."""

    def __init__(self, servers: Servers, broker: EmbeddedValkey, processes: Processes) -> None:
        self.servers = servers
        self.broker = broker
        self.processes = processes
        self.workers: list[subprocess.Popen[bytes]] = []
        self._ids = iter(range(1, 10**9))
        self.billing = self.gateway()

    def gateway(self, **settings: Any) -> Billing:
        """A gateway of this site; settings as given. The caller closes it."""
        urls = {
            "redis_url": self.servers.redis_url,
            "database_url": self.servers.database_url,
            "broker_url": f"redis+socket://{self.broker.url.removeprefix('unix://')}?virtual_host=0",
        }
        given = {**urls, **SETTINGS, **settings}
        runtime = Runtime(Settings(**given))
        environment = {f"BILLING_{key.upper()}": str(value) for key, value in given.items()}
        made = Billing(runtime.settings, runtime, Bookkeeper(runtime), Accounts(runtime), self.servers, environment)
        made._ids = self._ids
        return made

    def start_workers(self) -> None:
        beat = ("--beat", "--schedule", str(self.processes.folder / "beat"))
        for name, more in (("w1", beat), ("w2", ())):
            self.workers.append(self.processes.worker(self.billing, name, *more))

    def log(self, name: str) -> str:
        """What a worker wrote so far."""
        return (self.processes.folder / f"{name}.log").read_text(errors="replace")

    def alive(self) -> bool:
        """True if no worker has ended."""
        return all(worker.poll() is None for worker in self.workers)

    def queue(self) -> redis.Redis:
        """The broker's database."""
        return redis.Redis.from_url(f"{self.broker.url}?db=0")

    def settled(self, seconds: float = 60) -> None:
        """Wait until every event is booked."""
        eventually(lambda: self.billing.verify().backlog == 0, seconds=seconds, what="every outbox is empty")
        assert self.alive(), "a worker ended"

    def close(self) -> None:
        self.billing.bk.close()
