"""Run: the stack comes up, traffic begins, faults are injected, everything comes to rest, the judge compares.

Killed on the way it leaves its state folder; all processes end with it.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import psycopg

from billing_tasks.admin.accounts import Accounts
from billing_tasks.flows.audit import verify
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.runtime import Runtime
from chaos.books import read_books
from chaos.environment import Environment
from chaos.faults import schedule
from chaos.inject import Injector
from chaos.journal import Watch, read_journals
from chaos.judge import judge
from chaos.liveness import Liveness
from chaos.options import Options
from chaos.population import create_population
from chaos.processes import ManagedProcess
from chaos.report import ChaosReport, ProcessReport
from chaos.settling import Pending, Settled, await_settled
from chaos.stories import read_stories

TICK_SECONDS = 0.05
LOOK_SECONDS = 0.5
#: Faults that had to be put off get so long after the traffic's time is over.
EXTRA_SECONDS = 30.0
#: The worker that was killed last has to come back, reconnect and answer.
ANSWER_SECONDS = 45.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A moment of the run, to be shown."""

    seconds: float
    of_seconds: float
    requests: int
    faults: int
    last: tuple[str, ...]  # faults, the newest last


class Audience(Protocol):
    """What follows the run: a terminal, or plain lines."""

    def step(self, sentence: str) -> None:
        """Something begins."""

    def scene(self, scene: Scene) -> None:
        """The traffic goes on."""

    def waiting(self, pending: Pending) -> None:
        """The traffic is over; this is still on its way."""


def chaos(options: Options, state_dir: Path | None, *, audience: Audience, command: str) -> ChaosReport:
    """One run. Without a folder of its own everything is thrown away, if there is nothing to find out.

    Raises LabError if the stack can't be brought up, or back up.
    """
    folder = state_dir or Path(tempfile.mkdtemp(prefix="billing-chaos-"))
    environment = Environment(folder, options, audience.step)
    worth_keeping = True
    try:
        report = _run(environment, options, audience, command)
        worth_keeping = not report.ok
        return report
    except KeyboardInterrupt:
        worth_keeping = False
        raise
    finally:
        if state_dir is None and not worth_keeping:
            environment.discard()
            shutil.rmtree(folder)


def _run(environment: Environment, options: Options, audience: Audience, command: str) -> ChaosReport:
    with environment:
        upgrade(environment.postgres.url)
        environment.start_workers()
        with closing(Runtime(environment.settings)) as runtime:
            audience.step("Making users and tokens")
            population = create_population(
                options.seed, Accounts(runtime), connections=runtime.settings.database_connections
            )
            injector = Injector(environment, runtime, schedule(options.minutes, options.seed, density=options.density))
            liveness = Liveness(environment, runtime)
            liveness.start()
            try:
                audience.step("Traffic and faults")
                environment.start_gateways(population)
                _inject_all(environment, injector, liveness, options, audience)
                gateways = _process_reports(environment.some("gateway"), liveness)
                environment.all_up()
                audience.step("Ending the traffic")
                environment.end_traffic()
                settled, silent = _settle(environment, runtime, liveness, audience)
            finally:
                injector.close()
                liveness.close()
            audience.step("Checking the guarantees")
            verified = verify.check(holds=runtime.holds, ledger=runtime.ledger)
            audience.step("Comparing the journals with the books")
            stories = read_stories(read_journals(environment.journals))
            books = read_books(runtime.settings, first_user_id=population.user)
            return ChaosReport(
                options=options,
                faults=injector.done,
                faults_left=injector.left,
                stories=stories,
                books=books,
                verdict=judge(stories, books, gaps=injector.gaps, restores=injector.restores),
                verified=verified,
                settled=settled,
                processes={**_process_reports(environment.processes.values(), liveness), **gateways},
                silent_workers=silent,
                left_in_spools=len([*environment.spools.glob("*/*.json"), *environment.spools.glob("*/*.refused")]),
                versions=versions(environment, runtime),
                command=command,
                state_dir=str(environment.state.path),
            )


def _inject_all(
    environment: Environment, injector: Injector, liveness: Liveness, options: Options, audience: Audience
) -> None:
    """Until the time is over and the last fault is injected."""
    began, looked = time.monotonic(), 0.0
    watch = Watch(environment.journals)
    while True:
        seconds = time.monotonic() - began
        if seconds > options.seconds and (not injector.left or seconds > options.seconds + EXTRA_SECONDS):
            return
        environment.tend()
        injector.inject(seconds)
        if seconds - looked > LOOK_SECONDS:
            looked = seconds
            liveness.look()
            watch.look()
            last = tuple(f"{at:6.1f} s  {told}" for at, told in injector.told[-6:])
            audience.scene(Scene(seconds, options.seconds, watch.requests, sum(injector.done.values()), last))
        time.sleep(TICK_SECONDS)


def _settle(
    environment: Environment, runtime: Runtime, liveness: Liveness, audience: Audience
) -> tuple[Settled, list[str]]:
    """Everything up, nothing on its way; and the workers that don't answer although they run."""
    audience.step("Waiting until all is settled")
    settled = await_settled(
        runtime,
        timeout_seconds=environment.options.settle_timeout_seconds,
        look=audience.waiting,
        tend=environment.tend,
    )
    audience.step("Asking the workers")
    return settled, liveness.all_answer(ANSWER_SECONDS)


def _process_reports(processes: Iterable[ManagedProcess], liveness: Liveness) -> dict[str, ProcessReport]:
    return {
        managed.name: ProcessReport(
            managed.restarts, tuple(managed.died_by_itself), liveness.longest_silence.get(managed.name, 0.0)
        )
        for managed in processes
    }


def versions(environment: Environment, runtime: Runtime) -> dict[str, str]:
    """Of everything that took part."""
    info = runtime.holds.client.execute_command("INFO", "server").decode()
    valkey = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    with psycopg.connect(environment.postgres.url) as connection:
        postgres = connection.info.parameter_status("server_version") or ""
    python = f"{platform.python_implementation()} {sys.version.split()[0]}"
    packages = {name: version(name) for name in ("billing-tasks", "celery", "kombu", "redis", "sqlalchemy", "psycopg")}
    named = {"Valkey": valkey["valkey_version"]} if "valkey_version" in valkey else {"Redis": valkey["redis_version"]}
    return {**packages, "Python": python, **named, "PostgreSQL": postgres}
