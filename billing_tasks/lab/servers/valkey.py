"""An embedded Valkey (or Redis 7): no TCP, one private socket, every write on disk before it is answered.

The settings that make Redis safe for quota are the same as in
`config/redis.conf`, which production uses; a test compares the two. A crash
loses nothing that was answered; a line cut off at the end of the append-only
file was never answered, and is dropped when it is loaded.
"""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from typing import Literal

from billing_tasks.lab.problems import LabError
from billing_tasks.lab.processes import Program, Supervised
from billing_tasks.lab.servers.binaries import find_valkey
from billing_tasks.lab.servers.folders import SocketFolder, StateFolder
from billing_tasks.lab.servers.postgres import quiet_environment

NAME = "valkey"
SOCKET = "valkey.sock"

Fsync = Literal["always", "everysec", "no"]

# Why each: see config/redis.conf.
DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "yes",
    "save": "",
    "maxmemory-policy": "noeviction",
}

#: The wheel's server uses glibc's malloc, which a script's many short words keep busy. A longer list of pieces to use
#: again (7 by default) makes up for some of it; Redis as packaged brings jemalloc.
MANY_SMALL_PIECES = "glibc.malloc.tcache_count=2000"


class EmbeddedValkey(Supervised):
    """Valkey with its append-only file in an open state folder. `keeps=False`: it starts empty, as a broker may.

    `port`: on the loopback, beside the socket, for replicas; 0: none.
    """

    def __init__(
        self, state: StateFolder, *, name: str = NAME, appendfsync: Fsync = "always", keeps: bool = True, port: int = 0
    ) -> None:
        super().__init__(name, log_file=state.log_file(name), pid_file=state.pid_file(name))
        self._data = state.folder(name)
        self._appendfsync = appendfsync
        self._keeps = keeps
        self.port = port
        self._sockets = SocketFolder(state, name, owner=None, sockets=(SOCKET,))

    @property
    def url(self) -> str:
        """The server, without a database number."""
        return f"unix://{self._socket}"

    def prepare(self) -> Program:
        program = str(find_valkey())
        folder = self._sockets.open()
        settings = {
            **DURABLE,
            "appendfsync": self._appendfsync,
            **({} if self._keeps else {"appendonly": "no"}),
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": str(folder / SOCKET),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "daemonize": "no",
            "set-proc-title": "no",  # the next start recognises a left-over by its command
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return Program(
            argv=(program, *options),
            environ={**quiet_environment(), "GLIBC_TUNABLES": MANY_SMALL_PIECES},
            cwd=self._data,
            stop_steps=((signal.SIGTERM, 10.0),),
            ready_seconds=60.0,  # a long append-only file takes its time to load
        )

    def answers(self) -> bool:
        """PING by hand: +PONG, or an error while the append-only file is loaded."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(self._socket)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def when_stopped(self) -> None:
        self._sockets.close()

    @property
    def _socket(self) -> str:
        if self._sockets.path is None:
            raise LabError("Valkey was not started yet, so it has no address.")
        return str(self._sockets.path / SOCKET)
