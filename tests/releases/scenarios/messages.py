"""Messages of other programs, dead letters tried again, and one task per request."""

from __future__ import annotations

from typing import Any

from billing_tasks import Bookkeeper
from tests.releases.play import CHANNEL, TOKEN, USER, Play
from tests.releases.scenarios.requests import SECOND_TOKEN, SECOND_USER, open_accounts

PAYER = {"user_id": USER, "token_id": TOKEN, "channel_id": CHANNEL}


def consume_messages(play: Play) -> None:
    """billing.consume: valid, again, contradicting, with unknown fields, malformed."""
    open_accounts(play)

    def send(name: str, **fields: Any) -> None:
        message = {**PAYER, "request_id": play.id(name), "quota": 100, **fields}
        play.task("billing.consume", task_id=f"message-{name}", **message)

    send("plain")
    send("plain")
    send("plain", quota=101)
    play.reserve(500, "held")
    send("held", quota=450, prompt_tokens=7, model_name="gpt-4o", usage={"a": [1]}, is_stream=True, client_key="go-1")
    send("unknown-field", colour="blue")
    send("old-id", request_id="0192f0c1-5f3a-7cc3-8000-5b6c7d8e9f00")
    send("no-id", request_id="17")
    send("text", quota="5")
    send("float", quota=5.0)
    send("negative", quota=-1)
    send("too-much", quota=2**53 + 1)
    send("boolean", is_stream=1)
    send("null", quota=None)
    send("no-such-user", user_id=999)
    send("no-such-token", token_id=999)
    play.task("billing.consume", task_id="message-empty")
    play.task("billing.consume", "positional", 7, task_id="message-positional")
    play.task(
        "billing.consume", task_id="message-self", self="me", **{**PAYER, "request_id": play.id("self"), "quota": 1}
    )
    play.settle()
    play.settle(999)
    play.end()


def refund_messages(play: Play) -> None:
    """billing.refund: of a hold, of a charge, of nothing; again; malformed."""
    open_accounts(play)

    def send(name: str, **fields: Any) -> None:
        message = {"user_id": USER, "request_id": play.id(name), **fields}
        play.task("billing.refund", task_id=f"message-{name}", **message)

    play.reserve(500, "held")
    send("held", reason="upstream answered 502")
    send("held")
    play.consume(400, "charged")
    play.settle()
    send("charged")
    play.settle()
    send("charged")
    play.settle()
    play.consume(300, "in parts")
    play.settle()
    send("in parts", quota=100, refund_id="case-1")
    send("in parts", quota=100, refund_id="case-1")
    send("in parts", quota=50)
    play.settle()
    send("in parts", quota=200, refund_id="case-2", reason="too much")
    send("never charged", quota=None, refund_id=None)
    play.settle()
    play.reserve(70, "open")
    send("open", quota=10)
    play.settle()
    send("bad", quota=0)
    send("bad", quota="5")
    send("bad", refund_id=0)
    send("bad", refund_id=False)
    send("bad", colour="blue")
    send("bad", user_id="42")
    send("bad", request_id=None)
    play.task("billing.refund", task_id="message-empty")
    play.settle()
    play.end()


def retries(play: Play) -> None:
    """billing.retry_failed: by filter, by number, previewed, refused."""
    open_accounts(play)
    play.refund_charge("early", "case-1")
    play.refund_charge("never", "case-2", quota=10)
    play.consume(5, "conflicting")
    play.consume(6, "conflicting")
    play.consume(7, "of a stranger", user_id=58, token_id=70)
    play.task("billing.consume", task_id="message-bad", request_id=play.id("bad"), quota=-1, **PAYER)
    play.settle()
    play.rows("dead_letters")
    retry = "billing.retry_failed"
    play.task(retry, dry_run=True)
    play.task(retry, dry_run=True, kind="consume", reason="unknown_user")
    play.task(retry, due_only=True)
    play.deliver()  # the worker's first look at each dead letter
    play.consume(90, "early")
    play.settle()
    play.ask("create_user", user_id=58, quota=1_000)
    play.ask("create_token", user_id=58, token_id=70, quota=1_000)
    play.task(retry, dry_run=True, kind="refund", user_id=USER, since="1h")
    play.task(retry, who="alice", why="charges have come", kind="refund")
    play.deliver()
    play.task(retry, who="alice", why="the user is there", reason="unknown_user")
    play.deliver()
    play.task(retry, kind="conflict")
    play.deliver()
    play.task(retry, numbers=[1, 2, 99])
    play.deliver()
    play.task(retry, kind="no such kind")
    play.task(retry, limit=1, before="1h")
    for asked in (
        {"colour": "blue"},
        {"limit": 0},
        {"limit": 10_001},
        {"numbers": []},
        {"numbers": ["1"]},
        {"request_ids": "all"},
        {"since": "yesterday"},
        {"user_id": True},
        {"kind": 7},
    ):
        play.task(retry, **asked)
    for kwargs in ({"dead_letter": 99}, {"dead_letter": "1"}, {"dead_letter": 1, "attempt": 1, "who": "bob"}):
        play.task("billing.refund", **kwargs)
    play.end()


def dispatch_by_request(play: Play) -> None:
    """BILLING_DISPATCH=request: one message per call; without a broker the call files it itself."""
    open_accounts(play)
    door = play.another(Bookkeeper, dispatch="request")
    play.reserve(500, "a", door=door, client_key="chat-1")
    play.consume(400, "a", door=door, usage={"cached": 1}, content="remark", group="vip")
    play.ask("balance", user_id=USER)
    play.deliver()
    play.ask("balance", user_id=USER)
    held = play.reserve(300, "b", door=door)
    play.refund_quota(held, door=door, reason="502")
    play.deliver()
    play.settle()
    play.refund_charge("a", "case-1", quota=100, door=door)
    play.refund_charge("a", "case-2", door=door, reason="all of it")
    play.deliver()
    play.settle()
    play.consume(400, "a", door=door)
    play.consume(401, "a", door=door)
    play.deliver()
    play.refund_quota(name="a", door=door)
    play.deliver()
    play.settle()
    away = play.another(Bookkeeper, dispatch="request", broker_url="redis://127.0.0.1:1/0")
    play.consume(50, "without a broker", door=away)
    play.refund_quota(play.reserve(60, "given back without a broker"), door=away)
    play.consume(30, "of the second", door=away, user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.refund_charge("of the second", "case-3", door=away, user_id=SECOND_USER)
    play.settle()
    play.settle(SECOND_USER)
    play.end()
