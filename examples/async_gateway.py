"""An asyncio gateway in miniature: ten requests at once, one of them with a failing upstream, one stream cut off.

Needs servers and a worker, like one_request.py. What it prints is in async_gateway.out.
"""

import asyncio
from collections.abc import AsyncIterator

from billing_tasks import Accounts, AsyncBookkeeper, AsyncCharge
from billing_tasks.errors import InsufficientUserQuota


class UpstreamDownError(Exception):
    """What a gateway's HTTP client would raise."""


async def upstream(number: int) -> int:
    """Stands for the call of the model; answers with the completion's tokens."""
    await asyncio.sleep(0.02)
    if number == 4:
        raise UpstreamDownError("502 from upstream")
    return 20 + number


async def chat(bk: AsyncBookkeeper, number: int, user_id: int, token_id: int) -> str:
    """One request. Whatever ends the block, the hold ends with it."""
    try:
        async with bk.charge(
            user_id=user_id, token_id=token_id, channel_id=3, model="gpt-4o-mini", prompt_tokens=100, max_tokens=50
        ) as charge:
            completion_tokens = await upstream(number)
            charge.usage(prompt_tokens=100, completion_tokens=completion_tokens)
    except UpstreamDownError as exc:
        return f"request {number}: refunded, {exc}"
    except InsufficientUserQuota as exc:
        return f"request {number}: {exc.http_status} {exc.code}"
    return f"request {number}: charged {charge.receipt.quota} of {charge.reservation.held_quota} held"


async def stream(bk: AsyncBookkeeper, user_id: int, token_id: int) -> AsyncIterator[str]:
    """Reserved before the stream begins, so that a refusal is an answer of its own."""
    charge = await bk.open_charge(
        user_id=user_id,
        token_id=token_id,
        channel_id=3,
        model="gpt-4o",
        prompt_tokens=10,
        max_tokens=100,
        is_stream=True,
    )
    return words_of(charge)


async def words_of(charge: AsyncCharge) -> AsyncIterator[str]:
    """A stream hands its usage over as it grows: a reader that leaves pays for what it got."""
    async with charge:
        for sent in range(1, 101):
            charge.usage(prompt_tokens=10, completion_tokens=sent)
            yield f"word {sent}"


async def main() -> None:
    with Accounts.from_settings() as accounts:
        user = await asyncio.to_thread(accounts.create_user, quota=10_000)
        token = await asyncio.to_thread(accounts.create_token, user.id, unlimited=True)
        async with AsyncBookkeeper.from_settings() as bk:
            for line in await asyncio.gather(*(chat(bk, number, user.id, token.id) for number in range(10))):
                print(line)
            words = await stream(bk, user.id, token.id)
            async for word in words:
                if word == "word 3":
                    break
            await words.aclose()
            print("the stream's reader left after 3 words")
        for _ in range(200):
            if (await asyncio.to_thread(accounts.user, user.id)).request_count == 10:
                break
            await asyncio.sleep(0.1)
        user = await asyncio.to_thread(accounts.user, user.id)
        print(f"booked: {user.request_count} requests, {user.used_quota} quota used, {user.quota} left")


if __name__ == "__main__":
    asyncio.run(main())
