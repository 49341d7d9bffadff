"""How the tests break servers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from billing_tasks.lab.processes import Supervised
from billing_tasks.lab.servers.valkey import EmbeddedValkey


@contextmanager
def frozen_whole(server: Supervised) -> Iterator[None]:
    """The same of a server with a process for each session, as PostgreSQL is: none of them answers."""
    assert server.pid is not None
    pids = [server.pid, *_children(server.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _children(of: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == of:
                found.append(int(stat.parent.name))
    return found


@contextmanager
def frozen(server: Supervised) -> Iterator[None]:
    """The server keeps its sockets open and answers nothing."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def blackhole() -> Iterator[str]:
    """A TCP address whose packets get no answer: its queue of connections is full."""
    with ExitStack() as cleanup:
        listener = cleanup.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # more than the kernel keeps for a backlog of none
            filler = cleanup.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


@dataclass
class OwnValkey:
    """A Valkey and the folder with its append-only file."""

    server: EmbeddedValkey
    data: Path
    _copies: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    @property
    def url(self) -> str:
        return self.server.url

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(f"{self.url}?db=1")

    @property
    def port(self) -> int:
        """On 127.0.0.1, once it listens."""
        return int(self.client().config_get("port")["port"])  # type: ignore[index]

    def listen(self) -> None:
        """Also over TCP, as replication needs it."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.client().config_set("port", port)
        self.client().config_set("repl-diskless-sync-delay", 0)

    def crash(self) -> None:
        """kill -9, and started again on what is in its file."""
        self.server.kill()
        self.server.start()

    def copy(self) -> Path:
        """A copy of the file as it is now."""
        place = self.data.parent / f"copy-{next(self._copies)}"
        shutil.copytree(self.data, place)
        return place

    def restore(self, copy: Path | None) -> None:
        """kill -9, and started on an older copy, or on none."""
        self.server.kill()
        shutil.rmtree(self.data)
        if copy is None:
            self.data.mkdir(mode=0o700)
        else:
            shutil.copytree(copy, self.data)
        self.server.start()
