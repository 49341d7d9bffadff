"""Outages that a person rehearses: a command asks for one, the stack that runs does it.

They meet in a file per process below the state folder, `run/<name>.outage`, with one word: `stop` and `start` are
asked for, `stopped`, `runs` and `failed` are the answers. No file: it runs, and nothing was asked for. A stack that
ends takes the files away, so a question without an answer was never done.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from billing_tasks.errors import InvalidRequest
from billing_tasks.lab.problems import LabError
from billing_tasks.lab.processes import Supervised
from billing_tasks.lab.servers.folders import LOCK_NAME, StateFolder

#: What a person calls a process, and what it is called here.
NAMES: Final = {"redis": "valkey", "postgresql": "postgres", "worker": "worker", "beat": "beat", "flower": "flower"}
#: A server that is stopped may have to write for a while; one that starts may read its file.
#: A worker gets 60 seconds to start; after that the answer is that it failed.
PATIENCE_SECONDS: Final = 90.0
#: An outage is no orderly end: what does not stop by then is killed.
STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.05


class NotRunning(LabError):
    """No stack works in the state folder, so nothing can be stopped or started there."""

    code = "lab_not_running"
    what_to_do = "Start it in another terminal: billing-tasks up. Name its folder with --state-dir if it has another."


class Outages:
    """The outages of one stack, as its own process sees them."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._stopped: set[str] = set()

    def is_meant(self, process: Supervised) -> bool:
        """True if it does not run because a person stopped it."""
        return process.name in self._stopped

    def look(self, processes: list[Supervised]) -> list[str]:
        """Do what was asked for since the last look; a sentence for each."""
        said = []
        for process in processes:
            file = _file(self._state.path, process.name)
            asked = _read(file)
            if asked == "stop":
                answer, sentence = self._stop(process)
            elif asked == "start":
                answer, sentence = self._start(process)
            else:
                continue
            if _read(file) == asked:  # else a person changed their mind meanwhile: that is done at the next look
                _write(file, answer)
            said.append(sentence)
        return said

    def _stop(self, process: Supervised) -> tuple[str, str]:
        self._stopped.add(process.name)
        process.stop(at_most_seconds=STOP_SECONDS)
        return "stopped", f"{process.name} is stopped, as asked for"

    def _start(self, process: Supervised) -> tuple[str, str]:
        try:
            process.start()
        except LabError as exc:  # it stays stopped; the rest goes on, and the person decides
            return "failed", f"{process.name} is still stopped: {exc.message}"
        self._stopped.discard(process.name)
        return "runs", f"{process.name} answers again"

    def forget(self) -> None:
        """The stack begins, or ends: no outage is asked for."""
        self._stopped.clear()
        for file in (self._state.path / "run").glob("*.outage"):
            file.unlink(missing_ok=True)


def stop(state_dir: Path, name: str) -> None:
    """Have the stack that works in this folder stop one of its processes. Returns when it is down; safe to repeat.

    Raises NotRunning, also if the stack ends meanwhile; InvalidRequest for a process that it does not have; LabError
    if it takes more than PATIENCE_SECONDS.
    """
    file = _process_of(state_dir, name)
    if _read(file) != "stopped":
        _write(file, "stop")
        _wait(file, "stopped", f"{name} did not stop")


def start(state_dir: Path, name: str) -> None:
    """Have it started again. Returns when it answers. Raises as `stop`, and LabError if it does not start."""
    file = _process_of(state_dir, name)
    if _read(file) not in ("", "runs"):
        _write(file, "start")
        _wait(file, "runs", f"{name} does not answer")


def _process_of(state_dir: Path, name: str) -> Path:
    if name not in NAMES:
        raise InvalidRequest(f"There is no {name!r} to be stopped or started; there are {', '.join(NAMES)}.")
    folder = state_dir.resolve()
    if not _works_in(folder):
        raise NotRunning(f"No `billing-tasks up` works in {folder}.")
    file = _file(folder, NAMES[name])
    if not file.with_suffix(".pid").exists() and not file.exists():
        raise InvalidRequest(f"The stack in {folder} runs no {name}.")
    return file


def _works_in(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _wait(file: Path, until: str, otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (word := _read(file)) != until:
        if word == "failed":
            log_file = file.parents[1] / "logs" / f"{file.stem}.log"
            raise LabError(f"{otherwise}: it could not be started and stays stopped. Its log: {log_file}")
        if not _works_in(file.parents[1]):
            raise NotRunning(f"{otherwise}: the `billing-tasks up` that worked in {file.parents[1]} has ended.")
        if time.monotonic() > deadline:
            raise LabError(f"{otherwise} within {PATIENCE_SECONDS:.0f} s.")
        time.sleep(_POLL_SECONDS)


def _file(state_dir: Path, process: str) -> Path:
    return state_dir / "run" / f"{process}.outage"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _write(file: Path, word: str) -> None:
    draft = file.with_suffix(".outage-draft")
    draft.write_text(word, encoding="utf-8")
    draft.replace(file)
