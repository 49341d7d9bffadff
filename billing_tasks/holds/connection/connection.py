"""A connection to Redis, and which run of the server is at its other end.

A connection ends with the server it leads to, so what that server calls its run (`run_id`) and its history as a
primary (`replid`) is asked for when the connection is opened, and goes with every script: fence.lua then need not ask
the server itself, which took a fifth of the time of a reservation.

A server that is demoted, takes over an older history and is promoted again keeps its run and its connections; its
`replid` is new. That takes longer than IDLE_SECONDS, or a write meets READONLY meanwhile, which ends the connection.
So a connection that was idle for longer asks again: the question goes with the scripts, which ask for themselves
that once.

Behind a proxy that keeps connections open while the server behind it changes none of that holds;
BILLING_REDIS_PROXY=true has each script ask.

redis-py opens, authenticates, writes and reads. Its pool, its retries and its
metrics are left out on this path: they cost as much as the round trip.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis
from hiredis import pack_command

from billing_tasks.holds.commands import Command

#: After so long without a reply a connection asks again which run it leads to. No failover there and back is quicker.
IDLE_SECONDS = 0.5
#: replid and run_id of no run: fence.lua asks the server.
UNKNOWN = (b"-", b"-")
ASK = b"INFO server replication\r\n"
_RUN_ID = re.compile(rb"^run_id:([0-9a-f]+)", re.MULTILINE)
_REPLID = re.compile(rb"^master_replid:([0-9a-f]+)", re.MULTILINE)


def run_in(info: Any) -> tuple[bytes, bytes]:
    """replid and run_id in a reply of INFO."""
    info = info if isinstance(info, bytes) else b""
    replid, run_id = _REPLID.search(info), _RUN_ID.search(info)
    return (replid[1], run_id[1]) if replid and run_id else UNKNOWN


def packed(commands: Sequence[Command[Any]], run: tuple[bytes, bytes]) -> bytes:
    """Commands as bytes for the connection. Raises TypeError for what is no word, number or bytes."""
    return b"".join(
        [
            pack_command(
                (*command.words, *run) if command.script is not None and command.script.fenced else command.words
            )
            for command in commands
        ]
    )


class _Run:
    """Which run of the server a connection leads to, and when it has to ask."""

    __slots__ = ("_answered", "_behind_proxy", "words")

    def __init__(self, *, behind_proxy: bool) -> None:
        self._behind_proxy = behind_proxy
        self.words = UNKNOWN
        self._answered = 0.0

    def must_ask(self, *, new: bool) -> bool:
        """True if the question has to go with the next commands; until its answer is there, nothing is known."""
        if self._behind_proxy or not (new or time.monotonic() - self._answered > IDLE_SECONDS):
            return False
        self.words = UNKNOWN
        return True

    def note_answer(self) -> None:
        """The server has answered all that was sent."""
        self._answered = time.monotonic()


class Connection:
    """One connection, used by one thread at a time; opened when it is first needed, and again after it broke."""

    __slots__ = ("_connection", "_run", "began", "overdue")

    def __init__(self, connection: Any, *, behind_proxy: bool) -> None:
        self._connection = connection  # redis.Connection; its types don't cover what it takes
        self._run = _Run(behind_proxy=behind_proxy)
        self.began: float | None = None  # when the round trip under way did, by the monotonic clock
        self.overdue = False  # it was shut because it took too long

    def exchange(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """One round trip; a reply each, errors of a command among them. Raises redis.RedisError of the connection."""
        connection = self._connection
        try:
            new = not connection.is_connected
            if new:
                connection.connect()
            asks = self._run.must_ask(new=new)
            words = packed(commands, self._run.words)
            connection.send_packed_command([ASK + words if asks else words], check_health=False)
            if asks:
                self._run.words = run_in(connection.read_response())
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except redis.ResponseError as exc:
                    replies.append(exc)
            self._run.note_answer()
            return replies
        except BaseException:
            # Whatever it was, a reply may still be under way, and the next caller must not take it for its own.
            connection.disconnect()
            raise

    def close(self) -> None:
        """It opens again if it is used again."""
        self._connection.disconnect()

    def shut(self) -> None:
        """End the round trip under way, from another thread: whoever reads meets the end of the connection."""
        self.overdue = True
        sock: Any = getattr(self._connection, "_sock", None)
        with suppress(OSError, AttributeError):
            sock.shutdown(socket.SHUT_RDWR)


class AsyncConnection:
    """The same for asyncio; the caller sets the time-out."""

    __slots__ = ("_connection", "_run")

    def __init__(self, connection: Any, *, behind_proxy: bool) -> None:
        self._connection = connection
        self._run = _Run(behind_proxy=behind_proxy)

    async def exchange(self, commands: Sequence[Command[Any]], replies: list[Any]) -> None:
        """One round trip; adds to `replies` as they come."""
        connection = self._connection
        try:
            new = not connection.is_connected
            if new:
                await connection.connect()
            asks = self._run.must_ask(new=new)
            words = packed(commands, self._run.words)
            await connection.send_packed_command([ASK + words if asks else words], check_health=False)
            if asks:
                self._run.words = run_in(await connection.read_response())
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except redis.ResponseError as exc:
                    replies.append(exc)
            self._run.note_answer()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def close(self) -> None:
        """It opens again if it is used again."""
        await self._connection.disconnect()
