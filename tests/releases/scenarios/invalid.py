"""Arguments that break a rule: the message names the field and the rule."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from tests.releases.play import TOKEN, USER, Play
from tests.releases.scenarios.requests import open_accounts

NUMBERS = (True, -1, 2**53 + 1, 1.0, "5", None, [1])
TEXTS: tuple[Any, ...] = ("nul\x00", "lone \ud800", "x" * 2_001, 7, None)
DAY_MS = 86_400_000
IDS: tuple[Any, ...] = (
    *("", "17", 17, "0192f0c1-5f3a-4cc3-8000-5b6c7d8e9f00", "0192f0c1-5f3a-7cc3-0000-5b6c7d8e9f00"),
    *(
        "00000000-0000-0000-0000-000000000000",
        "0192f0c15f3a7cc380005b6c7d8e9f00",
        "{0192f0c1-5f3a-7cc3-8000-5b6c7d8e9f00}",
    ),
)


def _dated(play: Play) -> list[str]:
    now = time.time_ns() // 1_000_000
    return [
        play.id("32 days back", at_ms=now - 32 * DAY_MS),
        play.id("6 minutes ahead", at_ms=now + 360_000),
        play.id("4 minutes ahead", at_ms=now + 240_000),
    ]


def invalid_requests(play: Play) -> None:
    """Of the bookkeeper."""
    open_accounts(play)
    for number in NUMBERS:
        play.reserve(number, "a")
        play.reserve(1, "a", user_id=number)
        play.reserve(1, "a", token_id=number)
        if number is not None:
            play.reserve(1, "a", ttl_seconds=number)
        play.ask("user_has_enough_quota", user_id=number, quota=1)
    for text in TEXTS:
        play.reserve(1, "b", client_key=text)
        play.refund_quota(name="b", reason=text)
        play.refund_charge("b", text)
        play.refund_charge("b", "case-1", reason=text)
    for request_id in IDS:
        play.reserve(1, request_id=request_id)
        play.refund_quota(user_id=USER, request_id=request_id)
    for request_id in _dated(play)[:2]:
        play.reserve(1, request_id=request_id)
        play.refund_quota(user_id=USER, request_id=request_id)
    play.reserve(1, "4 minutes ahead")
    play.refund_charge("b", "")
    play.refund_charge("b", "case-1", quota=0)
    play.refund_charge("b", "case-1", quota=True)
    held = play.reserve(5, "c")
    play.refund_quota(held, user_id=USER)
    play.calling("refund_quota", {}, play.bookkeeper.refund_quota)
    play.use(held)
    play.use(held, quota=1, colour="blue")
    play.calling("consume", {"log": "no log"}, lambda: play.bookkeeper.consume("no log"))
    play.calling("consume", {"log": {}}, lambda: play.bookkeeper.consume({}))
    play.task("billing.settle", shard=16)
    play.task("billing.settle", shard=True)
    play.task("billing.settle", shard=0, request_id="", colour="a newer producer's field is ignored")
    play.end()


def invalid_logs(play: Play) -> None:
    """Of ConsumeLog."""
    open_accounts(play)
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for field in ("quota", "user_id", "token_id", "channel_id", "prompt_tokens", "elapsed_ms", "pre_consumed_quota"):
        for number in NUMBERS[:-1]:
            play.consume(**{"quota": 1, "name": "a", field: number})
    for field in ("model_name", "token_name", "content", "client_key", "group", "model_ratio"):
        for text in (*TEXTS[:2], *TEXTS[3:]):
            play.consume(1, "a", **{field: text})
    for field, limit in (("model_name", 200), ("client_key", 200), ("group", 64), ("content", 2_000)):
        play.calling("length", {field: limit + 1}, lambda f=field, n=limit + 1: _longest(play, f, n))
    for usage in (
        "text",
        [1],
        {"nul": "\x00"},
        {"deep": deep},
        {"long": "x" * 4_096},
        {"set": {1}},
        {"n": float("nan")},
    ):
        play.calling("usage", {"usage": repr(usage)[:40]}, lambda u=usage: _with_usage(play, u))
    for request_id in IDS:
        play.consume(1, request_id=request_id)
    for request_id in _dated(play)[:2]:
        play.consume(1, request_id=request_id)
    play.consume(1, "a", is_stream=1)
    play.consume(1, "a", is_stream="yes")
    play.consume(1, "a", colour="blue")
    play.consume(-1, request_id="17", model_name="nul\x00", colour="blue")
    play.consume(1)
    play.consume(2**53, "the largest", prompt_tokens=2**40)
    play.settle()
    play.end()


def _longest(play: Play, field: str, length: int) -> None:
    from billing_tasks import ConsumeLog

    text = {field: "x" * length}
    ConsumeLog(user_id=USER, token_id=TOKEN, channel_id=0, quota=1, request_id=play.id("long"), **text)


def _with_usage(play: Play, usage: Any) -> Any:
    from billing_tasks import ConsumeLog

    return ConsumeLog(user_id=USER, token_id=TOKEN, channel_id=0, quota=1, request_id=play.id("u"), usage=usage).usage


def invalid_administration(play: Play) -> None:
    """Of Accounts."""
    open_accounts(play)
    for number in NUMBERS:
        if number is not None:
            play.ask("create_user", user_id=number)
            play.ask("create_token", user_id=USER, token_id=number)
            play.ask("create_channel", channel_id=number)
        play.ask("create_user", quota=number)
        play.ask("create_token", user_id=number)
        play.ask("top_up", user_id=USER, quota=number, top_up_id="pay-1")
        play.ask("set_token_quota", token_id=TOKEN, quota=number)
        play.ask("user", user_id=number)
        play.ask("token", token_id=number)
        play.ask("balance", user_id=number)
    for quota in (True, 2**53 + 1, -(2**53) - 1, "5"):
        play.ask("adjust_user", user_id=USER, quota=quota, adjust_id="fix-1")
        play.ask("adjust_token", token_id=TOKEN, quota=quota, adjust_id="fix-1")
    for text in TEXTS:
        play.ask("create_user", group=text)
        play.ask("create_token", user_id=USER, name=text)
        play.ask("create_channel", name=text)
        play.ask("top_up", user_id=USER, quota=1, top_up_id=text)
        play.ask("top_up", user_id=USER, quota=1, top_up_id="pay-1", note=text)
        play.ask("adjust_user", user_id=USER, quota=1, adjust_id=text)
    play.ask("top_up", user_id=USER, quota=0, top_up_id="pay-1")
    play.ask("top_up", user_id=USER, quota=1, top_up_id="")
    play.ask("adjust_user", user_id=USER, quota=0, adjust_id="fix-1")
    play.ask("adjust_token", token_id=TOKEN, quota=0, adjust_id="fix-1")
    play.ask("top_up", user_id=USER, quota=2**53, top_up_id="pay-2")
    play.ask("set_user", user_id=USER, status="deleted")
    play.ask("set_token", token_id=TOKEN, status="banned")
    play.ask("create_token", user_id=USER, expires_at=datetime(2100, 1, 1))  # noqa: DTZ001 - the mistake is the point
    play.end()
