"""The limit of the inline path: a script that does one HINCRBY.

Nothing that keeps quota inside Redis can be faster than one atomic write there. It is
sent by the same client over the same pool of connections, with the same settings,
to the same server, which syncs it to disk like any other write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from benchmarks.ground import Ground
from billing_tasks.holds.store import connection_options

SCRIPT = "return redis.call('HINCRBY', KEYS[1], 'held', ARGV[1])"


def writer(ground: Ground) -> Callable[[int], object]:
    """A call that adds to one user's counter, in one round trip."""
    client = ground.runtime.holds.client
    sha = client.execute_command("SCRIPT", "LOAD", SCRIPT)
    return lambda user: client.execute_command("EVALSHA", sha, 1, f"limit:{user}", 600)


@asynccontextmanager
async def async_writer(ground: Ground) -> AsyncIterator[Callable[[int], Awaitable[object]]]:
    """The same for asyncio, over a pool made as the product makes its own."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        ground.settings.cache_url, retry=Retry(NoBackoff(), 0), **connection_options(ground.settings)
    )
    client: Any = redis.asyncio.Redis(connection_pool=pool)  # its types don't cover execute_command
    client.response_callbacks.clear()
    sha = await client.execute_command("SCRIPT", "LOAD", SCRIPT)
    try:
        yield lambda user: client.execute_command("EVALSHA", sha, 1, f"limit:{user}", 600)
    finally:
        await client.aclose(close_connection_pool=True)
