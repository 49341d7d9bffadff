"""Reserve, consume, settle: as it should go, again, contradicting, refused, late."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from billing_tasks import Bookkeeper
from tests.releases.play import TOKEN, USER, Play

SECOND_USER, SECOND_TOKEN = 43, 8
LONG_AGO, IN_THE_FAR = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)

#: All that a log may carry.
DETAILS: dict[str, Any] = {
    "prompt_tokens": 200,
    "completion_tokens": 50,
    "model_name": "gpt-4o",
    "token_name": "web",
    "content": "a remark: 注",
    "pre_consumed_quota": 500,
    "client_key": "chat-3",
    "group": "vip",
    "model_ratio": "5/4",
    "completion_ratio": "4",
    "group_ratio": "1",
    "elapsed_ms": 1_234,
    "is_stream": True,
    "usage": {"prompt_tokens_details": {"cached_tokens": 128}, "notes": ["a", None, True, 1.5], "é": "ü"},
}


def open_accounts(play: Play, quota: int = 1_000_000) -> None:
    """User 42 with token 7, user 43 with token 8, channel 3."""
    play.ask("create_user", user_id=USER, quota=quota)
    play.ask("create_token", user_id=USER, token_id=TOKEN, name="web", quota=quota)
    play.ask("create_user", user_id=SECOND_USER, quota=quota, group="vip")
    play.ask("create_token", user_id=SECOND_USER, token_id=SECOND_TOKEN, name="batch", quota=quota)
    play.ask("create_channel", channel_id=3, name="openai")


def requests(play: Play) -> None:
    """Priced and not, below, at and above the hold, with all that a log may carry."""
    open_accounts(play)
    price = play.price(model="gpt-4o")
    first = play.reserve(price.estimate(374, 512), "priced", price=price, client_key="chat-1")
    play.ask("balance", user_id=USER)
    play.use(first, prompt_tokens=374, completion_tokens=44, token_name="web", elapsed_ms=812, is_stream=True)
    play.ask("balance", user_id=USER)
    play.settle()
    play.ask("balance", user_id=USER)
    play.reserve(1_000, "exact")
    play.consume(1_000, "exact", prompt_tokens=10, completion_tokens=20, model_name="claude-3-opus-20240229")
    play.reserve(1_000, "more than held")
    play.consume(4_000, "more than held", content="upstream used more")
    play.reserve(1_000, "nothing used")
    play.consume(0, "nothing used")
    play.reserve(0, "nothing held")
    play.consume(5, "nothing held")
    play.consume(7, "never reserved", client_key="chat-2")
    play.reserve(500, "detailed")
    play.consume(321, "detailed", **DETAILS)
    second = play.reserve(900, "of the second", user_id=SECOND_USER, token_id=SECOND_TOKEN, price=price)
    play.use(second, quota=17, content="a price of its own")
    play.consume(50, "without a channel", channel_id=0)
    play.settle()
    play.settle(SECOND_USER)
    play.settle()
    play.ask("user_has_enough_quota", user_id=USER, quota=900_000)
    play.ask("user_has_enough_quota", user_id=USER, quota=1_000_000)
    play.ask("user_has_much_more_quota", user_id=USER, quota=9_000)
    play.ask("user_has_much_more_quota", user_id=USER, quota=10_000)
    play.ask("user_has_enough_quota", user_id=999, quota=1)
    play.reserve(600, "left open")
    play.entries(user_id=USER)
    play.entries(client_key="chat-2")
    play.ask("channels")
    play.end()


def repeats(play: Play) -> None:
    """Each call again: before the settlement, after it, and when Redis has forgotten."""
    open_accounts(play)
    for _ in range(2):
        play.reserve(1_000, "a")
    for _ in range(3):
        play.consume(400, "a")
    play.reserve(1_000, "a")
    play.settle()
    play.consume(400, "a")
    play.settle()
    held = play.reserve(1_000, "b")
    for _ in range(3):
        play.refund_quota(held)
    play.reserve(1_000, "b")
    play.settle()
    play.refund_quota(name="b")
    play.reserve(300, request_id=play.id("c").upper())
    play.reserve(300, "c")
    play.consume(299, "c", prompt_tokens=1, elapsed_ms=5, content="first")
    play.consume(299, "c", prompt_tokens=1, elapsed_ms=9, content="second: timings and remarks don't count")
    play.settle()
    forgetful = play.another(Bookkeeper, tombstone_seconds=1)
    play.reserve(200, "d", door=forgetful)
    play.consume(150, "d", door=forgetful)
    play.settle()
    short = play.reserve(10, "clock", ttl_seconds=1)
    play.until_due(short)  # by then the tombstone of d is gone, too
    play.consume(150, "d")
    play.ask("balance", user_id=USER)
    play.settle()
    play.consume(10, "clock")
    play.end()


def conflicts(play: Play) -> None:
    """The same id with another body. The first stands; a consume that contradicts is kept."""
    open_accounts(play)
    play.reserve(1_000, "a")
    play.reserve(999, "a")
    play.reserve(1_000, "a", token_id=9)
    play.reserve(1_000, "a", user_id=58, token_id=SECOND_TOKEN)
    play.consume(100, "a", token_id=9)
    play.consume(100, "a")
    play.consume(101, "a")
    play.consume(100, "a", model_name="another")
    play.consume(100, "a", channel_id=4)
    play.reserve(999, "a")
    play.settle()
    play.consume(102, "a")
    play.settle()
    play.consume(100, "a", user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.settle(SECOND_USER)
    held = play.reserve(70, "b")
    play.refund_quota(name="b", user_id=58)
    play.refund_quota(held)
    play.consume(60, "b")
    play.consume(61, "b")
    play.end()


def refusals(play: Play) -> None:
    """No such account, not allowed, not enough."""
    open_accounts(play, quota=10_000)
    play.reserve(1, "unknown user", user_id=999)
    play.reserve(1, "unknown token", token_id=999)
    play.reserve(1, "another user's token", token_id=SECOND_TOKEN)
    play.reserve(10_001, "user quota")
    play.reserve(10_000, "all of it")
    play.reserve(1, "nothing left")
    play.refund_quota(name="all of it")
    play.ask("create_token", user_id=USER, token_id=20, quota=50)
    play.reserve(51, "token quota", token_id=20)
    play.reserve(50, "all of the token", token_id=20)
    play.reserve(1, "nothing left of the token", token_id=20)
    play.ask("create_token", user_id=USER, token_id=21, quota=50, expires_at=LONG_AGO)
    play.reserve(1, "expired token", token_id=21)
    play.ask("set_token", token_id=21, expires_at=IN_THE_FAR)
    play.reserve(1, "expires later", token_id=21)
    play.ask("set_token", token_id=21, expires_at=None)
    play.reserve(1, "expires never", token_id=21)
    play.ask("set_token", token_id=21, status="disabled")
    play.reserve(1, "disabled token", token_id=21)
    play.ask("set_token", token_id=21, status="deleted")
    play.reserve(1, "deleted token", token_id=21)
    play.ask("set_token", token_id=21, status="enabled")
    play.reserve(1, "enabled token", token_id=21)
    play.ask("set_user", user_id=USER, status="disabled")
    play.reserve(1, "disabled user")
    play.consume(30, "expires later", token_id=21)
    play.ask("set_user", user_id=USER, status="enabled")
    play.reserve(1, "enabled user")
    play.ask("top_up", user_id=USER, quota=5, top_up_id="pay-1")
    play.consume(3, "for an unknown user", user_id=999)
    play.consume(3, "for an unknown token", token_id=999)
    play.settle(999)
    crowded = play.another(Bookkeeper, backlog_limit=1)
    play.reserve(1, "backlog full", door=crowded)
    play.end()


def late(play: Play) -> None:
    """Usage that comes when the hold is gone is charged all the same; expired holds give their quota back."""
    open_accounts(play)
    released = play.reserve(1_000, "released")
    play.refund_quota(released, reason="upstream answered 502")
    play.consume(10, "released")
    play.consume(10, "released")
    held = [play.reserve(100 * number, f"expires {number}", ttl_seconds=2) for number in range(1, 5)]
    other = play.reserve(77, "expires, too", user_id=SECOND_USER, token_id=SECOND_TOKEN, ttl_seconds=2)
    play.task("billing.expire_holds")
    play.until_due(*held, other)
    play.consume(5, "expires 4")  # due, but nothing has looked yet: the hold is still open
    play.task("billing.expire_holds")
    play.ask("balance", user_id=USER)
    play.task("billing.expire_holds")
    play.consume(20, "expires 1")
    play.settle()
    play.ask("balance", user_id=USER)
    play.consume(30, "expires 2")
    play.refund_quota(held[2])
    play.refund_quota(name="expires 1")
    play.reserve(300, "expires 3")
    play.renew(held[2])
    play.settle()
    play.settle(SECOND_USER)
    play.refund_charge("expires 2", "case-1")
    play.entries(user_id=USER)
    play.end()


def renewals(play: Play) -> None:
    """Holds that are kept open, and those that can't be."""
    open_accounts(play)
    held = play.reserve(1_000, "a", ttl_seconds=60)
    play.renew(held)
    play.renew(held, 3_600)
    play.renew(held, 86_400)
    play.renew(held, 0)
    play.renew(held, 86_401)
    play.renew(held, True)
    play.consume(12, "a")
    play.renew(held)
    released = play.reserve(1_000, "b")
    play.refund_quota(released)
    play.renew(released)
    kept, expired = play.reserve(100, "c", ttl_seconds=1), play.reserve(200, "d", ttl_seconds=1)
    play.renew(kept, 600)
    play.until_due(kept, expired)
    play.task("billing.expire_holds")
    play.renew(kept)
    play.renew(expired)
    play.settle()
    play.end()


def unlimited_and_trusted(play: Play) -> None:
    """Tokens without a limit, users with a hundred times of what they ask for, balances below zero."""
    play.ask("create_user", user_id=USER, quota=100_000)
    play.ask("create_token", user_id=USER, token_id=TOKEN, unlimited=True)
    play.reserve(999, "trusted")
    play.reserve(1_000, "just not trusted")
    rich = play.reserve(100, "trusted log")
    play.use(rich, quota=90)
    play.use(play.reserve(0, "free"), quota=0)
    play.settle()
    play.ask("token", token_id=TOKEN)
    play.ask("create_token", user_id=USER, token_id=9, quota=10)
    play.reserve(11, "limited", token_id=9)
    play.ask("set_token", token_id=9, unlimited=True)
    play.reserve(11, "unlimited now", token_id=9)
    play.ask("set_token", token_id=9, unlimited=False)
    play.reserve(11, "limited again", token_id=9)
    play.reserve(90_000, "nearly all")
    play.consume(150_000, "nearly all")
    play.settle()
    play.ask("balance", user_id=USER)
    play.reserve(1, "below zero")
    play.ask("user_has_enough_quota", user_id=USER, quota=0)
    play.end()
