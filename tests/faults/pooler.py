"""A pooler that drops the options of a session, as PgBouncer does with `ignore_startup_parameters = options`."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def dropping_options(postgres_socket: str) -> Iterator[int]:
    """The port on 127.0.0.1 that leads to this Unix socket; everything but the options passes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(postgres_socket)
                threading.Thread(target=_begin, args=(client, server), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]


def _begin(client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError), client, server:
        first = _message(client)
        while first[4:8] in (struct.pack("!i", 80877103), struct.pack("!i", 80877104)):  # SSL, GSS: not here
            client.sendall(b"N")
            first = _message(client)
        words = first[8:].split(b"\0")
        pairs = [(k, v) for k, v in zip(words[::2], words[1::2], strict=False) if k and k != b"options"]
        body = first[4:8] + b"".join(k + b"\0" + v + b"\0" for k, v in pairs) + b"\0"
        server.sendall(struct.pack("!i", len(body) + 4) + body)
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()


def _message(source: socket.socket) -> bytes:
    head = source.recv(4, socket.MSG_WAITALL)
    return head + source.recv(struct.unpack("!i", head)[0] - 4, socket.MSG_WAITALL)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)
