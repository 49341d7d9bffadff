"""Processes that are killed or frozen on purpose, and come back.

Everything here returns at once: a run looks after all of its processes in turns,
from the main thread, because children die with the thread that started them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from billing_tasks.lab.problems import StartFailed
from billing_tasks.lab.processes import Supervised

#: A server that was killed needs a moment until its memory is free; so many tries, this far apart.
TRIES = 60
PAUSE_SECONDS = 0.25
#: What is slow runs in one of so many ticks.
SLOW_TICKS = 4


class State(Enum):
    """Where a process stands."""

    DOWN = auto()
    STARTING = auto()
    UP = auto()
    FROZEN = auto()
    SLOW = auto()


class ManagedProcess:
    """One supervised process, over all its runs."""

    def __init__(self, process: Supervised) -> None:
        self.process = process
        self.name = process.name
        self.state = State.DOWN
        self.since = time.monotonic()  # when it came into this state
        self.restarts = 0
        self.died_by_itself: list[str] = []  # how, each time
        self._until = 0.0
        self._frozen: list[int] = []
        self._ticks = 0  # of slowness
        self._tries = 0

    @property
    def is_up(self) -> bool:
        """It runs and answered once since it was started."""
        return self.state is State.UP and self.process.is_running

    def start(self) -> None:
        """The first start, waited for."""
        self.process.start()
        self._become(State.UP)

    def spawn(self) -> None:
        """The first start, not waited for."""
        self.process.spawn()
        self._become(State.STARTING)

    def kill(self, number: signal.Signals, away_seconds: float, *, children_too: bool = True) -> None:
        """End it without a word; it is started again after `away_seconds`.

        Its children either go with it or run on as orphans until it is back.
        """
        if children_too:
            for child in children_of(self.process.pid or 0):
                kill(child, number)
        kill(self.process.pid or 0, number)
        deadline = time.monotonic() + 2
        while self.process.is_running and time.monotonic() < deadline:
            time.sleep(0.005)
        if self.process.is_running:  # SIGQUIT was not enough
            self.process.kill()
        self.restarts += 1
        self._be_away(away_seconds)

    def freeze(self, seconds: float) -> None:
        """Stop it, children and all, in the middle of whatever it does; it goes on after `seconds`."""
        pid = self.process.pid or 0
        self._frozen = [pid, *children_of(pid)]
        for one in self._frozen:
            kill(one, signal.SIGSTOP)
        self._become(State.FROZEN)
        self._until = time.monotonic() + seconds

    def slow(self, seconds: float) -> None:
        """Have it run for one tick of four only, for `seconds`."""
        self._become(State.SLOW)
        self._until = time.monotonic() + seconds

    def _stumble(self) -> None:
        pid = self.process.pid or 0
        self._ticks += 1
        stopped = self._ticks % SLOW_TICKS
        for one in (pid, *children_of(pid)):
            kill(one, signal.SIGSTOP if stopped else signal.SIGCONT)

    def thaw(self) -> None:
        """Let it go on."""
        pid = self.process.pid or 0
        for one in {*self._frozen, pid, *children_of(pid)}:
            kill(one, signal.SIGCONT)
        self._frozen = []
        self._become(State.UP)

    def tend(self) -> None:
        """Do what is due: thaw it, start it again, see whether it answers, notice that it died by itself."""
        now = time.monotonic()
        if self.state in (State.FROZEN, State.SLOW) and now >= self._until:
            self.thaw()
        elif self.state is State.SLOW:
            self._stumble()
        elif self.state is State.DOWN and now >= self._until:
            self.process.spawn()
            self._become(State.STARTING)
        elif self.state is State.STARTING:
            self._see_it_start()
        elif self.state is State.UP and not self.process.is_running:
            self.died_by_itself.append(self.process.post_mortem())
            self.restarts += 1
            self._be_away(PAUSE_SECONDS)

    def stop(self, at_most_seconds: float) -> None:
        """The ordinary end."""
        if self.state in (State.FROZEN, State.SLOW):
            self.thaw()
        self.process.stop(at_most_seconds=at_most_seconds)
        self._become(State.DOWN)

    def _see_it_start(self) -> None:
        if not self.process.is_running:
            self._tries += 1
            if self._tries > TRIES:
                raise StartFailed(f"{self.name} can't be started again. {self.process.post_mortem()}")
            self._be_away(PAUSE_SECONDS)
        elif self.process.answers():
            self._tries = 0
            self._become(State.UP)

    def _be_away(self, seconds: float) -> None:
        self._become(State.DOWN)
        self._until = time.monotonic() + seconds

    def _become(self, state: State) -> None:
        self.state, self.since = state, time.monotonic()


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone by now."""
    if pid > 0:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def children_of(pid: int) -> list[int]:
    """The processes that this one started and that still run."""
    if pid <= 0:
        return []
    if sys.platform == "linux":
        with suppress(FileNotFoundError, ProcessLookupError):
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []
    listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]
