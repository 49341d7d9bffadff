"""Environment: the servers and processes of a run, as in production: durable Redis and PostgreSQL, a broker of its own
that keeps nothing, two workers, beat, gateways.

Everything is in one state folder and ends with us.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType

from billing_tasks.lab.parts import Part, PartProcess, celery_parts
from billing_tasks.lab.servers.folders import StateFolder
from billing_tasks.lab.servers.postgres import EmbeddedPostgres
from billing_tasks.lab.servers.valkey import EmbeddedValkey
from billing_tasks.lab.stack import STOP_SIGNALS
from billing_tasks.settings import Settings
from chaos.failover import follow, free_port
from chaos.gateway_process import POPULATION_FILE
from chaos.options import Options
from chaos.population import Population
from chaos.processes import ManagedProcess

#: What a run can't wait for is done sooner than by default: expiry, rings, reloads of cached accounts; tombstones
#: end within the run, so that late repeats meet none.
QUICK = {
    "BILLING_EXPIRE_EVERY_SECONDS": "1",
    "BILLING_RING_EVERY_SECONDS": "2",
    "BILLING_FRESH_SECONDS": "10",
    "BILLING_TOMBSTONE_SECONDS": "90",
}
STOP_SECONDS = 10.0
CHECKOUT = Path(__file__).parents[1]
#: A gateway ends when its last requests have: their patience, and some.
GATEWAY_STOP_SECONDS = 75.0


class Environment:
    """Everything that runs. Use from the main thread."""

    def __init__(self, state_dir: Path, options: Options, progress: Callable[[str], None]) -> None:
        self.options = options
        self.state = StateFolder(state_dir)
        self._progress = progress
        self._cleanup = ExitStack()
        self._postgres: EmbeddedPostgres | None = None
        self._address = Path()  # of Redis, a link to the socket of the one that is primary
        self.processes: dict[str, ManagedProcess] = {}

    def __enter__(self) -> Environment:
        self._cleanup.enter_context(self.state)
        for number in STOP_SIGNALS:
            self._cleanup.callback(signal.signal, number, signal.signal(number, _interrupt))
        try:
            self._start_servers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def postgres(self) -> EmbeddedPostgres:
        """The database server."""
        assert self._postgres is not None, "enter first"
        return self._postgres

    @property
    def journals(self) -> Path:
        """Where the gateways of this run write."""
        return self.state.folder("journals")

    @property
    def spools(self) -> Path:
        """Where each gateway keeps usage while both servers are away."""
        return self.state.folder("spool")

    @property
    def variables(self) -> dict[str, str]:
        """BILLING_* of every process of the run, and of ours."""
        named = Settings(redis_url=self.valkey("broker").url, broker_url=None)
        return {
            "BILLING_REDIS_URL": f"unix://{self._address}",
            "BILLING_DATABASE_URL": self.postgres.url,
            "BILLING_BROKER_URL": named.celery_broker_url,
            **QUICK,
        }

    @property
    def settings(self) -> Settings:
        """The same as settings."""
        named = {name.removeprefix("BILLING_").lower(): value for name, value in self.variables.items()}
        return Settings(_env_file=os.environ.get("BILLING_ENV_FILE"), **named)  # type: ignore[arg-type]

    def valkey(self, name: str) -> EmbeddedValkey:
        """redis, standby or broker. The first two change places when Redis fails over."""
        valkey = self.processes[name].process
        assert isinstance(valkey, EmbeddedValkey)
        return valkey

    def clock_of(self, name: str) -> Path:
        """The file that says by how much a process's clock is wrong."""
        return self.state.folder("clocks") / name

    def answer_at_the_address(self, name: str) -> None:
        """New connections reach this one from now on, as behind a service's name."""
        new = self._address.with_suffix(".new")
        new.symlink_to(self.valkey(name).url.removeprefix("unix://"))
        new.replace(self._address)

    def change_places(self) -> None:
        """The standby is the primary now."""
        old, new = self.processes["redis"], self.processes["standby"]
        old.name, new.name = "standby", "redis"
        self.processes["redis"], self.processes["standby"] = new, old
        self.answer_at_the_address("redis")

    def start_workers(self) -> None:
        """Workers and beat; returns when they are ready."""
        self._start_parts(self._celery_parts())

    def start_gateways(self, population: Population) -> None:
        """The traffic begins."""
        population.save(self.journals / POPULATION_FILE)
        for number in range(self.options.gateways):
            part = self._gateway_part(number)
            self._add(part.name, ManagedProcess(PartProcess(part, self.state, self.variables))).spawn()

    def some(self, kind: str) -> list[ManagedProcess]:
        """The processes of a kind: worker, beat, gateway, redis, postgres, broker."""
        return [managed for name, managed in self.processes.items() if name.rpartition("-")[0] == kind or name == kind]

    def tend(self) -> None:
        """Let every process do what is due."""
        for managed in self.processes.values():
            managed.tend()

    def end_traffic(self) -> None:
        """No new requests; returns when those on their way have come to their end."""
        for gateway in self.some("gateway"):
            while gateway.state.name != "UP":  # one that is coming back has nothing on its way, but let it come
                self.tend()
                time.sleep(0.05)
        for name in [managed.name for managed in self.some("gateway")]:
            self._progress(f"Ending {name}")
            self.processes.pop(name).stop(GATEWAY_STOP_SECONDS)

    def all_up(self, timeout_seconds: float = 60.0) -> bool:
        """Tend until everything runs; False if it does not in time."""
        deadline = time.monotonic() + timeout_seconds
        while not all(managed.is_up for managed in self.processes.values()):
            if time.monotonic() > deadline:
                return False
            self.tend()
            time.sleep(0.05)
        return True

    def stop(self) -> None:
        """Everything, last started first, in bounded time; another Ctrl-C does not end it sooner."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        while self.processes:
            _, managed = self.processes.popitem()
            managed.stop(STOP_SECONDS)
        self._cleanup.close()

    def discard(self) -> None:
        """Remove what lies outside the state folder, once everything is stopped."""
        if self._postgres is not None:
            self._postgres.discard()

    def _start_servers(self) -> None:
        self._postgres = EmbeddedPostgres(self.state)
        servers = {
            "postgres": self._postgres,
            "redis": EmbeddedValkey(self.state, port=free_port()),
            "standby": EmbeddedValkey(self.state, name="standby", port=free_port()),
            "broker": EmbeddedValkey(self.state, name="broker", keeps=False),
        }
        for name, server in servers.items():
            self._progress(f"Starting {name}")
            self._add(name, ManagedProcess(server)).start()
        self._address = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="billing-"))) / "redis.sock"
        self.answer_at_the_address("redis")
        follow(self.valkey("standby"), self.valkey("redis"))

    def _start_parts(self, parts: list[Part]) -> None:
        made = [self._add(part.name, ManagedProcess(PartProcess(part, self.state, self.variables))) for part in parts]
        for managed in made:
            self._progress(f"Starting {managed.name}")
            managed.spawn()
        while not all(managed.is_up for managed in made):
            self.tend()
            time.sleep(0.05)

    def _add(self, name: str, managed: ManagedProcess) -> ManagedProcess:
        managed.name = name
        self.processes[name] = managed
        return managed

    def _celery_parts(self) -> list[Part]:
        worker, beat = celery_parts(
            self.state.path, concurrency=self.options.worker_children, with_flower=False, worker_ready=has_worked
        )
        workers = [
            replace(
                worker,
                name=f"worker-{number + 1}",
                argv=self._with_clock(
                    f"worker-{number + 1}", [word.replace("worker1@", f"worker{number + 1}@") for word in worker.argv]
                ),
                environ={**worker.environ, **_finds_chaos()},
            )
            for number in range(self.options.workers)
        ]
        return [*workers, beat]

    def _gateway_part(self, number: int) -> Part:
        name = f"gateway-{number + 1}"
        rate = self.options.rate / self.options.gateways
        kind = "threads" if number % 3 == 1 else "async"
        argv = (sys.executable, "-m", "chaos.gateway_process", str(self.journals), name, str(rate), kind)
        spool = {"BILLING_SPOOL_FOLDER": str(self.spools / name)}
        return Part(name=name, argv=self._with_clock(name, argv), environ={**_finds_chaos(), **spool})

    def _with_clock(self, name: str, argv: Sequence[str]) -> tuple[str, ...]:
        """`python -m module` with a clock that can be set."""
        python, dash_m, *rest = argv
        return (python, dash_m, "chaos.clock", str(self.clock_of(name)), *rest)


def _finds_chaos() -> dict[str, str]:
    """Chaos is not installed: a process finds it in this checkout, from wherever the run was started."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))}


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: in good order."""
    raise KeyboardInterrupt


def has_worked(process: PartProcess) -> bool:
    """A worker is ready when its log says so, or when it says more than that already."""
    written = process.written()
    return " ready." in written or "] received" in written or " succeeded in " in written
