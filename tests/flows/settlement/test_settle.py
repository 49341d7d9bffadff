"""Settling: the outbox is booked once, whatever is in it and wherever the drainer stops."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from billing_tasks.admin import Admin
from billing_tasks.errors import Unavailable
from billing_tasks.flows.effects import Effect, InLedger
from billing_tasks.flows.settlement import settle
from billing_tasks.holds.commands import Pipeline
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import Runtime
from tests.conftest import CHANNEL, Billing, MakeBilling, Payer


def drain(billing: Billing, payer: Payer, owner: str = "test") -> Any:
    shard = billing.runtime.commands.keys.shard_of(payer[0])
    return settle.drain(
        shard, owner=owner, commands=billing.runtime.commands, settings=billing.settings, now=time.monotonic
    )


def file_raw(billing: Billing, payer: Payer, quota: int, payload: bytes) -> str:
    """What a broken or hostile program could leave in an outbox."""
    request_id = new_request_id()
    commands = billing.runtime.commands
    billing.runtime.holds.send(
        commands.consume(
            request_id=request_id,
            user_id=payer[0],
            token_id=payer[1],
            quota=quota,
            fingerprint="0" * 32,
            payload=payload.replace(b"REQUEST", request_id.encode()),
        )
    )
    return request_id


GOOD = b'{"kind":"consume","request_id":"REQUEST","user_id":%d,"token_id":%d,"fingerprint":"%s","quota":%d%s}'


def good(payer: Payer, quota: int, more: bytes = b"") -> bytes:
    return GOOD % (payer[0], payer[1], b"0" * 32, quota, more)


def test_a_whole_backlog_is_booked_in_one_run(billing: Billing) -> None:
    payers = [billing.payer() for _ in range(5)]
    for payer in payers:
        for _ in range(20):
            billing.use(billing.reserve(payer, 100), 40)
    assert billing.settle().posted == 100
    assert [billing.accounts.user(user_id).quota for user_id, _ in payers] == [1_000_000 - 800] * 5
    assert billing.verify().backlog == 0


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"not json", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b'{"kind":"consume"}', "malformed"),
        (b'{"kind":"steal","request_id":"REQUEST","user_id":1,"token_id":1,"fingerprint":""}', "malformed"),
        ("other user", "malformed"),
        ("other kind", "malformed"),
        ("other quota", "malformed"),
        ("nul", "malformed"),
        ("bad fingerprint", "malformed"),
        ("bad fingerprint of a later formula", "malformed"),
        ("used in another age", "malformed"),
        ("unknown token", "unknown_token"),
    ],
)
def test_one_event_that_can_never_be_booked_does_not_stop_its_batch(
    make_billing: MakeBilling, payload: bytes | str, reason: str
) -> None:
    billing = make_billing(shards=1)
    payer = billing.payer()
    crafted = {
        "other user": good((payer[0] + 1, payer[1]), 50),
        "other kind": good(payer, 50).replace(b"consume", b"release"),
        "other quota": good(payer, 5),
        "nul": good(payer, 50, b',"content":"\\u0000"'),
        "bad fingerprint": good(payer, 50).replace(b"0" * 32, b"zz" * 16),
        "bad fingerprint of a later formula": good(payer, 50, b',"usage":{"a":1}').replace(b"0" * 32, b"z" * 40),
        "used in another age": good(payer, 50, b',"used_at_ms":1000000000000000'),
        "unknown token": good((payer[0], 999), 50),
    }
    for _ in range(10):
        billing.use(billing.reserve(payer, 100), 40)
    payload = crafted[payload] if isinstance(payload, str) else payload
    owner = (payer[0], 999) if reason == "unknown_token" else payer
    request_id = file_raw(billing, owner, 50, payload)
    for _ in range(10):
        billing.use(billing.reserve(payer, 100), 40)

    done = billing.settle()

    assert (done.posted, done.dead_lettered) == (20, 1)
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    assert (dead_letter.request_id, dead_letter.reason, dead_letter.state) == (request_id, reason, "failed")
    assert billing.accounts.user(payer[0]).quota == 1_000_000 - 800
    assert billing.available(payer[0]) == 1_000_000 - 800  # its weight is gone with it
    assert billing.runtime.ledger.incidents() == []


def test_entries_that_no_script_of_ours_wrote_are_kept_and_removed(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=1)
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    outbox = billing.runtime.commands.keys.outbox(0)
    billing.redis("XADD", outbox, "*", "what", "ever")
    billing.redis("XADD", outbox, "*", "kind", b"\xff", "weight", "-5", "user_id", "x", "payload", "y")
    for wrong in ("", "9" * 5000, "9" * 19, "-1", "0x10", "1 ", "1\t", "\xb2"):  # ours, but for its numbers
        billing.redis("XADD", outbox, "*", "event", f"consume x {wrong} 1 {wrong} 0 1", "payload", "{}")
    far = f"consume {new_request_id()} {payer[0]} {payer[1]} 0 0 {10**15}"
    billing.redis("XADD", outbox, "*", "event", far, "payload", b'{"fingerprint":"%s"}' % (b"0" * 32))
    id_is_no_text = b"consume \xff 1 1 0 0 1"
    billing.redis("XADD", outbox, "*", "event", id_is_no_text, "payload", b'{"fingerprint":"%s"}' % (b"0" * 32))
    for event in ("consume a\tb 1 1 7 0 1", "consume x 1 1 7 0", "", "CONSUME x 1 1 0 0 1 1"):
        billing.redis("XADD", outbox, "*", "event", event, "payload", "{}")
    billing.redis("XADD", outbox, "*", "event", "consume x 1 1 0 0 1", "payload", "{}", "more", "fields")
    done = [billing.settle() for _ in range(3)]
    assert sum(d.posted for d in done) == 1
    assert sum(d.dead_lettered for d in done) == 17
    assert billing.verify().backlog == 0
    assert billing.available(payer[0]) == 1_000_000 - 40


def test_events_that_another_program_took_out_of_the_middle_are_an_incident(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=1)
    payer = billing.payer()
    for _ in range(6):
        billing.use(billing.reserve(payer, 100), 40)
    outbox = billing.runtime.commands.keys.outbox(0)
    ids = [entry_id for entry_id, _ in billing.redis("XRANGE", outbox, "-", "+")]
    billing.redis("XDEL", outbox, *ids[2:4])
    assert billing.settle().posted == 4
    [incident] = billing.runtime.ledger.incidents()
    assert (incident.kind, incident.from_seq, incident.to_seq, incident.events_bound) == ("gap", 3, 4, 2)
    # Their weight stays until a reconciliation counts anew.
    assert Admin(billing.runtime).audit.reconcile(repair=True).after.ok


def test_usage_of_an_unknown_user_is_kept(billing: Billing) -> None:
    payer = billing.payer()
    file_raw(billing, (999, payer[1]), 50, good((999, payer[1]), 50))
    assert billing.settle().dead_lettered == 1
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    assert (dead_letter.user_id, dead_letter.reason) == (999, "unknown_user")


class Died(Exception):
    """Stands for kill -9: nothing of the process runs on."""


def run_until(runtime: Runtime, flow: Any, stop_at: int) -> int:
    """Perform a flow's effects and die before number `stop_at`; returns how many there were."""
    count, effect = 0, flow.send(None)
    try:
        while count < stop_at:
            reply = runtime.perform(effect)
            count += 1
            effect = flow.send(reply)
    except StopIteration:
        pass
    flow.close()
    return count


