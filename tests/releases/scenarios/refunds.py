"""Refunds: holds before the charge, charges after it."""

from __future__ import annotations

from tests.releases.play import USER, Play
from tests.releases.scenarios.requests import SECOND_TOKEN, SECOND_USER, open_accounts


def of_holds(play: Play) -> None:
    """By the reservation, by user and request; too late; without a hold."""
    open_accounts(play)
    held = play.reserve(1_000, "a")
    play.refund_quota(held, reason="the client left")
    play.ask("balance", user_id=USER)
    play.reserve(2_000, "b")
    play.refund_quota(name="b", reason="upstream answered 429")
    play.reserve(0, "nothing held")
    play.refund_quota(name="nothing held")
    charged = play.reserve(500, "charged")
    play.consume(400, "charged")
    play.refund_quota(charged)
    play.settle()
    play.refund_quota(name="charged")
    play.refund_quota(name="never held")
    play.refund_quota(name="a", user_id=SECOND_USER)
    other = play.reserve(10, "of the second", user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.refund_quota(other, user_id=USER)
    play.refund_quota(other)
    play.settle(SECOND_USER)
    play.end()


def of_charges(play: Play) -> None:
    """Whole, in parts, above the charge, again, again with another body, before and after it is booked."""
    open_accounts(play)
    play.reserve(1_000, "whole")
    play.consume(800, "whole", model_name="gpt-4o", prompt_tokens=80)
    play.refund_charge("whole", "case-1", reason="wrong answer")  # follows its charge through the outbox
    play.settle()
    play.refund_charge("whole", "case-1", reason="wrong answer")
    play.refund_charge("whole", "case-1", quota=5)
    play.refund_charge("whole", "case-2")
    play.settle()
    play.consume(1_000, "parts")
    play.settle()
    play.refund_charge("parts", "case-3", quota=300)
    play.refund_charge("parts", "case-4", quota=300)
    play.settle()
    play.refund_charge("parts", "case-3", quota=300)
    play.refund_charge("parts", "case-3", quota=301)
    play.refund_charge("parts", "case-5", quota=401)
    play.settle()
    play.refund_charge("parts", "case-6")
    play.settle()
    play.consume(60, "of another", user_id=SECOND_USER, token_id=SECOND_TOKEN)
    play.settle(SECOND_USER)
    play.refund_charge("of another", "case-7")
    play.refund_charge("of another", "case-1", user_id=SECOND_USER)
    play.refund_charge("of another", "case-8", user_id=999)
    play.settle()
    play.settle(SECOND_USER)
    play.settle(999)
    play.consume(0, "free")
    play.settle()
    play.refund_charge("free", "case-9")
    play.entries(user_id=USER)
    play.end()


def without_a_charge(play: Play) -> None:
    """A refund that comes first is kept, and booked when it is tried again after the charge."""
    open_accounts(play)
    play.refund_charge("first", "case-1", reason="too early")
    play.refund_charge("never", "case-2")
    play.settle()
    play.rows("dead_letters")
    play.task("billing.retry_failed", who="alice", why="too soon")
    play.deliver()
    play.consume(250, "first")
    play.settle()
    play.task("billing.retry_failed", who="alice", why="the charge has come", request_ids=[play.id("first")])
    play.deliver()
    play.rows("dead_letters")
    play.refund_charge("first", "case-1", reason="too early")
    play.settle()
    play.end()
