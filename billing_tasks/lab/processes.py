"""One child process under supervision: started, watched, stopped, never left behind.

Each child leads a session of its own, so that Ctrl-C in the terminal reaches
only us and we stop the children in order. Its output goes to a log file, its
pid to a pid file. If we are killed, the kernel kills the child (`launch.py`);
where the kernel can't, the next start finds the pid file and stops the orphan.

Start children from the main thread: on Linux they die with the thread that started them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from billing_tasks.lab import launch
from billing_tasks.lab.problems import StartFailed

POLL_SECONDS = 0.02
TAIL_LINES = 15
TAIL_BYTES = 16_384
LOG_LIMIT_BYTES = 10_000_000

StopSteps = tuple[tuple[signal.Signals, float], ...]
"""Signals to stop with, each with the seconds it gets before the next; SIGKILL comes last by itself."""


@dataclass(frozen=True)
class Account:
    """The operating system's user that a server runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Program:
    """What to run, as whom, and how to end it."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    run_as: Account | None = None
    cwd: Path | None = None
    stop_steps: StopSteps = ((signal.SIGTERM, 10.0),)
    death_signal: signal.Signals = signal.SIGKILL
    ready_seconds: float = 30.0


class Supervised(ABC):
    """One child. Subclasses say what to run and how to see that it answers."""

    def __init__(self, name: str, *, log_file: Path, pid_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self.pid_file = pid_file
        self._process: subprocess.Popen[bytes] | None = None
        self._program: Program | None = None
        self._log_start = 0

    @abstractmethod
    def prepare(self) -> Program:
        """Make whatever the program needs on disk, and say how to run it."""

    @abstractmethod
    def answers(self) -> bool:
        """True once the child does its work; asked again and again while it starts."""

    def when_ready(self) -> None:  # noqa: B027  most children need nothing here
        """Called once, when the child answers for the first time."""

    def when_stopped(self) -> None:  # noqa: B027
        """Called after an ordinary stop."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self.is_running else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended: negative for a signal, None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Run it and return when it answers, or raise StartFailed and leave nothing running."""
        self.spawn()
        self.await_ready()

    def spawn(self) -> None:
        """Run it without waiting for it to answer."""
        if self.is_running:
            return
        self._reap()
        program = self.prepare()
        stop_leftover(self.pid_file, program.stop_steps)
        self._program = program
        log = open_log(self.log_file)
        try:
            self._log_start = os.fstat(log).st_size
            self._process = spawn(program, log)
        finally:
            os.close(log)
        record_pid(self.pid_file, self._process.pid, program.argv)

    def await_ready(self) -> None:
        """Return when the child answers; otherwise stop it and say what it wrote last."""
        assert self._program is not None, "spawn() comes first"  # noqa: S101
        deadline = time.monotonic() + self._program.ready_seconds
        try:
            while not self.answers():
                self._check_start(late=time.monotonic() > deadline)
                time.sleep(POLL_SECONDS)
            self.when_ready()
        except BaseException:  # Ctrl-C as well: the caller must not have to clean up
            self.stop(at_most_seconds=5)
            raise

    def stop(self, *, impatience: Callable[[], int] = lambda: 0, at_most_seconds: float = math.inf) -> None:
        """End it, gently first. `impatience` counts how often Ctrl-C was pressed meanwhile: each skips one wait."""
        if self._process is None or self._program is None:
            return
        for waits, (number, seconds) in enumerate(self._program.stop_steps):
            if not self.is_running:
                break
            self._process.send_signal(number)
            deadline = time.monotonic() + min(seconds, at_most_seconds)
            while self.is_running and time.monotonic() < deadline and impatience() <= waits:
                time.sleep(POLL_SECONDS)
        self.kill()
        self.when_stopped()

    def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is tidied up but the process itself."""
        if self._process is not None and self.is_running:
            self._process.kill()
            self._process.wait()
        self._reap()

    def restart(self) -> None:
        """Stop and start again; the address stays the same."""
        self.stop()
        self.start()

    def post_mortem(self) -> str:
        """How it ended and what it wrote last, for people."""
        code = self.exit_code
        if code is None:
            ending = "It is still running."
        elif code < 0:
            ending = f"It was ended by {signal.Signals(-code).name}."
        else:
            ending = f"It ended with exit code {code}."
        return f"{ending} {self.last_words()}"

    def last_words(self) -> str:
        """The last lines of this run's log."""
        lines = self.written().splitlines()[-TAIL_LINES:]
        if not lines:
            return f"It wrote nothing to {self.log_file}."
        return f"The last lines of {self.log_file}:\n" + "\n".join(f"    {line}" for line in lines)

    def written(self) -> str:
        """What this run wrote to its log; of a long one, the end."""
        return log_tail(self.log_file, since=self._log_start)

    def _check_start(self, *, late: bool) -> None:
        if not self.is_running:
            raise StartFailed(f"{self.name} did not start. {self.post_mortem()}")
        if late:
            raise StartFailed(f"{self.name} does not answer in time. {self.last_words()}")

    def _reap(self) -> None:
        """Once the leader is gone, nothing of its session may stay; then forget the pid."""
        if self._process is None or self.is_running:
            return
        with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        self.pid_file.unlink(missing_ok=True)


def spawn(program: Program, output: int) -> subprocess.Popen[bytes]:
    """Run a program that dies with us, its output going to a file descriptor."""
    account = program.run_as
    identity = (str(account.uid), str(account.gid)) if account else ("-", "-")
    launcher = (sys.executable, "-I", "-S", launch.__file__)
    return subprocess.Popen(
        [*launcher, str(os.getpid()), str(int(program.death_signal)), *identity, *program.argv],
        env=dict(program.environ),
        cwd=program.cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def open_log(path: Path) -> int:
    """The log file, ready to append to; a long one is set aside first."""
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.old"))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def log_tail(path: Path, *, since: int = 0) -> str:
    """What was written after `since`, at most the last few kilobytes of it."""
    try:
        with path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(since, end - TAIL_BYTES))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def record_pid(pid_file: Path, pid: int, argv: Sequence[str]) -> None:
    """So that the next start can stop what we could not; read by `stop_leftover`."""
    pid_file.write_text(json.dumps({"pid": pid, "argv": argv, "pid_file": str(pid_file)}))


def stop_leftover(pid_file: Path, steps: StopSteps) -> None:
    """Stop what a killed run left behind. A pid that has gone to another program is left alone, and so is
    the process of the state folder that this one is a copy of.
    """
    try:
        record = json.loads(pid_file.read_text())
        pid, argv, written_to = int(record["pid"]), list(record["argv"]), record["pid_file"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or half written by a crash
        return
    if written_to == str(pid_file) and runs(pid, argv):
        end_process(pid, steps)
    pid_file.unlink(missing_ok=True)


def end_process(pid: int, steps: StopSteps) -> None:
    """End a process that is not our child."""
    for number, seconds in (*steps, (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while command_line(pid):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        else:
            return


def runs(pid: int, argv: Sequence[str]) -> bool:
    """Whether this very command runs under this pid."""
    return command_line(pid) == " ".join(argv).strip()


def command_line(pid: int) -> str:
    """The command of a running process, words separated by blanks; empty if it is gone or a zombie."""
    if sys.platform == "linux":
        try:
            raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return os.fsdecode(raw).replace("\0", " ").strip()
    found = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    return os.fsdecode(found.stdout).strip()
