"""Servers that don't answer: what is booked all the same, what has to be repeated, what the disk keeps."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from billing_tasks import Accounts, Bookkeeper
from tests.releases.play import USER, Play
from tests.releases.scenarios.requests import SECOND_TOKEN, SECOND_USER, open_accounts

#: Nothing listens there.
NO_REDIS = "unix:///nonexistent/billing-redis.sock"
NO_DATABASE = "postgresql://billing@/billing?host=/nonexistent"
#: What their clients say then, which is theirs to change.
WORDS = {
    "Error 2 connecting to /nonexistent/billing-redis.sock. No such file or directory.": "words of the Redis client",
    'connection is bad: connection to server on socket "/nonexistent/.s.PGSQL.5432" failed: '
    "No such file or directory": "words of the PostgreSQL client",
}


def _not_theirs(play: Play) -> None:
    for words, name in WORDS.items():
        play.names.call(words, name)


def redis_away(play: Play) -> None:
    """Usage and refunds go straight into PostgreSQL; reservations are refused."""
    _not_theirs(play)
    open_accounts(play)
    door = play.another(Bookkeeper, redis_url=NO_REDIS)
    held = play.reserve(500, "held")
    play.reserve(500, "refused", door=door)
    play.refund_quota(held, door=door)
    play.consume(400, "held", door=door)
    play.consume(400, "held", door=door)
    play.consume(401, "held", door=door)
    play.consume(50, "late", door=door)
    play.consume(1, "of an unknown user", user_id=999, door=door)
    play.consume(1, "of an unknown token", token_id=999, door=door)
    play.consume(1, "of another's token", token_id=SECOND_TOKEN, door=door)
    play.refund_charge("late", "case-1", quota=20, door=door)
    play.refund_charge("late", "case-1", quota=20, door=door)
    play.refund_charge("late", "case-2", quota=31, door=door)
    play.refund_charge("never", "case-3", door=door)
    accounts = play.another(Accounts, redis_url=NO_REDIS)
    arguments = {"user_id": SECOND_USER, "quota": 5, "top_up_id": "pay-1"}
    play.calling("top_up", arguments, lambda: accounts.top_up(**arguments))
    play.calling("balance", {"user_id": USER}, lambda: accounts.balance(USER))
    play.consume(400, "held")  # Redis is back, and closes the hold
    play.settle()
    play.end()


def both_away(play: Play) -> None:
    """Without a spool the caller has to repeat; with one the disk keeps it."""
    _not_theirs(play)
    open_accounts(play)
    away = {"redis_url": NO_REDIS, "database_url": NO_DATABASE}
    door = play.another(Bookkeeper, **away)
    play.consume(10, "a", door=door)
    play.refund_charge("a", "case-1", door=door)
    no_database = play.another(Bookkeeper, database_url=NO_DATABASE)
    play.reserve(10, "cold", door=no_database)
    play.reserve(20, "warm")
    play.reserve(30, "warm, too", door=no_database)
    play.consume(15, "warm", door=no_database)
    with tempfile.TemporaryDirectory() as folder:
        spool = play.another(Bookkeeper, **away, spool_folder=Path(folder))
        play.consume(25, "kept", door=spool, usage={"cached": 3})
        play.consume(25, "kept", door=spool, usage={"cached": 3})
        play.refund_charge("kept", "case-2", door=spool)
        spool.close()
        for file in sorted(Path(folder).glob("*.json"), key=lambda path: path.name.split(".")[1]):
            kept = json.loads(file.read_text())  # its form is the release's own
            play.say(kept={name: kept.get(name) for name in ("kind", "request_id", "user_id", "quota", "refund_id")})
    play.settle()
    play.end()
