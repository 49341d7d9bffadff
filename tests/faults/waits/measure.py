"""Breaks one server after the other in each way, and stands at each door meanwhile."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from billing_tasks import AsyncBookkeeper, Settings
from billing_tasks.admin import Admin
from billing_tasks.lab.servers import embedded_servers
from tests.faults.breaking import blackhole
from tests.faults.waits.doors import ASYNC_DOORS, DOORS, Site, Waited, command_line, wait_at, wait_at_async
from tests.faults.waits.proxy import Fault, Proxy

SERVERS = ("redis", "postgresql", "broker")


@dataclass
class Stand:
    """Both servers behind proxies, the broker behind one of its own, all on loopback."""

    proxies: dict[str, Proxy]

    def settings(self, **ports: int) -> Settings:
        """As a gateway in production has them: defaults, TCP. `ports` replaces a proxy's by another one."""
        port = {name: proxy.port for name, proxy in self.proxies.items()} | ports
        return Settings(
            redis_url=f"redis://127.0.0.1:{port['redis']}",
            broker_url=f"redis://127.0.0.1:{port['broker']}/0",
            database_url=f"postgresql://billing@127.0.0.1:{port['postgresql']}/billing",
        )

    def environment(self, **ports: int) -> dict[str, str]:
        """The same for a process."""
        given = self.settings(**ports)
        names = ("redis_url", "broker_url", "database_url")
        return {f"BILLING_{name.upper()}": str(getattr(given, name)) for name in names}


@contextmanager
def stand() -> Iterator[Stand]:
    """Servers with an account that has quota, and one that no gateway has asked for."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="billing-waits-")))
        servers = cleanup.enter_context(embedded_servers(folder, fast=True))
        cleanup.callback(servers.postgres.discard)
        redis_socket = servers.redis_url.removeprefix("unix://")
        postgres_socket = f"{servers.database_url.partition('host=')[2]}/.s.PGSQL.5432"
        sockets = {"redis": redis_socket, "broker": redis_socket, "postgresql": postgres_socket}
        made = Stand({name: Proxy(path) for name, path in sockets.items()})
        for proxy in made.proxies.values():
            cleanup.callback(proxy.close)
        admin = Admin.from_settings(made.settings())
        admin.migrate()
        for user_id, token_id in ((42, 7), (43, 8)):
            admin.accounts.create_user(user_id, quota=10**9)
            admin.accounts.create_token(user_id, token_id, quota=10**9)
        admin.close()
        yield made


@contextmanager
def broken(made: Stand, server: str, fault: Fault) -> Iterator[dict[str, int]]:
    """The server fails in this way; yields the ports that a new client is to be given instead."""
    if fault is not Fault.UNREACHABLE:
        with made.proxies[server].broken(fault):
            yield {}
        return
    with blackhole() as url:
        yield {server: int(url.rpartition(":")[2])}


def measure(made: Stand, server: str, fault: Fault, *, doors: tuple[str, ...] = ()) -> dict[str, Waited]:
    """The longest wait per door; `doors`: these only."""
    found: dict[str, Waited] = {}
    chosen = {name: door for name, door in DOORS.items() if not doors or name in doors}
    for name, door in chosen.items():
        site = Site(made.settings())
        site.warm()
        with broken(made, server, fault) as ports:
            if ports:
                site.close()
                reservations, site = site.reservations, Site(made.settings(**ports))
                site.reservations = reservations
            found[name] = wait_at(site, door)
        site.close()
    for name in ASYNC_DOORS:
        if not doors or name in doors:
            found[f"{name} (asyncio)"] = asyncio.run(_by_asyncio(made, server, fault, name))
    if not doors or "command line: status" in doors:
        with broken(made, server, fault) as ports:
            found["command line: status"] = command_line(made.environment(**ports), "status")
    return found


async def _by_asyncio(made: Stand, server: str, fault: Fault, name: str) -> Waited:
    async with AsyncBookkeeper.from_settings(made.settings()) as bk:
        await bk.pre_consume_quota(1, user_id=42, token_id=7)
        with broken(made, server, fault) as ports:
            if not ports:
                return await wait_at_async(bk, ASYNC_DOORS[name])
            async with AsyncBookkeeper.from_settings(made.settings(**ports)) as new:
                return await wait_at_async(new, ASYNC_DOORS[name])
