"""Chaos: faults follow from the seed, what is killed comes back, real books are judged, a short run is clean."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from billing_tasks.admin.accounts import Accounts
from billing_tasks.client.async_bookkeeper import AsyncBookkeeper
from billing_tasks.flows.settlement import settle
from billing_tasks.holds.replies import parse_entry
from billing_tasks.lab.parts import Part, PartProcess, log_has
from billing_tasks.lab.servers import Servers
from billing_tasks.lab.servers.folders import StateFolder
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings
from chaos.books import read_books
from chaos.clients import AsyncClient
from chaos.environment import CHECKOUT
from chaos.faults import (
    AMOUNTS,
    KILLS,
    LOSSES_OF_BROKER,
    LOSSES_OF_POSTGRES,
    LOSSES_OF_REDIS,
    Fault,
    schedule,
)
from chaos.findings import Wrong
from chaos.journal import Journal, read_journals
from chaos.judge import Verdict, judge
from chaos.population import Population, create_population
from chaos.processes import ManagedProcess, State, children_of
from chaos.stories import read_stories
from chaos.top_ups import TopUps
from chaos.traffic import Traffic, Turn
from tests.conftest import EMPTY

# -- what is going to happen ------------------------------------------------------------------------------


def test_the_schedule_follows_from_the_seed() -> None:
    assert schedule(2, 7) == schedule(2, 7)
    assert schedule(2, 7) != schedule(2, 8)


def test_a_full_run_has_two_hundred_kills_and_twenty_losses_of_each_server() -> None:
    amounts = Counter(planned.fault for planned in schedule(20, 1))

    assert amounts == AMOUNTS
    assert sum(amounts[fault] for fault in KILLS) >= 200
    for losses in (LOSSES_OF_REDIS, LOSSES_OF_POSTGRES, LOSSES_OF_BROKER):
        assert sum(amounts[fault] for fault in losses) >= 20


def test_a_short_run_has_its_share_and_at_least_one_of_each() -> None:
    amounts = Counter(planned.fault for planned in schedule(2, 1))

    assert set(amounts) == set(Fault)
    assert all(amount / 10 <= amounts[fault] <= amount / 10 + 1 for fault, amount in AMOUNTS.items())


def test_a_denser_run_has_more_of_each() -> None:
    assert len(schedule(20, 1, density=2)) == 2 * len(schedule(20, 1))


@pytest.mark.parametrize("minutes", [0.2, 1, 20])
def test_faults_come_in_their_order_and_leave_time_to_come_back(minutes: float) -> None:
    planned = schedule(minutes, 3)

    assert [one.at_seconds for one in planned] == sorted(one.at_seconds for one in planned)
    assert all(3 < one.at_seconds <= minutes * 60 - 3 for one in planned)
    assert all(one.seconds <= 5 for one in planned if one.fault not in (Fault.POSTGRES_RESTORED, Fault.CLOCK))


def test_some_servers_go_at_the_same_time() -> None:
    moments = [p.at_seconds for p in schedule(20, 1) if p.fault in (*LOSSES_OF_REDIS, *LOSSES_OF_POSTGRES)]

    assert sum(later - sooner < 2 for sooner, later in pairwise(moments)) >= 3


# -- what is killed comes back -----------------------------------------------------------------------------

MAIN_AND_CHILD = (
    "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('here', flush=True); time.sleep(600)"
)


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[ManagedProcess]:
    """A process with a child of its own, up."""
    with StateFolder(tmp_path / "state") as state:
        part = Part(name="victim", argv=(sys.executable, "-c", MAIN_AND_CHILD), ready=log_has("here"))
        made = ManagedProcess(PartProcess(part, state, {}))
        made.start()
        yield made
        made.stop(1)


def tended(managed: ManagedProcess, until: Callable[[], bool]) -> bool:
    """Tend it until this is so; False after a while."""
    deadline = time.monotonic() + 30
    while not until() and time.monotonic() < deadline:
        managed.tend()
        time.sleep(0.01)
    return until()


def test_a_killed_process_comes_back_as_another(managed: ManagedProcess) -> None:
    first = managed.process.pid
    managed.kill(signal.SIGKILL, 0.05)

    assert not managed.is_up
    assert tended(managed, lambda: managed.is_up)
    assert managed.process.pid != first
    assert (managed.restarts, managed.died_by_itself) == (1, [])


def test_orphans_run_until_their_parent_is_back(managed: ManagedProcess, all_gone: Callable[[list[int]], bool]) -> None:
    (child,) = children_of(managed.process.pid or 0)
    managed.kill(signal.SIGKILL, 0.2, children_too=False)

    assert Path(f"/proc/{child}").exists()
    assert tended(managed, lambda: managed.is_up)
    assert all_gone([child])


def test_a_frozen_process_goes_on(managed: ManagedProcess) -> None:
    first = managed.process.pid
    managed.freeze(0.05)

    assert (managed.state, managed.is_up) == (State.FROZEN, False)
    assert tended(managed, lambda: managed.is_up)
    assert (managed.process.pid, managed.restarts) == (first, 0)


def test_a_process_that_dies_unasked_is_noticed_and_comes_back(managed: ManagedProcess) -> None:
    managed.process.kill()

    assert tended(managed, lambda: managed.is_up and managed.restarts == 1)
    assert len(managed.died_by_itself) == 1
    assert "SIGKILL" in managed.died_by_itself[0]


# -- real traffic, real books, no faults but those that are put in here ----------------------------------


@dataclass
class World:
    """Traffic that has ended, its journal, and servers that can be tampered with."""

    settings: Settings
    runtime: Runtime
    population: Population
    folder: Path

    def settle(self) -> None:
        """Book what waits."""
        for shard in range(self.settings.shards):
            owner, commands = secrets.token_hex(4), self.runtime.commands
            flow = settle.drain(shard, owner=owner, commands=commands, settings=self.settings, now=time.monotonic)
            self.runtime.run(flow)

    def judged(self) -> Verdict:
        books = read_books(self.settings, first_user_id=self.population.user)
        return judge(read_stories(read_journals(self.folder)), books)

    def redis(self, *words: object) -> object:
        return self.runtime.holds.client.execute_command(*words)

    def sql(self, statement: str) -> None:
        """Past the triggers, as an operator might."""
        with psycopg.connect(self.settings.database_url, autocommit=True) as connection:
            connection.execute("set session_replication_role = replica")
            connection.execute(statement)  # type: ignore[arg-type]


@pytest.fixture
def world(servers: Servers, database_url: str, tmp_path: Path) -> Iterator[World]:
    settings = Settings(redis_url=servers.redis_url, database_url=database_url)
    with closing(Runtime(settings)) as runtime:
        runtime.holds.client.flushall()
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(EMPTY)
        population = create_population(3, Accounts(runtime), connections=4)
        made = World(settings, runtime, population, tmp_path)
        asyncio.run(send(made, requests=80))
        yield made


async def send(world: World, *, requests: int) -> None:
    """Requests of all kinds that leave nothing behind, and a few top-ups."""
    dice, journal = random.Random("send"), Journal(world.folder / "gateway-1.0000.journal")
    async with AsyncBookkeeper(world.runtime) as bookkeeper:
        with ThreadPoolExecutor(1) as messengers:
            traffic = Traffic(
                client=AsyncClient(bookkeeper),
                journal=journal,
                dice=dice,
                price=lambda group, model: bookkeeper.price(group=group, model=model),
                send=lambda *_: None,
                messengers=messengers,
                poor_users=frozenset(world.population.poor_users),
                tight_tokens=frozenset(world.population.tight_tokens),
                pauses=0,
                turns={Turn.USED: 3, Turn.USED_TWICE: 1, Turn.GIVEN_BACK: 2, Turn.FAILED: 1},
            )
            top_ups = TopUps(Accounts(world.runtime), world.population, journal, dice)
            stop = asyncio.Event()
            paying = asyncio.create_task(top_ups.work(stop))
            await asyncio.gather(*(traffic.run(request) for request in world.population.requests()[:requests]))
            stop.set()
            await paying
    journal.close()


def test_undisturbed_traffic_is_found_right(world: World) -> None:
    world.settle()

    verdict = world.judged()
    assert verdict.ok, verdict.findings
    assert verdict.charged_requests > 40
    assert verdict.unclear["consume"].calls == 0


def test_an_event_that_vanishes_from_the_outbox_is_found_lost(world: World) -> None:
    outbox = next(key for key in world.redis("KEYS", "*:outbox") if world.redis("XLEN", key))
    entry_id, *_ = gone = world.redis("XRANGE", outbox, "-", "+", "COUNT", 1)[0]
    world.redis("XDEL", outbox, entry_id)
    world.settle()

    verdict = world.judged()
    assert parse_entry(gone).request_id in {one for f in verdict.findings if f.wrong is Wrong.LOST for one in f.ids}


def test_a_balance_that_lost_too_much_is_found_charged_twice(world: World) -> None:
    world.settle()
    user = world.population.user
    world.sql(f"update billing.users set quota = quota - 12 where id = {user}")
    world.redis("DEL", *world.redis("KEYS", f"*:user:{user}"))

    (finding,) = world.judged().findings
    assert (finding.wrong, finding.quota) == (Wrong.TWICE, 12)


def test_a_hold_without_an_owner_is_found_leaked(world: World) -> None:
    world.settle()
    key = world.redis("KEYS", f"*:user:{world.population.user}")[0]
    world.redis("HINCRBY", key, "held", 5)

    (finding,) = world.judged().findings
    assert (finding.wrong, finding.quota) == (Wrong.LEAKED, 5)


def test_charges_beyond_what_there_was_are_found_overspent(world: World) -> None:
    world.settle()
    user = next(u for u in world.population.poor_users if world.runtime.ledger.get_user(u).used_quota)
    everything = world.runtime.ledger.get_user(user).quota + world.runtime.ledger.get_user(user).used_quota
    world.sql(f"update billing.users set quota = quota - {everything} where id = {user}")
    opening = f"kind = 'adjust' and content = 'opening balance' and token_id is null and user_id = {user}"
    world.sql(f"update billing.ledger_entries set user_quota = user_quota - {everything} where {opening}")

    assert Wrong.OVERSPENT in {finding.wrong for finding in world.judged().findings}


# -- the real thing, briefly ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.skipif("BILLING_TEST_LONG" not in os.environ, reason="100 s; `make faults` and `make chaos` run it")
def test_a_short_run_loses_nothing_charges_nothing_twice_leaks_nothing_and_overspends_nothing(tmp_path: Path) -> None:
    folder, report = tmp_path / "state", tmp_path / "report.md"
    words = ["--minutes", "0.6", "--rate", "120", "--json", "--state-dir", folder, "--report", report]
    program = [sys.executable, "-m", "chaos", *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=CHECKOUT)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert {name: amount["quota"] for name, amount in found["wrong"].items()} == {wrong.value: 0 for wrong in Wrong}
    assert all(found["faults"][fault] for fault in Fault), found["faults"]
    assert found["requests"] > 500
    assert found["charged_requests"] > 300
    assert found["late"]["requests"] < found["charged_requests"] / 50
    assert "# Chaos run\n\n`python -m chaos --minutes 0.6" in report.read_text()
