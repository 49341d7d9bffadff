"""Sends commands to Redis from asyncio. Same commands, same readings, same errors as store.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.holds.places import Answers, NoPlace
from billing_tasks.holds.store import HoldStore, connection_options, unavailable, wait_seconds

R = TypeVar("R")


class AsyncHoldStore:
    """The asyncio door to Redis. `plain` is the process's sync store; it checks the layout of shards."""

    def __init__(self, plain: HoldStore) -> None:
        self.settings = plain.settings
        self._plain = plain
        self._client: Any = None  # redis.asyncio.Redis; its types don't cover execute_command
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore()
        self._answers = Answers()
        self._checking: asyncio.Task[None] | None = None
        self._layout_checked = False

    async def send(self, command: Command[R]) -> R:
        """One round trip. Raises Unavailable; then the command was perhaps applied."""
        client = await self._ready()
        try:
            async with self._place():
                reply = await self._execute(client, command)
            return command.read(reply)
        except redis.RedisError as exc:
            raise unavailable(exc, self.settings) from exc

    async def send_all(self, pipeline: Pipeline[R]) -> list[R]:
        """One round trip for several commands. Raises Unavailable; then each was perhaps applied."""
        client = await self._ready()
        try:
            async with self._place():
                replies = await self._execute_all(client, pipeline.commands)
        except redis.RedisError as exc:
            raise unavailable(exc, self.settings) from exc
        return [command.read(reply) for command, reply in zip(pipeline.commands, replies, strict=True)]

    async def _ready(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            # Connections belong to the loop they were opened in; a second asyncio.run() gets its own.
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                self.settings.cache_url, retry=Retry(NoBackoff(), 0), **connection_options(self.settings)
            )
            self._client, self._loop = redis.asyncio.Redis(connection_pool=pool), loop
            self._free = asyncio.Semaphore(self.settings.redis_connections)
            self._client.response_callbacks.clear()
            self._checking = None
        if not self._layout_checked:
            await self._check_layout(loop)
        return self._client

    async def _check_layout(self, loop: asyncio.AbstractEventLoop) -> None:
        """One check for all who ask meanwhile: a thread each would queue for the few threads of the loop."""
        if self._checking is None:
            self._checking = loop.create_task(asyncio.to_thread(self._plain.check_layout))
            self._checking.add_done_callback(self._checked)
        await asyncio.shield(self._checking)

    def _checked(self, check: asyncio.Task[None]) -> None:
        self._checking = None
        # Also asked for so that it counts as seen if everybody who waited was cancelled.
        self._layout_checked = not check.cancelled() and check.exception() is None

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Places.take, for asyncio."""
        began, free = time.monotonic(), self._free
        try:
            async with asyncio.timeout(wait_seconds(self.settings)):
                await free.acquire()
        except TimeoutError:
            raise NoPlace("all connections of this process are busy; raise BILLING_REDIS_CONNECTIONS") from None
        try:
            self._answers.check(began)
            with self._answers.watch():
                yield
        finally:
            free.release()

    async def _execute(self, client: Any, command: Command[Any]) -> Any:
        try:
            return await client.execute_command(*command.words)
        except redis.exceptions.NoScriptError:
            return await self._teach(client, command)
        except redis.ConnectionError:
            # A pooled connection died with its server; the next one is new.
            try:
                return await client.execute_command(*command.words)
            except redis.exceptions.NoScriptError:
                return await self._teach(client, command)

    async def _teach(self, client: Any, command: Command[Any]) -> Any:
        if command.script is None:
            raise redis.ResponseError("NOSCRIPT for a command that is no script")
        return await client.execute_command("EVAL", command.script.body, *command.words[2:])

    async def _execute_all(self, client: Any, commands: Sequence[Command[Any]]) -> list[Any]:
        try:
            replies = await self._pipeline(client, commands)
        except redis.ConnectionError:
            replies = await self._pipeline(client, commands)
        for at, (command, reply) in enumerate(zip(commands, replies, strict=True)):
            if isinstance(reply, redis.exceptions.NoScriptError):
                replies[at] = await self._execute(client, command)
            elif isinstance(reply, Exception):
                raise reply
        return replies

    async def _pipeline(self, client: Any, commands: Sequence[Command[Any]]) -> list[Any]:
        async with client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command.words)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
            return replies

    async def close(self) -> None:
        """Give the connections back."""
        if self._client is not None:
            await self._client.aclose(close_connection_pool=True)
            self._client = None
