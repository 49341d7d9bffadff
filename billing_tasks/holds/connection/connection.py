"""A connection to Redis, and which run of the server is at its other end.

A connection ends with the server it leads to, so what that server calls its run
(`run_id`) is asked for once, when the connection is opened, and goes with every
script: fence.lua then need not ask the server itself, which took a fifth of the time
of a reservation. Behind a proxy that keeps connections open while the server behind
it changes that would be wrong; BILLING_REDIS_PROXY=true has each script ask.

redis-py opens, authenticates, writes and reads. Its pool, its retries and its
metrics are left out on this path: they cost as much as the round trip.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import redis
from hiredis import pack_command

from billing_tasks.holds.commands import Command

#: Of no run: fence.lua asks the server.
UNKNOWN = b"-"
ASK_FOR_RUN_ID = b"INFO server\r\n"
_RUN_ID = re.compile(rb"^run_id:([0-9a-f]+)", re.MULTILINE)


def run_id_in(info: Any) -> bytes:
    """The run_id in a reply of INFO."""
    found = _RUN_ID.search(info if isinstance(info, bytes) else b"")
    return found[1] if found else UNKNOWN


def packed(commands: Sequence[Command[Any]], run_id: bytes) -> bytes:
    """Commands as bytes for the connection. Raises TypeError for what is no word, number or bytes."""
    return b"".join(
        [
            pack_command(
                (*command.words, run_id) if command.script is not None and command.script.fenced else command.words
            )
            for command in commands
        ]
    )


class Connection:
    """One connection, used by one thread at a time; opened when it is first needed, and again after it broke."""

    __slots__ = ("_behind_proxy", "_connection", "_run_id")

    def __init__(self, connection: Any, *, behind_proxy: bool) -> None:
        self._connection = connection  # redis.Connection; its types don't cover what it takes
        self._behind_proxy = behind_proxy
        self._run_id = UNKNOWN

    def exchange(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """One round trip; a reply each, errors of a command among them. Raises redis.RedisError of the connection."""
        connection = self._connection
        try:
            if not connection.is_connected:
                connection.connect()
                self._run_id = UNKNOWN
                if not self._behind_proxy:
                    connection.send_packed_command([ASK_FOR_RUN_ID], check_health=False)
                    self._run_id = run_id_in(connection.read_response())
            connection.send_packed_command([packed(commands, self._run_id)], check_health=False)
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except redis.ResponseError as exc:
                    replies.append(exc)
            return replies
        except BaseException:
            # Whatever it was, a reply may still be under way, and the next caller must not take it for its own.
            connection.disconnect()
            raise

    def close(self) -> None:
        """It opens again if it is used again."""
        self._connection.disconnect()


class AsyncConnection:
    """The same for asyncio; the caller sets the time-out."""

    __slots__ = ("_behind_proxy", "_connection", "_run_id")

    def __init__(self, connection: Any, *, behind_proxy: bool) -> None:
        self._connection = connection
        self._behind_proxy = behind_proxy
        self._run_id = UNKNOWN

    async def exchange(self, commands: Sequence[Command[Any]], replies: list[Any]) -> None:
        """One round trip; adds to `replies` as they come."""
        connection = self._connection
        try:
            if not connection.is_connected:
                await connection.connect()
                self._run_id = UNKNOWN
                if not self._behind_proxy:
                    await connection.send_packed_command([ASK_FOR_RUN_ID], check_health=False)
                    self._run_id = run_id_in(await connection.read_response())
            await connection.send_packed_command([packed(commands, self._run_id)], check_health=False)
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except redis.ResponseError as exc:
                    replies.append(exc)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def close(self) -> None:
        """It opens again if it is used again."""
        await self._connection.disconnect()
