"""Connections: whose reply is whose, what each knows of its server, and how many calls share a round trip."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from billing_tasks.errors import Unavailable
from billing_tasks.holds.async_store import AsyncHoldStore
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.holds.store import HoldStore
from billing_tasks.lab.servers import Servers
from billing_tasks.settings import Settings


def settings(servers: Servers, **more: Any) -> Settings:
    return Settings(redis_url=servers.redis_url, database_url="postgresql:///never", **more)


@pytest.fixture
def store(servers: Servers) -> Iterator[HoldStore]:
    made = HoldStore(settings(servers))
    made.client.flushall()
    yield made
    made.close()


def epoch(store: HoldStore) -> str:
    return store.send(store.commands.balance(user_id=1)).epoch


def infos(store: HoldStore) -> int:
    """How often scripts have asked the server for its run_id."""
    lines = store.client.execute_command("INFO", "commandstats").decode().splitlines()
    counts = [line.split("calls=")[1].split(",")[0] for line in lines if line.startswith("cmdstat_info:")]
    return int(counts[0]) if counts else 0


def reads_processed(store: HoldStore) -> int:
    """How often the server has read from a connection."""
    lines = store.client.execute_command("INFO", "stats").decode().splitlines()
    return int(next(line for line in lines if line.startswith("total_reads_processed:")).split(":")[1])


def echo(word: str) -> Command[str]:
    return Command(("ECHO", word), lambda reply: reply.decode())


def test_a_word_that_is_not_the_servers_never_moves_the_epoch(store: HoldStore) -> None:
    before = epoch(store)
    for word in (b"f" * 40, b"-", b"", b"nil"):
        store._connections._idle[-1]._run.words = (word, word)
        assert epoch(store) == before


def test_a_script_asks_the_server_only_if_its_connection_does_not_know(store: HoldStore) -> None:
    epoch(store)
    before = infos(store)
    for _ in range(20):
        epoch(store)
    assert infos(store) - before == 1  # this question


def test_behind_a_proxy_each_script_asks_the_server(servers: Servers, store: HoldStore) -> None:
    behind = HoldStore(settings(servers, redis_proxy=True))
    assert epoch(behind) == epoch(store)
    before = infos(store)
    for _ in range(20):
        epoch(behind)
    assert infos(store) - before == 21
    behind.close()


def test_a_reply_that_was_not_waited_for_goes_to_no_other_caller(store: HoldStore) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for word in "abc":
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                store.send(Command(("BLPOP", "nothing", 0.2), lambda reply: reply))
            assert store.send(echo(word)) == word
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_error_of_one_command_leaves_the_others_their_replies(store: HoldStore) -> None:
    wrong: Command[str] = Command(("NO", "SUCH", "COMMAND"), str)
    with pytest.raises(Unavailable):
        store.send_all(Pipeline((echo("a"), wrong, echo("b"))))
    assert store.send_all(Pipeline((echo("c"), echo("d")))) == ["c", "d"]


def test_calls_of_one_loop_share_round_trips_and_each_gets_its_own_reply(store: HoldStore) -> None:
    async def ask() -> list[str]:
        many = AsyncHoldStore(store)
        await many.send(echo("first"))
        before = reads_processed(store)
        said = await asyncio.gather(*(many.send(echo(str(number))) for number in range(500)))
        assert reads_processed(store) - before < 50
        await many.close()
        return said

    assert asyncio.run(ask()) == [str(number) for number in range(500)]


def test_a_call_that_is_cancelled_takes_no_reply_from_the_others(store: HoldStore) -> None:
    async def ask() -> list[Any]:
        many = AsyncHoldStore(store)
        calls = [asyncio.ensure_future(many.send(echo(str(number)))) for number in range(40)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        said = await asyncio.gather(*calls, return_exceptions=True)
        said.append(await many.send(echo("last")))
        await many.close()
        return said

    *said, last = asyncio.run(ask())
    assert last == "last"
    assert said[1::2] == [str(number) for number in range(1, 40, 2)]
    assert all(isinstance(one, asyncio.CancelledError) for one in said[::2])


def test_a_second_loop_gets_connections_of_its_own(store: HoldStore) -> None:
    many = AsyncHoldStore(store)

    async def ask(word: str) -> str:
        said = await many.send(echo(word))
        await many.close()
        return said

    assert [asyncio.run(ask(word)) for word in "ab"] == ["a", "b"]
