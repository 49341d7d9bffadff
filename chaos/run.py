"""Run: the stack comes up, traffic begins, faults strike, everything comes to rest, the judge compares.

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
from chaos.environment import Grounds
from chaos.faults import schedule
from chaos.inject import Striker
from chaos.journal import Watch, read_journals
from chaos.judge import judge
from chaos.liveness import Pulse
from chaos.options import Options
from chaos.population import settle_in
from chaos.processes import Mortal
from chaos.report import ChaosReport, Lives
from chaos.settling import Settled, Standing, await_settled
from chaos.stories import read_stories

TICK_SECONDS = 0.05
LOOK_SECONDS = 0.5
#: Faults that had to be put off get so long after the traffic's time is over.
EXTRA_SECONDS = 30.0
#: Whoever was killed last has to come back, reconnect and answer.
ANSWER_SECONDS = 45.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A moment of the run, for whoever watches."""

    seconds: float
    of_seconds: float
    requests: int
    faults: int
    last: tuple[str, ...]  # faults, the newest last


class Audience(Protocol):
    """Who watches: a terminal, plain lines, nobody."""

    def step(self, sentence: str) -> None:
        """Something begins."""

    def scene(self, scene: Scene) -> None:
        """The traffic goes on."""

    def waiting(self, standing: Standing) -> None:
        """The traffic is over; this is still on its way."""


def chaos(options: Options, state_dir: Path | None, *, audience: Audience, command: str) -> ChaosReport:
    """One run. Without a folder of its own everything is thrown away, if there is nothing to find out.

    Raises LabError if the stack can't be brought up, or back up.
    """
    folder = state_dir or Path(tempfile.mkdtemp(prefix="billing-chaos-"))
    grounds = Grounds(folder, options, audience.step)
    worth_keeping = True
    try:
        report = _run(grounds, options, audience, command)
        worth_keeping = not report.ok
        return report
    except KeyboardInterrupt:
        worth_keeping = False
        raise
    finally:
        if state_dir is None and not worth_keeping:
            grounds.discard()
            shutil.rmtree(folder)


def _run(grounds: Grounds, options: Options, audience: Audience, command: str) -> ChaosReport:
    with grounds:
        upgrade(grounds.postgres.url)
        grounds.start_workers()
        with closing(Runtime(grounds.settings)) as runtime:
            audience.step("Making users and tokens")
            people = settle_in(options.seed, Accounts(runtime), connections=runtime.settings.database_connections)
            striker = Striker(grounds, runtime, schedule(options.minutes, options.seed, density=options.density))
            pulse = Pulse(grounds, runtime)
            pulse.start()
            try:
                audience.step("Traffic and faults")
                grounds.start_gateways(people)
                _rage(grounds, striker, pulse, options, audience)
                gateways = _lives(grounds.some("gateway"), pulse)
                grounds.all_up()
                audience.step("Ending the traffic")
                grounds.end_traffic()
                settled, silent = _rest(grounds, runtime, pulse, audience)
            finally:
                striker.close()
                pulse.close()
            audience.step("Checking the guarantees")
            verified = verify.check(holds=runtime.holds, ledger=runtime.ledger)
            audience.step("Comparing the journals with the books")
            stories = read_stories(read_journals(grounds.journals))
            books = read_books(runtime.settings, first_user_id=people.user)
            return ChaosReport(
                options=options,
                faults=striker.done,
                faults_left=striker.left,
                stories=stories,
                books=books,
                verdict=judge(stories, books),
                verified=verified,
                settled=settled,
                lives={**_lives(grounds.mortals.values(), pulse), **gateways},
                silent_workers=silent,
                left_in_spools=len([*grounds.spools.glob("*/*.json"), *grounds.spools.glob("*/*.refused")]),
                versions=versions(grounds, runtime),
                command=command,
                state_dir=str(grounds.state.path),
            )


def _rage(grounds: Grounds, striker: Striker, pulse: Pulse, options: Options, audience: Audience) -> None:
    """Until the time is over and the last fault has struck."""
    began, looked = time.monotonic(), 0.0
    watch = Watch(grounds.journals)
    while True:
        seconds = time.monotonic() - began
        if seconds > options.seconds and (not striker.left or seconds > options.seconds + EXTRA_SECONDS):
            return
        grounds.tend()
        striker.strike(seconds)
        if seconds - looked > LOOK_SECONDS:
            looked = seconds
            pulse.look()
            watch.look()
            last = tuple(f"{at:6.1f} s  {told}" for at, told in striker.told[-6:])
            audience.scene(Scene(seconds, options.seconds, watch.requests, sum(striker.done.values()), last))
        time.sleep(TICK_SECONDS)


def _rest(grounds: Grounds, runtime: Runtime, pulse: Pulse, audience: Audience) -> tuple[Settled, list[str]]:
    """Everything up, nothing on its way; and the workers that don't answer although they run."""
    audience.step("Waiting until all is settled")
    settled = await_settled(
        runtime,
        timeout_seconds=grounds.options.settle_timeout_seconds,
        look=audience.waiting,
        tend=grounds.tend,
    )
    audience.step("Asking the workers")
    return settled, pulse.all_answer(ANSWER_SECONDS)


def _lives(mortals: Iterable[Mortal], pulse: Pulse) -> dict[str, Lives]:
    return {
        mortal.name: Lives(mortal.restarts, tuple(mortal.died_by_itself), pulse.longest_silence.get(mortal.name, 0.0))
        for mortal in mortals
    }


def versions(grounds: Grounds, runtime: Runtime) -> dict[str, str]:
    """Of everything that took part."""
    info = runtime.holds.client.execute_command("INFO", "server").decode()
    valkey = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    with psycopg.connect(grounds.postgres.url) as connection:
        postgres = connection.info.parameter_status("server_version") or ""
    python = f"{platform.python_implementation()} {sys.version.split()[0]}"
    packages = {name: version(name) for name in ("billing-tasks", "celery", "kombu", "redis", "sqlalchemy", "psycopg")}
    named = {"Valkey": valkey["valkey_version"]} if "valkey_version" in valkey else {"Redis": valkey["redis_version"]}
    return {**packages, "Python": python, **named, "PostgreSQL": postgres}
