"""Restore: PostgreSQL comes back as it was some time ago, at the same address.

An operator restores a backup; or a standby that had lagged takes over, which is the same to everyone who is connected
to it. The copy is of a server that is stopped in mid-step, so it recovers as after a loss of power.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from chaos.failover import now_ms
from chaos.processes import children_of, kill

if TYPE_CHECKING:
    from chaos.environment import Environment
    from chaos.processes import ManagedProcess

COPY_SECONDS = 60.0
#: From the start of the restored server on: by then a gateway or a worker has met it, and said so to Redis.
KNOWN_SECONDS = 5.0
#: Another loss, of Redis, comes no sooner: which of the two took an event could not be told.
QUIET_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Restored:
    """What PostgreSQL committed between the first two moments is gone; until the last, quota was granted by copies of
    accounts from before. In milliseconds since 1970."""

    from_ms: int
    to_ms: int
    known_ms: int


class Restore:
    """Takes copies of a run's PostgreSQL and puts them in its place."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._due: float | None = None
        self._copied_ms = self._ended_ms = 0
        self._coming = False  # the restored server is being started
        self._quiet_until = 0.0
        self.done: list[Restored] = []

    @property
    def is_busy(self) -> bool:
        """A copy waits for its time, or has just been put in place."""
        return self._due is not None or self._coming or time.monotonic() < self._quiet_until

    def begin(self, seconds: float) -> str:
        """Copy it now; after `seconds` the copy takes its place. Empty if it can't be done now."""
        postgres = self._postgres
        if self.is_busy or not postgres.is_up:
            return ""
        with suppress(psycopg.Error), psycopg.connect(self._environment.postgres.url, autocommit=True) as connection:
            connection.execute("checkpoint")
        pid = postgres.process.pid or 0
        stopped = [pid, *children_of(pid)]
        for one in stopped:
            kill(one, signal.SIGSTOP)
        self._copied_ms = now_ms()
        try:
            _copy(self._data, self._saved)
        finally:
            for one in stopped:
                kill(one, signal.SIGCONT)
        (self._saved / "postmaster.pid").unlink(missing_ok=True)
        self._due = time.monotonic() + seconds
        return f"PostgreSQL comes back in {seconds:.1f} s as it is now"

    def tend(self) -> None:
        """Do what is due."""
        if self._due is not None and time.monotonic() >= self._due:
            self._due = None
            self._put_in_place()
        if self._coming and self._postgres.is_up:
            self._coming = False
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            known_ms = now_ms() + round(KNOWN_SECONDS * 1000)
            self.done.append(Restored(self._copied_ms, self._ended_ms, known_ms))

    def _put_in_place(self) -> None:
        self._postgres.kill(signal.SIGKILL, 0.0)
        self._ended_ms = now_ms()
        subprocess.run(["rm", "-rf", str(self._data)], check=True, timeout=COPY_SECONDS)
        self._saved.rename(self._data)
        self._coming = True

    @property
    def _postgres(self) -> ManagedProcess:
        return self._environment.processes["postgres"]

    @property
    def _data(self) -> Path:
        return self._environment.postgres.data

    @property
    def _saved(self) -> Path:
        return self._data.with_name("data.saved")


def _copy(folder: Path, to: Path) -> None:
    """With owners and modes: the server belongs to another user if we are root."""
    subprocess.run(["rm", "-rf", str(to)], check=True, timeout=COPY_SECONDS)
    subprocess.run(["cp", "-a", str(folder), str(to)], check=True, timeout=COPY_SECONDS)
