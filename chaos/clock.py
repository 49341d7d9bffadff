"""Clock: runs a module whose wall clock can be set while it runs, as an administrator or NTP does it.

    python -m chaos.clock FILE MODULE [ARGUMENT ...]

FILE has the seconds by which `time.time()` and `time.time_ns()` of this process and its children are wrong; it is read
four times a second, and may be missing. Other clocks (monotonic, PostgreSQL's, Redis's) are right.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
from pathlib import Path

READ_SECONDS = 0.25

true_time, true_time_ns = time.time, time.time_ns


class SetClock:
    """The wrong clock of this process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._off_ns = self._read()
        self._follow()
        os.register_at_fork(after_in_child=self._follow)  # threads do not live on in a child

    def time(self) -> float:
        """Seconds since 1970, or so."""
        return true_time() + self._off_ns / 1e9

    def time_ns(self) -> int:
        """Likewise in nanoseconds."""
        return true_time_ns() + self._off_ns

    def _follow(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(READ_SECONDS)
            self._off_ns = self._read()

    def _read(self) -> int:
        try:
            return round(float(self._file.read_text()) * 1_000_000_000)
        except (FileNotFoundError, ValueError):  # not there yet, or half written
            return 0


def now_ns() -> int:
    """The true time in nanoseconds since 1970, whatever this process's clock is set to."""
    now: int = getattr(time.time_ns, "true", time.time_ns)()
    return now


def main() -> None:
    """Set the clock, then be that module."""
    clock = SetClock(Path(sys.argv[1]))

    def time_ns() -> int:
        return clock.time_ns()

    time_ns.true = true_time_ns  # type: ignore[attr-defined]
    time.time, time.time_ns = clock.time, time_ns
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