@pytest.mark.parametrize("stop_at", range(8))
def test_a_drainer_killed_between_any_two_steps_books_everything_once(billing: Billing, stop_at: int) -> None:
    payer = billing.payer(100_000)
    for _ in range(30):
        billing.use(billing.reserve(payer, 100), 40)
    charge = billing.use(billing.reserve(payer, 100), 40)
    billing.bk.refund_charge(user_id=payer[0], request_id=charge.request_id, refund_id="r", quota=10)
    run_until(billing.runtime, drain(billing, payer, "killed"), stop_at)
    assert billing.available(payer[0]) <= 100_000 - 31 * 40 + 10
    billing.redis(
        "DEL", billing.runtime.commands.keys.drainer(billing.runtime.commands.keys.shard_of(payer[0]))
    )  # the lease ran out

    billing.settle()

    assert billing.accounts.user(payer[0]).quota == 100_000 - 31 * 40 + 10
    assert billing.available(payer[0]) == 100_000 - 31 * 40 + 10


def test_two_drainers_of_one_shard_book_everything_once(billing: Billing) -> None:
    payer = billing.payer(100_000)
    for _ in range(300):
        billing.use(billing.reserve(payer, 100), 40)
    keys, shard = billing.runtime.commands.keys, billing.runtime.commands.keys.shard_of(payer[0])

    def run(owner: str) -> settle.Drained:
        billing.redis("DEL", keys.drainer(shard))  # as if the other's lease had run out
        return billing.runtime.run(drain(billing, payer, owner))

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(run, "abcd"))
    billing.settle()
    assert sum(d.posted for d in done) == 300
    assert billing.accounts.user(payer[0]).used_quota == 300 * 40


