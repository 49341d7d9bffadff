"""Real Celery workers, started like those of `billing-tasks up`, and the processor time they take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from billing_tasks.lab.parts import Part, PartProcess, log_has
from billing_tasks.lab.servers.folders import StateFolder


def start_worker(
    state: StateFolder, name: str, *, processes: int, environ: Mapping[str, str], app: str = "billing_tasks"
) -> PartProcess:
    """A worker with so many processes, ready to work. Stop it."""
    part = Part(
        name=name,
        argv=(
            *(sys.executable, "-m", "celery", "-A", app, "worker", "-c", str(processes), "-n", f"{name}@%h"),
            *("--without-gossip", "--without-mingle", "--loglevel", "WARNING" if app != "billing_tasks" else "INFO"),
        ),
        ready=log_has(" ready."),
    )
    worker = PartProcess(part, state, environ)
    worker.start()
    return worker


@contextmanager
def running_worker(
    state: StateFolder, name: str, *, processes: int, environ: Mapping[str, str], app: str = "billing_tasks"
) -> Iterator[PartProcess]:
    """`start_worker`, killed at the end of the block: nothing waits any more, and a warm shutdown takes seconds."""
    worker = start_worker(state, name, processes=processes, environ=environ, app=app)
    try:
        yield worker
    finally:
        worker.kill()


def cpu_seconds(pid: int | None) -> float | None:
    """User and system time of a process and everything below it so far; None where /proc does not tell."""
    if pid is None or not Path("/proc/self/stat").exists():
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0
    for member in _family(pid):
        try:
            # Behind the name, which may hold anything: utime and stime, its own and those of the dead children.
            fields = Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(map(int, fields[11:15]))
    return total / ticks


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]
