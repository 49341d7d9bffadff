"""The limit of the inline path: a script that does one HINCRBY.

Nothing that keeps quota inside Redis can be faster than one atomic write there. The
limit is sent the way the product sends its own scripts, over the same connections,
to the same server, which syncs it to disk like any other write. Beside it: the same
script by redis-py's client, as an application would call it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from benchmarks.environment import Environment
from billing_tasks.holds.async_store import AsyncHoldStore
from billing_tasks.holds.commands import Command
from billing_tasks.holds.store import connection_options

SCRIPT = "return redis.call('HINCRBY', KEYS[1], 'held', ARGV[1])"


def _load(environment: Environment) -> Any:
    return environment.redis("SCRIPT", "LOAD", SCRIPT)


def _words(sha: Any, user: int) -> tuple[Any, ...]:
    return "EVALSHA", sha, 1, f"limit:{user}", 600


def writer(environment: Environment) -> Callable[[int], object]:
    """A call that adds to one user's counter, in one round trip, over the product's connections."""
    sha, send = _load(environment), environment.runtime.holds.send
    return lambda user: send(Command(_words(sha, user), int))


def commands(environment: Environment, users: Sequence[int]) -> list[Command[int]]:
    """One for each user, to be sent many at once."""
    sha = _load(environment)
    return [Command(_words(sha, user), int) for user in users]


def client_writer(environment: Environment) -> Callable[[int], object]:
    """The same by redis-py's client."""
    sha, execute = _load(environment), environment.runtime.holds.client.execute_command
    return lambda user: execute(*_words(sha, user))


@asynccontextmanager
async def async_writer(environment: Environment) -> AsyncIterator[Callable[[int], Awaitable[object]]]:
    """`writer` for asyncio."""
    sha, store = _load(environment), AsyncHoldStore(environment.runtime.holds)
    try:
        yield lambda user: store.send(Command(_words(sha, user), int))
    finally:
        await store.close()


@asynccontextmanager
async def async_client_writer(environment: Environment) -> AsyncIterator[Callable[[int], Awaitable[object]]]:
    """`client_writer` for asyncio."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        environment.settings.cache_url, retry=Retry(NoBackoff(), 0), **connection_options(environment.settings)
    )
    client: Any = redis.asyncio.Redis(connection_pool=pool)  # its types don't cover execute_command
    client.response_callbacks.clear()
    sha = _load(environment)
    try:
        yield lambda user: client.execute_command(*_words(sha, user))
    finally:
        await client.aclose(close_connection_pool=True)
