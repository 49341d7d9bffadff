"""A way to Redis on which now and then a command arrives and its answer is lost."""

from __future__ import annotations

import os
import random
import select
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def forgetful(url: str, *, seed: int, losses_in_a_hundred: int) -> Iterator[str]:
    """The address of a proxy for `url` (unix://), which hangs up instead of handing some answers on."""
    target = url.removeprefix("unix://").partition("?")[0]
    folder = tempfile.mkdtemp(prefix="peers-")
    path = Path(folder) / "redis.sock"
    chance = random.Random(seed)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(128)

        def serve(client: socket.socket) -> None:
            with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
                server.connect(target)
                while True:
                    for ready in select.select([client, server], [], [])[0]:
                        data = ready.recv(65536)
                        if not data or (ready is server and chance.random() * 100 < losses_in_a_hundred):
                            return
                        (server if ready is client else client).sendall(data)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"unix://{path}"
        listener.shutdown(socket.SHUT_RDWR)
    path.unlink()
    os.rmdir(folder)
