"""The processes that do the work: worker, beat and Flower, each described as data.

`stack.py` runs any list of parts; `celery_parts` is the list that
`billing-tasks up` runs. Flower asks for a password, which is kept in the state
folder and handed over in the environment: a program that can start tasks can move
money, and every user can read a process list.
"""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from billing_tasks.lab.problems import PortTaken
from billing_tasks.lab.processes import Program, StopSteps, Supervised
from billing_tasks.lab.servers.folders import StateFolder

LOOPBACK = "127.0.0.1"
FLOWER_PORT = 5555
FLOWER_USER = "billing"
#: Which requests a task was about is in its arguments and its result; Flower hides both by default.
#: The first five fit a laptop's width; the name leads to the task, as its id does.
FLOWER_COLUMNS = "name,state,received,kwargs,exception,result,runtime,worker,retries,uuid"
FLOWER_PASSWORD_FILE = "flower-password"  # noqa: S105  a file's name

# Warm (finish what runs), then cold (give back what runs); acknowledged late, so nothing is lost by either.
WORKER_STOP_STEPS: StopSteps = ((signal.SIGTERM, 30.0), (signal.SIGQUIT, 5.0))
QUICK_STOP_STEPS: StopSteps = ((signal.SIGTERM, 5.0),)

Probe = Callable[["PartProcess"], bool]
"""Asked again and again while a part starts; True ends the wait. It must return soon."""


@dataclass(frozen=True)
class Part:
    """One process of the stack."""

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    ready: Probe | None = None
    ready_seconds: float = 60.0
    stop_steps: StopSteps = QUICK_STOP_STEPS
    notes: Mapping[str, str] = field(default_factory=dict)
    """For people and `--json`: addresses, where a password is."""


class PartProcess(Supervised):
    """A part, running in the environment that names the embedded servers."""

    def __init__(self, part: Part, state: StateFolder, environ: Mapping[str, str]) -> None:
        super().__init__(part.name, log_file=state.log_file(part.name), pid_file=state.pid_file(part.name))
        self.part = part
        self.environ = {**os.environ, "PYTHONUNBUFFERED": "1", **environ, **part.environ}

    def prepare(self) -> Program:
        return Program(
            argv=self.part.argv,
            environ=self.environ,
            stop_steps=self.part.stop_steps,
            ready_seconds=self.part.ready_seconds,
        )

    def answers(self) -> bool:
        return self.is_running and (self.part.ready is None or self.part.ready(self))


def celery_parts(
    state_dir: Path,
    *,
    concurrency: int = 2,
    flower_port: int | None = None,
    with_flower: bool = True,
    worker_ready: Probe | None = None,
    app: str = "billing_tasks",
) -> Sequence[Part]:
    """Worker, beat and Flower. `worker_ready` may ping the worker; without it, its log has to say "ready"."""
    celery = (sys.executable, "-m", "celery", "-A", app)
    worker = Part(
        name="worker",
        argv=(
            *(*celery, "worker", "-c", str(concurrency), "-n", "worker1@%h", "--loglevel", "INFO"),
            *("--without-gossip", "--without-mingle"),  # there is no other worker to talk to
        ),
        ready=worker_ready or log_has(" ready."),
        stop_steps=WORKER_STOP_STEPS,
    )
    schedule = str(state_dir / "beat-schedule")
    beat = Part(
        name="beat",
        argv=(*celery, "beat", "--schedule", schedule, "--pidfile", "", "--loglevel", "INFO"),
        ready=log_has("beat: Starting"),
    )
    return [worker, beat, flower_part(state_dir, celery, port=flower_port)] if with_flower else [worker, beat]


def flower_part(state_dir: Path, celery: tuple[str, ...], *, port: int | None) -> Part:
    """Flower on loopback, with a password. A port that was asked for is never replaced by a free one."""
    port = choose_port(FLOWER_PORT, instead=True) if port is None else choose_port(port, instead=False)
    password_file = state_dir / FLOWER_PASSWORD_FILE
    return Part(
        name="flower",
        argv=(*celery, "flower", f"--address={LOOPBACK}", f"--port={port}", f"--tasks-columns={FLOWER_COLUMNS}"),
        environ={"FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{kept_password(password_file)}"},
        ready=http_answers(port, "/healthcheck"),
        notes={
            "url": f"http://{LOOPBACK}:{port}",
            "user": FLOWER_USER,
            "password_file": str(password_file),
        },
    )


def log_has(text: str) -> Probe:
    """Ready when the part's log has this text."""
    return lambda process: text in process.written()


def http_answers(port: int, path: str) -> Probe:
    """Ready when this page comes with 200."""

    def probe(_process: PartProcess) -> bool:
        with closing(http.client.HTTPConnection(LOOPBACK, port, timeout=2)) as connection:
            try:
                connection.request("GET", path)
                return connection.getresponse().status == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                return False

    return probe


def choose_port(wanted: int, *, instead: bool) -> int:
    """The port if it is free; else another one (`instead`), or PortTaken."""
    try:
        return bound_port(wanted)
    except OSError as exc:
        if not instead:
            raise PortTaken(
                f"Port {wanted} on {LOOPBACK} can't be used for Flower: {os.strerror(exc.errno or 0)}."
            ) from exc
        return bound_port(0)


def bound_port(port: int) -> int:
    """The port, after binding it for a moment; OSError if it can't be had."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections don't keep it taken
        listener.bind((LOOPBACK, port))
        number: int = listener.getsockname()[1]
        return number


def kept_password(path: Path) -> str:
    """The password from the last start, or a new one; only its owner can read the file."""
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if kept:
        return kept
    password = secrets.token_urlsafe(18)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(f"{password}\n")
    return password
