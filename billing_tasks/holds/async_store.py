"""Sends commands to Redis from asyncio. Same commands, same readings, same errors as store.py.

What the tasks of a loop ask for while a round trip is under way goes with the next
one, together: with many requests at once each costs a fraction of a round trip.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from billing_tasks.errors import InvalidRequest
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.holds.connection.connection import AsyncConnection
from billing_tasks.holds.connection.pool import PoolTimeout, demoted
from billing_tasks.holds.mending import mending, recounts
from billing_tasks.holds.store import HoldStore, connection_options, unavailable, with_body

R = TypeVar("R")

#: Round trips under way at once: while the server works on one, the next is written.
MOST_TRIPS = 2
#: Commands in one: at some 30 us each, others wait for about 4 ms.
MOST_TOGETHER = 128

_Asked = tuple[Command[Any], "asyncio.Future[Any]"]


class AsyncHoldStore:
    """The asyncio door to Redis. `plain` is the process's sync store; it checks the layout of shards."""

    def __init__(self, plain: HoldStore) -> None:
        self.settings = plain.settings
        self._plain = plain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: Any = None  # makes the connections; redis-py's types don't cover it
        self._idle: list[AsyncConnection] = []
        self._waiting: list[_Asked] = []
        self._trips: set[asyncio.Task[None]] = set()
        self._checking: asyncio.Task[None] | None = None
        self._layout_checked = False

    async def send(self, command: Command[R]) -> R:
        """One round trip. Raises Unavailable; then the command was perhaps applied."""
        await self._ready()
        try:
            return command.read(await self._answer(command, await self._ask(command)))
        except redis.RedisError as exc:
            raise unavailable(exc, self.settings) from exc

    async def send_all(self, pipeline: Pipeline[R]) -> list[R]:
        """Several commands together. Raises Unavailable; then each was perhaps applied."""
        await self._ready()
        try:
            asked = [self._ask(command) for command in pipeline.commands]
            replies = await asyncio.gather(*asked, return_exceptions=True)
            return [
                command.read(await self._answer(command, reply))
                for command, reply in zip(pipeline.commands, replies, strict=True)
            ]
        except redis.RedisError as exc:
            raise unavailable(exc, self.settings) from exc

    async def _answer(self, command: Command[Any], reply: Any) -> Any:
        """The reply, or what went wrong raised; as the sync store's."""
        if isinstance(reply, redis.ResponseError):
            mend = mending(command, reply, self._plain.commands)
            if mend is None:
                reply = await self._ask(with_body(command, reply))
            else:
                for recount in recounts(mend.read(await self._ask_known(mend)), self._plain.commands, self.settings):
                    await self._ask_known(recount)
                reply = await self._ask_known(command)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def _ask_known(self, command: Command[Any]) -> Any:
        reply = await self._ask(command)
        if isinstance(reply, redis.exceptions.NoScriptError):
            reply = await self._ask(with_body(command, reply))
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def _ask(self, command: Command[Any]) -> asyncio.Future[Any]:
        """To be sent with the next round trip; an error that Redis answered is a result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, future))
        if len(self._waiting) == 1 and len(self._trips) < MOST_TRIPS:
            loop.call_soon(self._depart)
        return future

    def _depart(self) -> None:
        """Send what waits, unless as many round trips as may be are under way; the next that ends looks again."""
        if self._waiting and len(self._trips) < MOST_TRIPS:
            together, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
            trip = asyncio.get_running_loop().create_task(self._travel(together))
            self._trips.add(trip)
            trip.add_done_callback(partial(self._arrive, together))

    def _arrive(self, asked: list[_Asked], trip: asyncio.Task[None]) -> None:
        self._trips.discard(trip)
        # One that was cancelled has told nobody; before its first step it could not.
        _resolve(asked, [PoolTimeout("the program ends")] * len(asked))
        self._depart()

    async def _travel(self, asked: list[_Asked]) -> None:
        connection = self._idle.pop() if self._idle else self._open_connection()
        commands = [command for command, _ in asked]
        replies: list[Any] = []
        try:
            async with asyncio.timeout(self.settings.redis_timeout_seconds):
                await self._exchange(connection, commands, replies)
        except (redis.RedisError, TimeoutError) as exc:
            self._fail(asked[len(replies) :], exc)
        else:
            self._idle.append(connection)
        _resolve(asked, replies)

    async def _exchange(self, connection: AsyncConnection, commands: list[Command[Any]], replies: list[Any]) -> None:
        """As ConnectionPool._exchange."""
        try:
            await connection.exchange(commands, replies)
        except redis.ConnectionError:
            replies.clear()
            await connection.exchange(commands, replies)
            return
        if demoted(replies):
            replies.clear()
            for one in (connection, *self._idle):
                await one.close()
            await connection.exchange(commands, replies)
            if demoted(replies):
                await connection.close()

    def _fail(self, asked: list[_Asked], exc: Exception) -> None:
        timed_out = isinstance(exc, TimeoutError | redis.TimeoutError)
        error = redis.TimeoutError("Timeout reading from socket") if timed_out else exc
        _resolve(asked, [error] * len(asked))
        if timed_out:
            # Callers that waited behind them would pay the same time-out, one trip after the other.
            waiting, self._waiting = self._waiting, []
            _resolve(waiting, [PoolTimeout("it timed out for the calls before this one")] * len(waiting))

    def _open_connection(self) -> AsyncConnection:
        return AsyncConnection(self._pool.make_connection(), behind_proxy=self.settings.redis_proxy)

    async def _ready(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and self._loop.is_running():
                raise InvalidRequest(
                    "This AsyncBookkeeper is in use by another event loop that is running. Make one for each loop."
                )
            # Connections belong to the loop they were opened in; a second asyncio.run() gets its own.
            options = {**connection_options(self.settings), "socket_timeout": None}  # a trip has a time-out of its own
            del options["timeout"]
            self._pool = redis.asyncio.ConnectionPool.from_url(
                self.settings.cache_url, retry=Retry(NoBackoff(), 0), **options
            )
            self._loop, self._idle, self._waiting, self._trips = loop, [], [], set()
            self._checking = None
        if not self._layout_checked:
            await self._check_layout(loop)

    async def _check_layout(self, loop: asyncio.AbstractEventLoop) -> None:
        """One check for all callers meanwhile: a thread each would queue for the few threads of the loop."""
        if self._checking is None:
            self._checking = loop.create_task(asyncio.to_thread(self._plain.check_layout))
            self._checking.add_done_callback(self._checked)
        await asyncio.shield(self._checking)

    def _checked(self, check: asyncio.Task[None]) -> None:
        self._checking = None
        # Also asked for so that it counts as seen if all callers that waited were cancelled.
        self._layout_checked = not check.cancelled() and check.exception() is None

    async def close(self) -> None:
        """Close the connections, after the round trips under way."""
        if self._loop is asyncio.get_running_loop():
            await asyncio.gather(*self._trips, return_exceptions=True)
        while self._idle:
            await self._idle.pop().close()


def _resolve(asked: list[_Asked], replies: list[Any]) -> None:
    """Tell the callers that still wait. Errors of the connection are raised where they wait."""
    for (_, future), reply in zip(asked, replies, strict=False):
        if future.done():
            continue
        if isinstance(reply, BaseException) and not isinstance(reply, redis.ResponseError):
            future.set_exception(reply)
        else:
            future.set_result(reply)
