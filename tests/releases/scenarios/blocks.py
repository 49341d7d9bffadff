"""`charge` as a block, sync and asyncio, and every method of AsyncBookkeeper."""

from __future__ import annotations

import asyncio
from typing import Any

from billing_tasks import AsyncBookkeeper, ConsumeLog
from billing_tasks.errors import BillingError
from tests.releases.play import CHANNEL, TOKEN, USER, Play
from tests.releases.scenarios.requests import open_accounts

PAYER = {"user_id": USER, "token_id": TOKEN, "channel_id": CHANNEL}
#: What happens inside a block: its name, what is handed over (each a call of `usage`), what ends it.
ENDINGS: tuple[tuple[str, tuple[dict[str, Any], ...], Exception | None], ...] = (
    ("handed over", ({"prompt_tokens": 374, "completion_tokens": 44},), None),
    ("the last word counts", ({"prompt_tokens": 374, "completion_tokens": 1}, {"completion_tokens": 90}), None),
    ("none handed over", (), None),
    ("failed before usage", (), RuntimeError("upstream answered 502")),
    ("failed after usage", ({"prompt_tokens": 9, "completion_tokens": 3},), ValueError("a client's own bug")),
    ("with a quota of its own", ({"quota": 5, "usage": {"cost": "0.01"}, "elapsed_ms": 30},), None),
    ("usage that can't be kept", ({"prompt_tokens": 12, "usage": {"nul": "\x00"}},), None),
    ("absurd usage", ({"prompt_tokens": -1},), None),
    ("absurd after good", ({"prompt_tokens": 8}, {"prompt_tokens": 2**41}), None),
    ("an unknown detail", ({"prompt_tokens": 6, "colour": "blue"},), None),
    ("a reason with NUL", (), RuntimeError("half\x00way")),
)


def blocks(play: Play) -> None:
    """The sync block."""
    open_accounts(play)
    for name, handed_over, ending in ENDINGS:
        asked = _asked(play, name)
        with play.block("charge", asked), play.bookkeeper.charge(**asked) as charge:
            play.say(inside=name, request_id=charge.request_id, reservation=charge.reservation)
            for usage in handed_over:
                charge.usage(**usage)
            if ending is not None:
                raise ending
        play.say(after=name, receipt=charge.receipt)
        play.ask("balance", user_id=USER)
    _refused(play)
    asked = _asked(play, "consumed inside")
    with play.bookkeeper.charge(**asked) as charge:
        play.consume(3, "consumed inside")
    play.say(after="consumed inside", receipt=charge.receipt)
    play.settle()
    play.end()


def _asked(play: Play, name: str) -> dict[str, Any]:
    return {**PAYER, "model": "gpt-4o", "prompt_tokens": 374, "max_tokens": 512, "request_id": play.id(name)}


def _refused(play: Play) -> None:
    for name, change in (
        ("unknown user", {"user_id": 999}),
        ("above the quota", {"prompt_tokens": 10_000_000}),
        ("negative", {"prompt_tokens": -1}),
        ("bad ttl", {"ttl_seconds": 0}),
    ):
        asked = {**_asked(play, name), **change}

        def enter(given: dict[str, Any] = asked) -> str:
            with play.bookkeeper.charge(**given):
                return "entered"

        play.calling("charge", asked, enter)


def blocks_of_asyncio(play: Play) -> None:
    """The asyncio block, a cancelled task among them."""
    open_accounts(play)

    async def story(door: AsyncBookkeeper) -> None:
        for name, handed_over, ending in ENDINGS:
            asked = _asked(play, name)
            with play.block("charge", asked):
                async with door.charge(**asked) as charge:
                    play.say(inside=name, reservation=charge.reservation)
                    for usage in handed_over:
                        charge.usage(**usage)
                    if ending is not None:
                        raise ending
            play.say(after=name, receipt=charge.receipt)
        await _cancelled(play, door)

    play.asynchronously(story)
    play.settle()
    play.end()


async def _cancelled(play: Play, door: AsyncBookkeeper) -> None:
    inside, charges = asyncio.Event(), []

    async def request() -> None:
        async with door.charge(**_asked(play, "cancelled")) as charge:
            charges.append(charge)
            charge.usage(prompt_tokens=374, completion_tokens=7)
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(request())
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    play.say(after="cancelled", cancelled=task.cancelled(), receipt=charges[0].receipt)


def all_methods(play: Play) -> None:
    """Each method, answered and refused."""
    open_accounts(play)

    async def story(door: AsyncBookkeeper) -> None:
        async def ask(call: str, *args: Any, **arguments: Any) -> Any:
            said = {**arguments, "args": [arg if isinstance(arg, int) else type(arg).__name__ for arg in args]}
            try:
                answer = await getattr(door, call)(*args, **arguments)
            except BillingError as exc:
                return play.say(call=call, arguments=said, refusal=exc)
            play.say(call=call, arguments=said, answer="later" if call == "renew" else answer)
            return answer

        payer = {"user_id": USER, "token_id": TOKEN}
        held = await ask("pre_consume_quota", 1_000, **payer, request_id=play.id("a"), client_key="chat-1")
        await ask("pre_consume_quota", 1_000, **payer, request_id=play.id("a"))
        await ask("pre_consume_quota", 1_001, **payer, request_id=play.id("a"))
        await ask("pre_consume_quota", 2_000_000, **payer, request_id=play.id("too much"))
        await ask("pre_consume_quota", True, **payer)
        await ask("renew", held, 60)
        await ask("consume", held.log(channel_id=CHANNEL, quota=400))
        await ask("consume", held.log(channel_id=CHANNEL, quota=400))
        await ask("consume", held.log(channel_id=CHANNEL, quota=401))
        await ask("consume", "no log")
        await ask("refund_quota", held)
        await ask("renew", held)
        other = await ask("pre_consume_quota", 50, **payer, request_id=play.id("b"))
        await ask("refund_quota", other, reason="502")
        await ask("refund_quota", user_id=USER, request_id=play.id("b"))
        await ask("refund_charge", user_id=USER, request_id=play.id("a"), refund_id="case-1", quota=100)
        await ask("refund_charge", user_id=USER, request_id=play.id("a"), refund_id="")
        await ask("user_has_enough_quota", USER, 999_600)
        await ask("user_has_enough_quota", USER, 999_601)
        await ask("user_has_much_more_quota", USER, 9_995)
        late = ConsumeLog(**payer, channel_id=CHANNEL, quota=1, request_id=play.id("late"))
        await ask("consume", late)
        play.say(price=door.price(model="gpt-4o", group="vip"))

    play.asynchronously(story)
    play.settle()
    play.end()
