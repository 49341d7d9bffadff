"""Servers to break: Valkeys of a module's own, and a site with its own PostgreSQL, broker and two workers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from billing_tasks.lab.servers import embedded_servers
from billing_tasks.lab.servers.folders import StateFolder
from billing_tasks.lab.servers.valkey import EmbeddedValkey
from billing_tasks.ledger.migrations import upgrade
from tests.faults.breaking import OwnValkey
from tests.faults.site import Site
from tests.worker.conftest import Processes, processes

MakeValkey = Callable[[], OwnValkey]


@pytest.fixture(scope="module")
def make_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeValkey]:
    """Starts Valkeys of the module's own, to be killed and restored."""
    with ExitStack() as cleanup:

        def make() -> OwnValkey:
            state = cleanup.enter_context(StateFolder(tmp_path_factory.mktemp("valkey") / "state"))
            valkey = EmbeddedValkey(state, appendfsync="no")
            cleanup.callback(valkey.stop)
            valkey.start()
            return OwnValkey(valkey, state.path / "valkey")

        yield make


@pytest.fixture(scope="module")
def own(make_valkey: MakeValkey) -> OwnValkey:
    """One Valkey of the module's own."""
    return make_valkey()


@pytest.fixture(scope="package")
def running_site(public_folder: Path | None) -> Iterator[Site]:
    """Two workers, beat, a broker and both servers, made once; each test leaves them working again."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="billing-site-")))
        servers = cleanup.enter_context(embedded_servers(folder / "servers", fast=True))
        cleanup.callback(servers.postgres.discard)
        broker = EmbeddedValkey(cleanup.enter_context(StateFolder(folder / "broker")), appendfsync="no")
        cleanup.callback(broker.stop)
        broker.start()
        upgrade(servers.database_url)
        processes = Processes(folder)
        cleanup.callback(processes.stop)
        site = Site(servers, broker, processes)
        cleanup.callback(site.close)
        site.start_workers()
        yield site


@pytest.fixture
def site(running_site: Site) -> Iterator[Site]:
    """The running site. At the end everything is booked, no worker has ended, and the guarantees hold."""
    yield running_site
    try:
        running_site.settled()
        assert running_site.billing.verify().findings == []
    finally:
        for log in running_site.processes.logs:
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-20000:]}")


__all__ = ["processes"]  # the fixture