def test_a_drainer_out_of_time_hands_over(make_billing: MakeBilling) -> None:
    billing = make_billing(batch_size=10, settle_budget_seconds=1e-9)
    payer = billing.payer()
    for _ in range(25):
        billing.use(billing.reserve(payer, 10), 4)
    assert billing.runtime.run(drain(billing, payer)).posted == 10
    assert billing.runtime.run(drain(billing, payer, "next")).posted == 10
    assert billing.runtime.run(drain(billing, payer, "last")).posted == 5


def test_a_drainer_without_postgresql_keeps_the_events_and_ends_its_lease(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)

    def away(effect: Effect) -> Any:
        if isinstance(effect, InLedger):
            raise Unavailable("PostgreSQL is away")
        return Runtime.perform(billing.runtime, effect)

    flow = drain(billing, payer, "first")
    with pytest.raises(Unavailable):
        _run_with(away, flow)
    keys, shard = billing.runtime.commands.keys, billing.runtime.commands.keys.shard_of(payer[0])
    assert billing.redis("EXISTS", keys.drainer(shard)) == 0
    assert billing.redis("PTTL", keys.doorbell(shard)) > 5000  # consumes don't call more drainers meanwhile
    assert billing.settle().posted == 1


def _run_with(perform: Any, flow: Any) -> Any:
    effect = flow.send(None)
    while True:
        try:
            reply = perform(effect)
        except Unavailable as exc:
            effect = flow.throw(exc)
        else:
            effect = flow.send(reply)


def test_a_user_near_the_limit_sees_no_false_refusal_while_a_batch_settles(billing: Billing) -> None:
    # 150 events of two users in one batch: each user's events and new balance must arrive together.
    first, second = billing.payer(100_000), None
    while second is None or second[0] % 16 != first[0] % 16:
        second = billing.payer(100_000)
    for number in range(150):
        billing.use(billing.reserve((first, second)[number % 2], 100), 40)
    seen: list[int] = []
    flow = drain(billing, first)
    effect = flow.send(None)
    try:
        while True:
            if isinstance(effect, Pipeline):
                reply: Any = []
                for command in effect.commands:
                    reply.append(billing.runtime.holds.send(command))
                    seen += [billing.available(first[0]), billing.available(second[0])]
            else:
                reply = billing.runtime.perform(effect)
            effect = flow.send(reply)
    except StopIteration:
        pass
    assert set(seen) == {100_000 - 75 * 40}


def test_an_outbox_of_two_epochs_is_drained_whole(billing: Billing) -> None:
    payer = billing.payer()
    billing.use(billing.reserve(payer, 100), 40)
    keys, shard = billing.runtime.commands.keys, billing.runtime.commands.keys.shard_of(payer[0])
    billing.redis("HSET", keys.meta(shard), "run_id", "0" * 40)
    billing.use(billing.reserve(payer, 100), 50)
    assert billing.settle().posted == 2
    assert billing.available(payer[0]) == 1_000_000 - 90


def test_a_batch_bigger_than_one_read_is_booked_whole(make_billing: MakeBilling) -> None:
    billing = make_billing(batch_size=7)
    payer = billing.payer()
    for _ in range(50):
        billing.use(billing.reserve(payer, 10), 4)
    assert billing.settle().posted == 50
    assert {cursor.posted for cursor in billing.runtime.ledger.outbox_cursors()} == {50}


def test_events_carry_everything_a_refund_or_a_reader_needs(billing: Billing) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    billing.bk.consume(reservation.log(channel_id=CHANNEL, quota=40, content="remark", client_key="mine"))
    billing.settle()
    (entry,) = billing.runtime.ledger.entries_of(reservation.request_id)
    assert (entry.held_quota, entry.content, entry.client_key, entry.channel_id) == (100, "remark", "mine", CHANNEL)
