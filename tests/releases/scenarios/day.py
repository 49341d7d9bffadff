"""A day at a gateway, left as it was at some moment: books, open holds, full outboxes, messages not yet delivered.

What this scenario leaves in the servers is recorded as data.sql, keys.json, outbox.jsonl and messages.jsonl.
Amounts differ on purpose, so that no two rows are alike.
"""

from __future__ import annotations

from billing_tasks import Bookkeeper
from tests.releases.play import USER, Play
from tests.releases.scenarios.requests import IN_THE_FAR, LONG_AGO, SECOND_TOKEN, SECOND_USER, open_accounts

SECOND = {"user_id": SECOND_USER, "token_id": SECOND_TOKEN}
#: A user of a third shard.
THIRD = {"user_id": 21, "token_id": 12}


def one_day(play: Play) -> None:
    """In the order of the day."""
    open_accounts(play)
    _administration(play)
    _booked(play)
    _not_bookable(play)
    _redis_restarted(play)
    play.quiet()
    _expired(play)
    _still_waiting(play)
    play.look()


def _administration(play: Play) -> None:
    play.ask("create_channel", channel_id=4, name="anthropic: ü 'quoted' \\ and \"double\"")
    play.ask("create_user", user_id=21, quota=3_000_000)
    play.ask("create_token", user_id=21, token_id=12, name="it's", unlimited=True)
    play.ask("create_token", user_id=USER, token_id=9, name="limited", quota=5_000, expires_at=IN_THE_FAR)
    play.ask("create_token", user_id=USER, token_id=10, name="expired", quota=6_000, expires_at=LONG_AGO)
    play.ask("set_token", token_id=10, status="deleted")
    play.ask("create_user", user_id=5, quota=70, group="trial")
    play.ask("set_user", user_id=5, status="disabled")
    play.ask("top_up", user_id=USER, quota=50_000, top_up_id="pay-1", note="invoice 17")
    play.ask("adjust_user", user_id=SECOND_USER, quota=-1_234, adjust_id="fix-1", note="counted twice")
    play.ask("adjust_token", token_id=9, quota=321, adjust_id="fix-2")
    play.ask("set_token_quota", token_id=9, quota=4_321)
    play.sql("update billing.users set quota = quota + 77 where id = 5")


def _booked(play: Play) -> None:
    price = play.price(model="gpt-4o", group="vip")
    held = play.reserve(price.estimate(374, 512), "booked", price=price, client_key="chat-1")
    play.use(
        held, prompt_tokens=374, completion_tokens=44, usage={"cached_tokens": 128}, elapsed_ms=812, is_stream=True
    )
    play.reserve(200, "booked above its hold")
    play.consume(260, "booked above its hold", model_name="claude-3-opus-20240229", channel_id=4)
    play.consume(31, "booked late", content="no hold was open")
    play.consume(0, "booked for nothing")
    play.reserve(411, "released", **SECOND)
    play.refund_quota(name="released", user_id=SECOND_USER, reason="upstream answered 502")
    play.consume(520, "refunded whole", **SECOND)
    play.consume(630, "refunded in parts", **SECOND)
    play.settle()
    play.settle(SECOND_USER)
    play.refund_charge("refunded whole", "case-1", user_id=SECOND_USER, reason="wrong answer")
    play.refund_charge("refunded in parts", "case-2", user_id=SECOND_USER, quota=130)
    play.settle(SECOND_USER)


def _not_bookable(play: Play) -> None:
    play.reserve(90, "contradicted")
    play.consume(80, "contradicted")
    play.consume(81, "contradicted")
    play.refund_charge("never charged", "case-3", reason="nothing there")
    play.refund_charge("booked", "case-4", quota=2_000_000)
    play.consume(42, "of a stranger", user_id=58, token_id=70)
    play.refund_charge("charged later", "case-5")
    play.settle()
    play.task("billing.consume", task_id="message-1", request_id=play.id("malformed"), user_id=USER, quota=-1)
    play.task("billing.consume", task_id="message-2", text="no id: it's malformed")
    play.task("billing.refund", task_id="message-3", user_id=USER, request_id=play.id("malformed"), colour="blue")
    play.consume(93, "charged later")
    play.settle()
    play.task("billing.retry_failed", who="alice", why="the charge has come", request_ids=[play.id("charged later")])
    play.deliver()


def _redis_restarted(play: Play) -> None:
    play.reserve(15, "before the restart", **THIRD)
    play.consume(14, "before the restart", **THIRD)
    play.settle(21)
    play.task("billing.ring_stale")
    # What a script finds after a restart: another run than the one it noted.
    play.redis("HSET", play.shard_key(21, "meta"), "run_id", "0")
    play.reserve(17, "after the restart", **THIRD)
    play.consume(16, "after the restart", **THIRD)
    play.settle(21)
    play.task("billing.ring_stale")


def _expired(play: Play) -> None:
    booked = play.reserve(702, "expired", **SECOND, ttl_seconds=1)
    waiting = play.reserve(803, "expired, waiting", ttl_seconds=1)
    play.until_due(booked, waiting)
    play.task("billing.expire_holds")
    play.settle(SECOND_USER)


def _still_waiting(play: Play) -> None:
    """One event of every kind in the outboxes, holds that are open, messages that no worker has taken."""
    price = play.price(model="gpt-4o")
    held = play.reserve(price.estimate(100, 100), "waiting", price=price, client_key="chat-2")
    detail = {"prompt_tokens_details": {"cached_tokens": 64}, "é": ["ü", None, True]}
    play.use(held, prompt_tokens=100, completion_tokens=50, usage=detail, token_name="web")
    play.consume(33, "waiting without a hold", token_id=9)
    play.reserve(310, "waiting above its hold", **THIRD)
    play.consume(350, "waiting above its hold", **THIRD)
    play.refund_quota(play.reserve(120, "waiting release"), reason="the client left")
    play.consume(34, "waiting without a hold", token_id=9)
    play.refund_charge("booked", "case-6", reason="waiting: all of it")
    play.refund_charge("booked above its hold", "case-7", quota=60)
    play.refund_charge("waiting", "case-8", quota=11, reason="its charge waits before it")
    play.reserve(1_001, "open")
    play.reserve(1_002, "open, too", **SECOND)
    play.reserve(0, "open for nothing", **SECOND)
    door = play.another(Bookkeeper, dispatch="request")
    play.reserve(440, "sent", **SECOND)
    play.consume(430, "sent", **SECOND, door=door, usage={"cached": 1}, content="its own task")
    play.refund_quota(play.reserve(450, "sent back", **SECOND), door=door, reason="502")
    play.refund_charge("refunded in parts", "case-9", user_id=SECOND_USER, quota=70, door=door)
    play.task("billing.retry_failed", who="bob", why="once more", reason="no_charge")
    play.send("billing.retry_failed", due_only=True)
    play.send("billing.retry_failed", kind="refund", who="carol", why="by hand")
