"""A TCP proxy in front of a server, which can be slow, fall silent, trickle, or refuse."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

#: Of a slow server, before each answer. In seconds.
SLOW_SECONDS = 30.0
#: Of one that trickles, between two bytes of an answer.
TRICKLE_SECONDS = 0.3


class Fault(StrEnum):
    """What is wrong with the server, as its client sees it."""

    REFUSED = "refuses connections"
    UNREACHABLE = "is not reached"  # no packet is answered
    SILENT = "takes connections, says nothing"
    HALF_OPEN = "falls silent on open connections"
    SLOW = "answers after 30 s"
    TRICKLE = "answers byte by byte"


class Proxy:
    """Listens on 127.0.0.1 and leads to a Unix socket, until a fault is set."""

    def __init__(self, server_socket: str) -> None:
        self._server_socket = server_socket
        self._fault: Fault | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._connected, sock=self._listener))
        self._loop.run_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with suppress(OSError):
            if self._fault is Fault.REFUSED:
                writer.transport.abort()
                return
            if self._fault is Fault.SILENT:
                await asyncio.Event().wait()
            upstream, to_server = await asyncio.open_unix_connection(self._server_socket)
            self._connections.add(to_server)
            await asyncio.gather(self._pump(reader, to_server, asks=True), self._pump(upstream, writer, asks=False))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, asks: bool) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self._fault in (Fault.HALF_OPEN, Fault.SILENT):
                    await asyncio.Event().wait()
                if self._fault is Fault.SLOW and not asks:
                    await asyncio.sleep(SLOW_SECONDS)
                if self._fault is Fault.TRICKLE and not asks:
                    for at in range(len(data)):
                        if sink.is_closing():
                            return
                        sink.write(data[at : at + 1])
                        await asyncio.sleep(TRICKLE_SECONDS)
                else:
                    sink.write(data)
        with suppress(OSError, RuntimeError):
            sink.close()  # the other side has gone

    @contextmanager
    def broken(self, fault: Fault) -> Iterator[None]:
        """Set the fault; connections that are open stay so, unless the server refuses."""
        self._fault = fault
        if fault is Fault.REFUSED:
            self._loop.call_soon_threadsafe(self._abort)
        try:
            yield
        finally:
            self._fault = None
            self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for writer in self._connections:
            writer.transport.abort()
        self._connections.clear()

    def close(self) -> None:
        """Stop for good."""
        self._loop.call_soon_threadsafe(self._abort)
        self._thread.join(5)
        self._listener.close()
