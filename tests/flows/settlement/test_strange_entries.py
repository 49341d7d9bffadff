"""What another program writes into an outbox, or puts in its place, stops no shard and hides no loss."""

from __future__ import annotations

import pytest

from billing_tasks.flows.requests import expire
from billing_tasks.flows.settlement import ring
from tests.conftest import Billing, MakeBilling, Payer

TOP = 2**64 - 1


def outbox(billing: Billing, payer: Payer) -> str:
    keys = billing.runtime.commands.keys
    return keys.outbox(keys.shard_of(payer[0]))


def use(billing: Billing, payer: Payer, times: int = 1) -> None:
    for _ in range(times):
        billing.use(billing.reserve(payer, 10), 10)


def look(billing: Billing) -> None:
    billing.runtime.run(ring.ring_stale(commands=billing.runtime.commands, settings=billing.settings))


def all_is_booked(billing: Billing, payer: Payer, spent: int) -> None:
    """Whatever lay there: the payer's usage is booked, nothing is missing, and the guarantees hold."""
    billing.settle()
    look(billing)
    assert billing.redis("XLEN", outbox(billing, payer)) == 0
    assert billing.accounts.user(payer[0]).quota == 1_000_000 - spent
    assert [incident for incident in billing.runtime.ledger.incidents() if incident.kind == "gap"] == []
    report = billing.verify()
    assert report.events_missing == 0
    assert [finding for finding in report.findings if "did not write" not in finding.what] == []


HEADER = "consume 00000000-0000-7000-8000-000000000000 {user:05d} {token} 10 0 1"


@pytest.mark.parametrize("place", ["0-1", "5-1000000", "*", f"{TOP}-{TOP}", f"{2**62}-7"])
@pytest.mark.parametrize("words", [("a", "b"), ("event", HEADER, "payload", "?"), ("event", "?", "payload", "?")])
@pytest.mark.parametrize("drained_between", [False, True])
def test_an_entry_of_another_program_stops_nothing_and_is_kept(
    billing: Billing, place: str, words: tuple[str, ...], drained_between: bool
) -> None:
    payer = billing.payer()
    if place not in ("0-1", "5-1000000"):
        use(billing, payer, 2)
    billing.redis("XADD", outbox(billing, payer), place, *(w.format(user=payer[0], token=payer[1]) for w in words))
    if drained_between:
        billing.settle()
    use(billing, payer, 5)
    all_is_booked(billing, payer, spent=50 if place in ("0-1", "5-1000000") else 70)
    kept = billing.runtime.ledger.dead_letters()
    assert len(kept) == 1
    use(billing, payer, 3)
    billing.settle()


def test_an_entry_that_no_script_can_remove_is_dropped_once_its_event_is_booked(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 1)
    (entry,) = billing.redis("XRANGE", outbox(billing, payer), "-", "+")
    kind, request_id, user_id, *rest = entry[1][1].decode().split(" ")
    billing.settle()
    words = " ".join([kind, request_id, f"000{user_id}", *rest])
    billing.redis("XADD", outbox(billing, payer), "*", "event", words, "payload", entry[1][3])
    use(billing, payer, 3)
    all_is_booked(billing, payer, spent=40)


@pytest.mark.parametrize("what", ["outbox", "meta", "due", "doorbell", "drainer", "user", "token"])
@pytest.mark.parametrize("command", [("SET", "x"), ("RPUSH", "x", "y"), ("HSET", "held", "x"), ("HSET", "seq", "?")])
def test_a_key_of_another_type_stops_no_shard(make_billing: MakeBilling, what: str, command: tuple[str, ...]) -> None:
    billing = make_billing(shards=2)
    payer, other = billing.payer(), billing.payer()
    assert payer[0] % 2 != other[0] % 2
    use(billing, payer)
    use(billing, other)
    billing.settle()
    key = f"{billing.runtime.commands.keys.shard(payer[0] % 2)}{what}" + (
        f":{payer[what == 'token']}" if what in ("user", "token") else ""
    )
    if command[0] != "HSET" or what not in ("meta", "user", "token"):
        billing.redis("DEL", key)
    billing.redis(command[0], key, *command[1:])
    look(billing)
    billing.verify()
    use(billing, payer, 2)
    use(billing, other, 2)
    for shard in (0, 1):
        billing.runtime.run(expire.expire_shard(shard, commands=billing.runtime.commands))
    all_is_booked(billing, payer, spent=30)
    all_is_booked(billing, other, spent=30)
    for name in billing.redis("KEYS", "*}:strange:*"):
        assert any(name.decode() in str(finding) for finding in billing.verify().findings)
        billing.redis("DEL", name)


def test_a_member_of_due_that_is_no_text_is_no_end_of_the_sweep(billing: Billing) -> None:
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    due = keys.due(keys.shard_of(payer[0]))
    for member, score in ((b"\xff\xfe", 1), (b"\xff\xfd", "inf"), ("no request", "-inf"), ("no request either", "inf")):
        billing.redis("ZADD", due, score, member)
    reservation = billing.reserve(payer, 10)
    billing.verify()
    for shard in range(keys.shards):
        billing.runtime.run(expire.expire_shard(shard, commands=billing.runtime.commands))
    billing.use(reservation, 10)
    assert billing.redis("ZCARD", due) == 0
    all_is_booked(billing, payer, spent=10)
