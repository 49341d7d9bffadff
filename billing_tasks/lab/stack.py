"""Everything `billing-tasks up` runs: PostgreSQL, Valkey, then worker, beat and Flower, stopped in reverse.

If one part dies, the rest is stopped and the error says which, how, and what
it wrote last. If we are killed, the kernel kills the children (elsewhere than
on Linux the next start does); data stays, and the next start works.

Use from the main thread: signals arrive there, and children die with the
thread that started them.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from billing_tasks.lab.defaults import DEFAULT_STATE_DIR
from billing_tasks.lab.outages import Outages
from billing_tasks.lab.parts import Part, PartProcess
from billing_tasks.lab.problems import PartDied
from billing_tasks.lab.processes import Supervised
from billing_tasks.lab.servers.embedded import Servers
from billing_tasks.lab.servers.folders import StateFolder
from billing_tasks.lab.servers.postgres import EmbeddedPostgres
from billing_tasks.lab.servers.valkey import EmbeddedValkey

WATCH_SECONDS = 0.1
STOP_SECONDS_AFTER_A_DEATH = 5.0  # what is left may wait in vain for what died
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Migrate = Callable[[str], None]
PartsMaker = Callable[[Path], Sequence[Part]]


@dataclass(frozen=True)
class PartReport:
    """One process, for people and `--json`."""

    name: str
    pid: int | None
    log_file: str
    notes: Mapping[str, str]


@dataclass(frozen=True)
class Description:
    """Where everything is."""

    state_dir: str
    redis_url: str
    database_url: str
    database_files: str
    parts: tuple[PartReport, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Stack:
    """The servers and the processes on top of them, as one thing.

    Stack(".billing", migrate=migrate, parts=celery_parts).run(print)
    """

    def __init__(
        self,
        state_dir: Path | str = DEFAULT_STATE_DIR,
        *,
        parts: PartsMaker | None = None,
        migrate: Migrate | None = None,
        progress: Callable[[str], None] | None = None,
        fast: bool = False,
    ) -> None:
        """`parts` gets the state folder, `migrate` the database's address, `progress` a sentence per step."""
        self._state = StateFolder(state_dir)
        self._make_parts = parts or (lambda _state_dir: ())
        self._migrate = migrate or (lambda _database_url: None)
        self._progress = progress or (lambda _sentence: None)
        self._fast = fast
        self._servers: Servers | None = None
        self._outages = Outages(self._state)
        self._running: list[Supervised] = []
        self._cleanup = ExitStack()
        self._interrupts = 0
        self._counting = False

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def servers(self) -> Servers:
        """PostgreSQL and Valkey, and the environment that names them."""
        assert self._servers is not None, "start() comes first"  # noqa: S101
        return self._servers

    @property
    def environment(self) -> dict[str, str]:
        """BILLING_* for every process that should work with this stack."""
        return self.servers.environment

    def start(self) -> None:
        """Start everything, or raise and leave nothing running. Signals raise KeyboardInterrupt."""
        self._interrupts, self._counting = 0, False
        try:
            self._cleanup.enter_context(self._state)
            self._cleanup.callback(self._outages.forget)
            self._outages.forget()
            self._take_signals()
            parts = self._make_parts(self._state.path)  # a taken port is told before anything is started
            self._start_servers()
            self._timed("The database is migrated", lambda: self._migrate(self.servers.database_url))
            self._start_parts(parts)
        except BaseException:
            self.stop(at_most_seconds=STOP_SECONDS_AFTER_A_DEATH)
            raise

    def run(self, ready: Callable[[Description], None]) -> None:
        """Start, say where everything is, and wait. Once started, a signal is the ordinary end, not an error."""
        with self:
            try:
                ready(self.describe())
                self.wait()
            except KeyboardInterrupt:  # between start and wait
                return

    def wait(self) -> None:
        """Return after Ctrl-C, SIGTERM or SIGHUP, or raise PartDied. Everything is stopped either way."""
        self._counting = True
        try:
            while not self._interrupts:
                for sentence in self._outages.look(self._running):
                    self._progress(sentence)
                self._check()
                time.sleep(WATCH_SECONDS)
        except PartDied:
            self.stop(at_most_seconds=STOP_SECONDS_AFTER_A_DEATH)
            raise
        self.stop()

    def stop(self, *, at_most_seconds: float = math.inf) -> None:
        """Stop everything, last started first. Each further Ctrl-C goes on to a harder signal."""
        self._counting = True
        while self._running:
            self._stop_one(self._running.pop(), at_most_seconds)
        self._cleanup.close()

    def describe(self) -> Description:
        """Where everything is: addresses, process ids, logs, data."""
        return Description(
            state_dir=str(self._state.path),
            redis_url=self.servers.redis_url,
            database_url=self.servers.database_url,
            database_files=str(self.servers.postgres.data),
            parts=tuple(report(process) for process in self._running),
        )

    def _start_servers(self) -> None:
        postgres = EmbeddedPostgres(self._state, fast=self._fast)
        valkey = EmbeddedValkey(self._state, appendfsync="no" if self._fast else "always")
        self._servers = Servers(self._state, postgres, valkey)
        for server, name in ((postgres, "PostgreSQL"), (valkey, "Valkey")):
            self._running.append(server)
            self._timed(f"{name} answers", server.start)

    def _start_parts(self, parts: Sequence[Part]) -> None:
        processes = [PartProcess(part, self._state, self.environment) for part in parts]
        for process in processes:  # all at once: each needs a second or two before it answers
            self._running.append(process)
            process.spawn()
        for process in processes:
            self._timed(f"{process.name} is ready", process.await_ready)

    def _stop_one(self, process: Supervised, at_most_seconds: float) -> None:
        before = self._interrupts
        if process.is_running:
            self._progress(f"Stopping {process.name}")
        process.stop(impatience=lambda: self._interrupts - before, at_most_seconds=at_most_seconds)

    def _check(self) -> None:
        for process in self._running:
            if not process.is_running and not self._outages.is_meant(process):
                raise PartDied(f"{process.name} died, so everything was stopped. {process.post_mortem()}")

    def _timed(self, sentence: str, step: Callable[[], None]) -> None:
        began = time.monotonic()
        step()
        self._progress(f"{sentence} ({time.monotonic() - began:.1f} s)")

    def _take_signals(self) -> None:
        """Ours while we run; the handlers from before are put back when everything is stopped."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            self._cleanup.callback(signal.signal, number, signal.signal(number, self._interrupted))

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        """While waiting or stopping only counted; at any other time it breaks off what is going on."""
        self._interrupts += 1
        if not self._counting:
            raise KeyboardInterrupt


def report(process: Supervised) -> PartReport:
    """What there is to say about one process."""
    notes = process.part.notes if isinstance(process, PartProcess) else {}
    return PartReport(process.name, process.pid, str(process.log_file), dict(notes))
