"""Scripts of this release on data of a later one, which has words and fields behind those that are known here; and
scripts of release 0.1.0 on data of this one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from billing_tasks.errors import IdempotencyConflict, InvalidRequest
from billing_tasks.flows.dead_letters.retry import attempt
from billing_tasks.flows.requests import consume
from billing_tasks.model import events
from billing_tasks.model.fingerprint import fingerprint
from billing_tasks.model.ids import new_request_id
from tests.conftest import Billing, MakeBilling, Payer
from tests.releases.record import HERE

MORE = " 03abcdef and more"


@pytest.fixture
def payer(billing: Billing) -> Payer:
    return billing.payer(1000)


def hold_key(billing: Billing, payer: Payer, request_id: str) -> str:
    keys = billing.runtime.commands.keys
    return keys.hold(keys.shard_of(payer[0]), request_id)


def lengthen(billing: Billing, key: str) -> None:
    billing.redis("SET", key, billing.redis("GET", key).decode() + MORE, "KEEPTTL")


def lengthen_accounts(billing: Billing, payer: Payer) -> None:
    for key in (billing.user_key(payer[0]), billing.token_key(payer)):
        attributes = billing.redis("HGET", key, "facts").decode()
        billing.redis("HSET", key, "facts", attributes + " tier:gold", "rate_limit", "5")


def lengthen_outbox(billing: Billing, payer: Payer) -> None:
    """Rewrite the waiting entries with a header and fields of a later release."""
    keys = billing.runtime.commands.keys
    outbox = keys.outbox(keys.shard_of(payer[0]))
    entries = billing.redis("XRANGE", outbox, "-", "+")
    billing.redis("DEL", outbox)
    for entry_id, fields in entries:
        _, header, _, payload = fields
        billing.redis("XADD", outbox, entry_id, "event", header + MORE.encode(), "payload", payload, "trace", "t")


def test_a_longer_hold_is_repeated_renewed_and_consumed(billing: Billing, payer: Payer) -> None:
    held = billing.reserve(payer, 100)
    lengthen(billing, hold_key(billing, payer, held.request_id))
    lengthen_accounts(billing, payer)

    assert billing.reserve(payer, 100, request_id=held.request_id).again
    assert billing.bk.renew(held, 900) > held.expires_at_ms
    assert billing.verify().findings == []
    assert not billing.use(held, 60).late

    lengthen(billing, hold_key(billing, payer, held.request_id))  # its tombstone
    assert billing.use(held, 60).again
    assert billing.settle().posted == 1
    assert billing.available(payer[0]) == 940


def test_a_longer_hold_is_released_and_another_expires(billing: Billing, payer: Payer) -> None:
    released, expired = billing.reserve(payer, 100), billing.reserve(payer, 200)
    for held in (released, expired):
        lengthen(billing, hold_key(billing, payer, held.request_id))
    keys = billing.runtime.commands.keys
    billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, expired.request_id)

    assert billing.bk.refund_quota(released).quota == 100
    assert billing.expire() == 1
    assert billing.settle().posted == 2
    assert billing.available(payer[0]) == 1000


def test_longer_entries_are_booked_and_leave_with_their_weight(billing: Billing, payer: Payer) -> None:
    for quota in (10, 20):
        billing.use(billing.reserve(payer, 100), quota)
    lengthen_outbox(billing, payer)

    assert billing.verify().findings == []  # the sums that audit.lua makes count them
    done = billing.settle()

    assert (done.posted, done.dead_lettered) == (2, 0)
    assert billing.accounts.user(payer[0]).used_quota == 30
    assert billing.available(payer[0]) == 970


def test_longer_attributes_are_obeyed(billing: Billing, payer: Payer) -> None:
    billing.bk.refund_quota(billing.reserve(payer, 10))
    lengthen_accounts(billing, payer)
    assert billing.reserve(payer, 10).held_quota == 10
    key = billing.user_key(payer[0])
    billing.redis("HSET", key, "facts", "disabled since yesterday")
    billing.accounts.set_user(payer[0], status="disabled")
    with pytest.raises(Exception, match="disabled"):
        billing.reserve(payer, 10)
    billing.settle()


def test_scripts_of_release_0_1_0_close_the_holds_of_this_one(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=16, shard_tags="numbered")
    payer = billing.payer(1000)
    used, back = billing.reserve(payer, 100), billing.reserve(payer, 50)

    def script(name: str, request_id: str, *arguments: Any) -> Any:
        keys, shard = billing.runtime.commands.keys, billing.runtime.commands.keys.shard_of(payer[0])
        named = [keys.meta(shard), billing.user_key(payer[0]), billing.token_key(payer), keys.hold(shard, request_id)]
        named += [keys.due(shard), keys.outbox(shard), keys.doorbell(shard)]
        words = (len(named), *named, request_id, payer[0], payer[1], *arguments, "-")
        return billing.redis("EVAL", (HERE / f"0.1.0/lua/{name}.lua").read_text(), *words)

    event = b'{"kind":"consume","request_id":"%s","user_id":%d,"token_id":%d,"fingerprint":"%s","quota":60}'
    payload = event % (used.request_id.encode(), *payer, b"ab" * 16)
    assert script("consume", used.request_id, 60, "ab" * 16, payload, 5000, 600_000)[0] == b"CONSUMED"
    event = b'{"kind":"release","request_id":"%s","user_id":%d,"token_id":%d,"fingerprint":"%s","quota":50}'
    payload = event % (back.request_id.encode(), *payer, b"cd" * 16)
    assert script("release", back.request_id, payload, 5000, 600_000, 3600)[0] == b"RELEASED"
    assert script("release", new_request_id(), payload, 5000, 600_000, 3600)[0] == b"NO_HOLD"

    assert billing.settle().posted == 2  # and this release books what 0.1.0 filed
    assert billing.available(payer[0]) == 940


def filed(billing: Billing, payer: Payer) -> list[tuple[str, dict[str, Any]]]:
    """Header and payload of what waits."""
    keys = billing.runtime.commands.keys
    entries = billing.redis("XRANGE", keys.outbox(keys.shard_of(payer[0])), "-", "+")
    return [(fields[1].decode(), json.loads(fields[3])) for _, fields in entries]


def test_workers_of_release_0_1_0_read_what_is_filed_in_shards_they_share(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=16, shard_tags="numbered")
    payer = billing.payer(1000)
    used, back, expired = (billing.reserve(payer, 100) for _ in range(3))
    keys = billing.runtime.commands.keys
    upstream = {"cached": [1, {"a": "b"}]}
    billing.use(used, 60, usage=upstream)
    billing.bk.refund_quota(back)
    billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, expired.request_id)
    assert billing.expire() == 1
    billing.bk.refund_charge(request_id=used.request_id, user_id=payer[0], refund_id="case-1")
    with pytest.raises(IdempotencyConflict):
        billing.use(used, 61)

    entries = filed(billing, payer)

    kinds = ["consume", "release", "release", "refund", "conflict"]
    assert [header.split(" ")[0] for header, _ in entries] == kinds
    for header, event in entries:
        kind, request_id, user_id, token_id = header.split(" ")[:4]
        kind = "consume" if kind == "conflict" else kind
        said = (event["kind"], event["request_id"], event["user_id"], event["token_id"])
        assert said == (kind, request_id, int(user_id), int(token_id))
        assert len(event["fingerprint"]) == 32
    assert [event.get("quota") for _, event in entries] == [60, 100, 100, None, 61]
    assert entries[0][1]["usage"] == upstream
    tombstone = billing.redis("GET", hold_key(billing, payer, used.request_id)).decode()
    assert tombstone.endswith(" " + entries[0][1]["fingerprint"])

    billing.bk.refund_charge(request_id=new_request_id(), user_id=payer[0], refund_id="case-2")
    done = billing.settle()
    assert (done.posted, done.dead_lettered) == (4, 2)
    for dead_letter in billing.runtime.ledger.dead_letters():  # 0.1.0 may retry these, too
        assert {"kind", "request_id", "user_id", "token_id", "fingerprint"} <= json.loads(dead_letter.payload).keys()
    kept = billing.sql("select usage from billing.consume_log where request_id = %s", used.request_id)
    assert kept == [(upstream,)]


def test_facts_that_release_0_1_0_has_no_place_for_are_filed_as_of_today(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=16, shard_tags="numbered")
    payer = billing.payer(1000)
    held = billing.reserve(payer, 100)
    event = events.of_log(held.log(channel_id=3, quota=60))
    event.usage, event.fingerprint = {"images": 2}, "02" + "ab" * 16
    for again in (False, True):
        receipt = billing.runtime.run(consume.file(event, commands=billing.runtime.commands))
        assert receipt.again is again
    [(_, said)] = filed(billing, payer)
    assert "kind" not in said
    assert (said["usage"], said["fingerprint"]) == ({"images": 2}, event.fingerprint)
    with pytest.raises(IdempotencyConflict):
        billing.use(held, 61)
    done = billing.settle()
    assert (done.posted, done.dead_lettered) == (1, 1)


def test_a_release_is_booked_with_what_the_script_found_held(make_billing: MakeBilling) -> None:
    billing = make_billing(shards=16, shard_tags="numbered")
    payer = billing.payer(1000)
    held = billing.reserve(payer, 100)
    assert billing.bk.refund_quota(replace(held, held_quota=99)).quota == 100
    assert billing.settle().posted == 1
    [entry] = billing.runtime.ledger.entries_of(held.request_id)
    assert entry.quota == 100


@pytest.mark.parametrize("of_another", ["03" + "ab" * 16, "0003" + "ab" * 16])
@pytest.mark.parametrize("quota", [60, 61])
def test_a_formula_that_is_not_known_yet_makes_no_conflict(
    billing: Billing, payer: Payer, of_another: str, quota: int
) -> None:
    held = billing.reserve(payer, 100)
    first = events.of_log(held.log(channel_id=3, quota=60, prompt_tokens=60))
    first.fingerprint = of_another  # a later release consumed it
    billing.runtime.run(consume.file(first, commands=billing.runtime.commands))

    if quota == 60:
        assert billing.use(held, 60).posted
    else:
        billing.settle()
        with pytest.raises(IdempotencyConflict):
            billing.use(held, 61)
    done = billing.settle()

    assert done.duplicates == (quota == 60)
    assert len(billing.runtime.ledger.dead_letters()) == (quota == 61)
    assert billing.accounts.user(payer[0]).used_quota == 60
    assert billing.available(payer[0]) == 940


def retry(billing: Billing, number: int) -> None:
    flow = attempt(number, actor="test", commands=billing.runtime.commands, settings=billing.settings)
    billing.runtime.run(flow)


def test_money_of_a_later_release_waits_as_a_dead_letter_until_this_one_is_upgraded(billing: Billing) -> None:
    payer = billing.payer(1000)
    held = billing.reserve(payer, 100)
    billing.use(held, 60, client_key="order-1")
    keys = billing.runtime.commands.keys
    outbox = keys.outbox(keys.shard_of(payer[0]))
    [(entry_id, (_, header, _, payload))] = billing.redis("XRANGE", outbox, "-", "+")
    later = b'{"surcharge":5,' + payload[1:]
    billing.redis("DEL", outbox)
    billing.redis("XADD", outbox, entry_id, "event", header + MORE.encode(), "payload", later)
    assert billing.settle().dead_lettered == 1
    [dead_letter] = billing.runtime.ledger.dead_letters(client_keys=["order-1"])
    assert dead_letter.payload == header + MORE.encode() + b" " + later
    with pytest.raises(InvalidRequest, match="surcharge"):
        retry(billing, dead_letter.id)
    # An upgraded release knows the field; here what it does not know goes from what was kept.
    known = dead_letter.payload.replace(b'"surcharge":5,', b"")
    digest = fingerprint("malformed", known.hex())
    billing.sql(
        "update billing.dead_letters set payload = %s, fingerprint = %s where id = %s", known, digest, dead_letter.id
    )
    retry(billing, dead_letter.id)
    assert billing.accounts.user(payer[0]).used_quota == 60
    assert billing.available(payer[0]) == 940
